"""What tests, opcheck, benchmarks and `python -m onepass selftest` share: inputs, tolerances, comparison.

Works on a user's machine with nothing but torch; nothing here imports pytest.
"""

from .cases import CASES, Case
from .compare import Mismatch, compare
from .tolerances import TOLERANCES, Tolerance
from .verify import Variant, call, expected, variants, verify

__all__ = [
    "CASES",
    "TOLERANCES",
    "Case",
    "Mismatch",
    "Tolerance",
    "Variant",
    "call",
    "compare",
    "expected",
    "variants",
    "verify",
]
