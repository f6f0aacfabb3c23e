"""The handwritten digits that ship inside scikit-learn: 1797 grey images of 8x8, nothing to download."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

CLASSES = 10
TEST_SHARE = 0.25
SPLIT_SEED = 0  # the split stays the same whatever the seed of the training


@dataclass(frozen=True)
class Digits:
    """Images float32 [n, 1, 8, 8], mean 0 and deviation 1 over the training set; labels int64 [n]."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load() -> Digits:
    """The digits, split once and for all; every class has the same share of both parts."""
    raw = load_digits()
    train_x, test_x, train_y, test_y = train_test_split(
        raw.images, raw.target, test_size=TEST_SHARE, random_state=SPLIT_SEED, stratify=raw.target
    )
    mean, std = train_x.mean(), train_x.std()

    def images(x) -> Tensor:
        return torch.from_numpy((x - mean) / std).float().unsqueeze(1)

    return Digits(images(train_x), torch.from_numpy(train_y), images(test_x), torch.from_numpy(test_y))


def steps_per_epoch(digits: Digits, batch: int) -> int:
    """Whole batches only: a rest of three images would make a poor batch statistic."""
    return len(digits.train_labels) // batch


def batches(digits: Digits, batch: int, rng: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch in random order: images [batch, 1, 8, 8] and labels [batch]."""
    order = torch.randperm(len(digits.train_labels), generator=rng)
    for k in range(steps_per_epoch(digits, batch)):
        chosen = order[k * batch : (k + 1) * batch]
        yield digits.train_images[chosen], digits.train_labels[chosen]
