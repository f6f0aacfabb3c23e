"""Optimizers in torch.optim's own signatures, the whole phase in one pass over memory."""

from .adagrad import Adagrad
from .adam import Adam, AdamW
from .clip import clip_grad_norm_
from .lion import Lion
from .rmsprop import RMSprop
from .sgd import SGD

__all__ = ["SGD", "Adagrad", "Adam", "AdamW", "Lion", "RMSprop", "clip_grad_norm_"]
