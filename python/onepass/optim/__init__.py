"""Optimizers in torch.optim's own signatures, one pass over memory a step."""

from .adam import Adam, AdamW

__all__ = ["Adam", "AdamW"]
