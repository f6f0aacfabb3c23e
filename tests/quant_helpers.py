"""What the tests of calls that are refused have in common."""

from typing import Any

import pytest
import torch
from onepass.backends import check
from onepass.testing import Variant


def refused(variant: Variant, op: str, arguments: dict[str, Any], message: str) -> None:
    """By the backend and by the checks in Python, which fakes have too: in the same words."""
    with variant.use(), pytest.raises(RuntimeError) as raised:
        getattr(torch.ops.onepass, op)(**arguments)
    with pytest.raises(RuntimeError) as checked:
        check(op, **arguments)
    first = str(raised.value).partition("\n")[0]
    assert first.endswith(str(checked.value)) and f"{op}: {message}" in first
