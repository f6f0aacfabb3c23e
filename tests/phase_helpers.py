"""Shared by tests of the optimizer phase: every optimizer, and torch's phase call by call in float64."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import onepass
import pytest
import torch
from onepass.testing import TOLERANCES
from onepass.testing.tolerances import FLOOR
from optim_helpers import copy_of, params_of, randn
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

HALVES = (torch.bfloat16, torch.float16)
SHAPES = ((40, 3), (65,), (7, 9), (), (0,), (33,), (2, 3, 5))


class PlainLion(torch.optim.Optimizer):
    """Lion in the manner of torch's for-loop optimizers, for tests; tests/test_lion.py proves ours."""

    def __init__(self, params, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0, maximize=False):
        super().__init__(
            params, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "maximize": maximize}
        )

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            lr, (beta1, beta2), decay = group["lr"], group["betas"], group["weight_decay"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                g = -p.grad if group["maximize"] else p.grad
                m = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                update = (beta1 * m + (1 - beta1) * g).sign()
                p.mul_(1 - lr * decay).add_(update, alpha=-lr)
                m.mul_(beta2).add_(g, alpha=1 - beta2)
        return loss


@dataclass(frozen=True)
class Kind:
    """An optimizer with options: ours, the one that it is measured by, and the states that it keeps."""

    ours: type
    theirs: type
    states: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)

    def make(self, params: Any, **options: Any) -> torch.optim.Optimizer:
        return self.ours(params, **{"lr": 1e-2, **self.options, **options})

    def make_torch(self, params: Any, **options: Any) -> torch.optim.Optimizer:
        loop = {} if self.theirs is PlainLion else {"foreach": False}
        return self.theirs(params, **{"lr": 1e-2, **self.options, **loop, **options})


def _kind(name: str, *states: str, **options: Any) -> Kind:
    theirs = PlainLion if name == "Lion" else getattr(torch.optim, name)
    return Kind(getattr(onepass.optim, name), theirs, states, options)


KINDS = {
    "adam": _kind("Adam", "exp_avg", "exp_avg_sq"),
    "adam_amsgrad": _kind("Adam", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", amsgrad=True, maximize=True),
    "adamw": _kind("AdamW", "exp_avg", "exp_avg_sq"),
    "sgd": _kind("SGD"),
    "sgd_nesterov": _kind("SGD", "momentum_buffer", momentum=0.9, nesterov=True),
    "sgd_dampening": _kind("SGD", "momentum_buffer", momentum=0.9, dampening=0.5, maximize=True),
    "rmsprop": _kind("RMSprop", "square_avg"),
    "rmsprop_centered": _kind(
        "RMSprop", "square_avg", "grad_avg", "momentum_buffer", centered=True, momentum=0.9
    ),
    "adagrad": _kind("Adagrad", "sum", lr_decay=0.01, initial_accumulator_value=0.1),
    "lion": _kind("Lion", "exp_avg"),
}
FEW = ("adamw", "sgd_dampening", "rmsprop_centered", "adagrad", "lion")  # one of each op

each_kind = pytest.mark.parametrize("kind", KINDS)
few_kinds = pytest.mark.parametrize("kind", FEW)
each_dtype = pytest.mark.parametrize(
    "dtype", TOLERANCES, ids=[str(dtype).removeprefix("torch.") for dtype in TOLERANCES]
)


def parameters(
    shapes: Sequence[tuple[int, ...]] = SHAPES, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """Around 1 and -1, so that no sign changes within some steps of 0.01."""
    near_one = [_noise(torch.Size(shape), i) * 0.1 + 1 for i, shape in enumerate(shapes)]
    flipped = [x * (1 - 2 * (_noise(x.shape, 50 + i) > 0).double()) for i, x in enumerate(near_one)]
    return [torch.nn.Parameter(x.to(dtype)) for x in flipped]


def three_groups(params: Sequence[Tensor]) -> list[dict[str, Any]]:
    """Three groups that differ in lr and weight decay."""
    third = len(params) // 3
    return [
        {"params": params[:third]},
        {"params": params[third : 2 * third], "lr": 2e-2, "weight_decay": 0.3},
        {"params": params[2 * third :], "lr": 5e-3, "weight_decay": 0.1},
    ]


def gradients(params: Sequence[Tensor], t: int, size: float = 1.0) -> list[Tensor]:
    """Fresh random gradients of this size, the same for the same t."""
    return [(_noise(p.shape, 1000 * t + i) * size).to(p.device, p.dtype) for i, p in enumerate(params)]


@functools.lru_cache(maxsize=1024)
def _noise(shape: torch.Size, seed: int) -> Tensor:
    return randn(*shape, seed=seed, dtype=torch.float64)


def give(optimizer: torch.optim.Optimizer, grads: Sequence[Tensor | None]) -> None:
    for p, g in zip(params_of(optimizer), grads, strict=True):
        p.grad = None if g is None else copy_of(g)


def hand_in(optimizer: torch.optim.Optimizer, scale: float | None, found_inf: float = 0.0) -> None:
    """Loss scale and overflow, as torch.amp.GradScaler hands them to a fused optimizer."""
    if scale is None:
        optimizer.__dict__.pop("grad_scale", None)
        optimizer.__dict__.pop("found_inf", None)
    else:
        here = params_of(optimizer)[0].device
        optimizer.grad_scale = torch.tensor(scale, device=here)
        optimizer.found_inf = torch.tensor(found_inf, device=here)


class CallByCall:
    """What torch does for a phase, one call after another, over float64 copies of an optimizer's parameters:
    unscale, clip_grad_norm_, L1, step, average."""

    def __init__(
        self, kind: str, optimizer: torch.optim.Optimizer, max_grad_norm=None, l1=0.0, ema_decay=None
    ) -> None:
        groups = []
        for group in optimizer.param_groups:
            copies = [torch.nn.Parameter(p.detach().to(torch.float64, copy=True)) for p in group["params"]]
            groups.append({**group, "params": copies, **({} if kind == "lion" else {"foreach": False})})
        self.optimizer = KINDS[kind].make_torch(groups)
        self.params = params_of(self.optimizer)
        self.max_grad_norm, self.l1 = max_grad_norm, l1
        self.averages = [p.detach().clone() for p in self.params]
        self._average = None if ema_decay is None else get_ema_multi_avg_fn(ema_decay)
        self.clipped: list[Tensor | None] = []

    def step(self, grads: Sequence[Tensor | None], scale: float = 1.0) -> Tensor | None:
        """Returns the norm before clipping."""
        for p, g in zip(self.params, grads, strict=True):
            p.grad = None if g is None else g.double() / scale
        norm = None
        if self.max_grad_norm is not None:
            norm = torch.nn.utils.clip_grad_norm_(self.params, self.max_grad_norm, foreach=False)
        self.clipped = [None if p.grad is None else p.grad.clone() for p in self.params]
        for group in self.optimizer.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):  # a penalty, also when maximizing
                p.grad.add_(p.detach().sign(), alpha=-self.l1 if group["maximize"] else self.l1)
        self.optimizer.step()
        if self._average is not None:
            moved = [i for i, p in enumerate(self.params) if p.grad is not None]
            self._average([self.averages[i] for i in moved], [self.params[i].detach() for i in moved], None)
        return norm

    def follow_halves(self, params: Sequence[Tensor]) -> None:
        """Starts the next step from those of these parameters that are rounded at every step."""
        for mine, theirs in zip(self.params, params, strict=True):
            if theirs.dtype in HALVES:
                mine.data.copy_(theirs.detach())


def assert_near(
    got: Tensor,
    wanted: Tensor,
    dtype: torch.dtype,
    steps: int = 1,
    where: object = "",
    least: float | Tensor = 0.0,
) -> None:
    """got, as stored in its own dtype, is wanted (float64) within this many steps' share of TOLERANCES.

    Args:
        dtype: of the parameter, which says in what arithmetic the steps were done.
        steps: errors of the arithmetic add up; a store that rounds does not, as every step starts from what
            was stored.
        least: the size that got once had, where it has come closer to zero since.
    """
    arithmetic, store = TOLERANCES[dtype], TOLERANCES[got.dtype]
    size = wanted.abs().clamp(min=FLOOR * finite_max(wanted))
    size = torch.maximum(size, torch.as_tensor(least, dtype=size.dtype))
    allowed = steps * arithmetic.rtol * size
    rounded = got.dtype in HALVES
    if rounded:
        allowed = allowed + store.ulps * torch.finfo(got.dtype).eps * size
    off = (got.detach().double() - (wanted.to(got.dtype).double() if rounded else wanted)).abs() - allowed
    assert not (off > 0).any(), f"{where}: {off.max().item():.3g} beyond {allowed.max().item():.3g}"


def assert_trained(optimizer: torch.optim.Optimizer, oracle: CallByCall, steps: int) -> None:
    """Parameters, which started around 1, and their averages are the oracle's."""
    for i, (p, q) in enumerate(zip(params_of(optimizer), oracle.params, strict=True)):
        assert_near(p, q.detach(), p.dtype, steps, f"params[{i}]", least=1.0)
        if "ema" in optimizer.state.get(p, {}):
            assert_near(optimizer.state[p]["ema"], oracle.averages[i], p.dtype, steps, f"ema {i}", least=1.0)


def finite_max(t: Tensor) -> float:
    finite = t[t.isfinite()]
    return finite.abs().max().item() if finite.numel() else 0.0


def assert_same_bits(ours: torch.optim.Optimizer, theirs: torch.optim.Optimizer) -> None:
    """Parameters, gradients and states of two optimizers, every bit of them."""
    for p, q in zip(params_of(ours), params_of(theirs), strict=True):
        mine, wanted = ({"param": x, "grad": x.grad, **o.state[x]} for x, o in ((p, ours), (q, theirs)))
        assert mine.keys() == wanted.keys()
        for name, x in mine.items():
            assert x.dtype == wanted[name].dtype, name
            assert torch.equal(bits(x), bits(wanted[name])), name


def bits(t: Tensor) -> Tensor:
    return t.detach().contiguous().view(-1).view(torch.uint8)


def close(value: float, wanted: float, rtol: float = 1e-6) -> bool:
    return math.isclose(value, wanted, rel_tol=rtol)
