"""Training in lockstep: every run sees the same batch before the next one is drawn.

So all runs share the machine's quiet and noisy moments; which one goes first changes with every step.
One thread by default: with images this small a second one gains little, and where another program keeps a
processor busy, the threads of torch's convolutions wait for each other and take ten times as long.
"""

import copy
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import amp, optim
from .. import nn as onepass_nn
from ..testing.threads import threads
from . import data
from .data import Digits
from .model import ResNet


@dataclass(frozen=True)
class Settings:
    seed: int = 0
    epochs: int = 15
    threads: int = 1
    batch: int = 64
    lr: float = 1e-3  # the peak of a one-cycle schedule
    weight_decay: float = 0.05
    amp: str | None = None  # "fp16" or "bf16": what autocast computes in
    fused_bn: bool = False  # in the runs of onepass
    growth_interval: int = 10  # of the loss scale, in steps; torch's 2000 are more than there are

    @property
    def autocast(self) -> torch.dtype | None:
        return {"fp16": torch.float16, "bf16": torch.bfloat16, None: None}[self.amp]


@dataclass(frozen=True)
class Run:
    """One way to train. The first of a list of runs is the one that the others are compared with."""

    name: str
    optimizer: Callable[[Iterable[nn.Parameter], Settings], torch.optim.Optimizer]
    scaler: type[torch.amp.GradScaler] = torch.amp.GradScaler
    ours: bool = False


def _torch(parameters: Iterable[nn.Parameter], s: Settings) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=s.lr, weight_decay=s.weight_decay)


def _torch_fused(parameters: Iterable[nn.Parameter], s: Settings) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=s.lr, weight_decay=s.weight_decay, fused=True)


def _onepass(parameters: Iterable[nn.Parameter], s: Settings) -> torch.optim.Optimizer:
    return optim.AdamW(parameters, lr=s.lr, weight_decay=s.weight_decay)


RUNS = (
    Run("torch AdamW", _torch),
    Run("torch AdamW fused", _torch_fused),
    Run("onepass AdamW", _onepass, amp.GradScaler, ours=True),
)


@dataclass
class Learner:
    """A run's model and optimizer, and what they have shown so far."""

    run: Run
    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler  # disabled where nothing overflows
    autocast: torch.dtype | None
    losses: list[float] = field(default_factory=list)  # cross-entropy, one a step
    step_ms: list[float] = field(default_factory=list)  # milliseconds in optimizer.step(), one a step
    pass_ms: list[float] = field(default_factory=list)  # and in forward and backward
    scale: float = 0.0  # the loss scale; 1 where there is none
    scales: list[float] = field(default_factory=list)  # what it was behind each step
    skipped: list[int] = field(default_factory=list)  # the steps that overflowed, from 1
    accuracies: list[float] = field(default_factory=list)  # percent of the test set, one an epoch

    def __post_init__(self) -> None:
        self.scale = self.scaler.get_scale()

    def learn(self, images: Tensor, labels: Tensor) -> None:
        self.optimizer.zero_grad()
        started = time.perf_counter()
        with torch.autocast("cpu", self.autocast, enabled=self.autocast is not None):
            loss = F.cross_entropy(self.model(images), labels)
        self.scaler.scale(loss).backward()
        begun = time.perf_counter()
        self.pass_ms.append(1e3 * (begun - started))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step_ms.append(1e3 * (time.perf_counter() - begun))
        self.schedule.step()
        self._note(loss.item())

    def _note(self, loss: float) -> None:
        self.losses.append(loss)
        self.scales.append(self.scaler.get_scale())
        if self.scales[-1] < self.scale:
            self.skipped.append(len(self.scales))
        self.scale = self.scales[-1]

    @torch.no_grad()
    def examine(self, images: Tensor, labels: Tensor) -> None:
        self.model.eval()
        right = self.model(images).argmax(dim=1) == labels
        self.model.train()
        self.accuracies.append(100 * right.double().mean().item())


def _learner(run: Run, model: nn.Module, settings: Settings, steps: int) -> Learner:
    model = onepass_nn.fuse(model) if settings.fused_bn and run.ours else model
    optimizer = run.optimizer(model.parameters(), settings)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=settings.lr, total_steps=steps, cycle_momentum=False
    )
    scaler = run.scaler("cpu", growth_interval=settings.growth_interval, enabled=settings.amp == "fp16")
    return Learner(run, model, optimizer, schedule, scaler, settings.autocast)


def train(
    digits: Digits, settings: Settings, runs: Iterable[Run], tick: Callable[[int, float], None]
) -> list[Learner]:
    """Trains all runs from the same weights on the same batches.

    Args:
        tick: called after every step with the epoch, from 1, and the last run's loss.
    """
    torch.manual_seed(settings.seed)
    start = ResNet(data.CLASSES)
    steps = settings.epochs * data.steps_per_epoch(digits, settings.batch)
    learners = [_learner(run, copy.deepcopy(start), settings, steps) for run in runs]
    rng = torch.Generator().manual_seed(settings.seed)
    with threads(settings.threads):
        for epoch in range(1, settings.epochs + 1):
            for k, (images, labels) in enumerate(data.batches(digits, settings.batch, rng)):
                first = k % len(learners)
                for learner in learners[first:] + learners[:first]:
                    learner.learn(images, labels)
                tick(epoch, learners[-1].losses[-1])
            for learner in learners:
                learner.examine(digits.test_images, digits.test_labels)
    return learners
