"""Modules in place of torch.nn's, and their functions."""

from . import functional
from .batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from .fold import fold_bn
from .fuse import fuse
from .sync_batch_norm import SyncBatchNorm

__all__ = ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm", "fold_bn", "functional", "fuse"]
