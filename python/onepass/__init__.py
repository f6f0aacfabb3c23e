"""onepass: training ops for PyTorch in one pass over memory.

>>> import onepass
>>> optimizer = onepass.optim.AdamW(model.parameters(), lr=1e-3)  # in place of torch.optim.AdamW
"""

from . import amp, backends, nn, optim, quant
from .backends import use_backend

__version__ = "0.1.0"
__all__ = ["amp", "backends", "nn", "optim", "quant", "use_backend"]
