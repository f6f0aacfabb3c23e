"""Optimizer steps in plain PyTorch; no host sync on any device. Formulas and references: csrc/rules/.

A rule is a function (g, p, t, states, h) -> (p, states) in float64; `_phase` does the rest for all of them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .grads import clip_coefficient

ZERO, WRITE = 1, 2  # grads_after
LR, WEIGHT_DECAY, MAXIMIZE, L1, EMA_DECAY, MAX_GRAD_NORM, OWN = range(7)  # columns of hyper

Rule = Callable[[Tensor, Tensor, Any, list[Tensor], Sequence[Tensor]], tuple[Tensor, list[Tensor]]]


# --- rules: h is a row of hyper ---------------------------------------------------------------------------
def _adam(g, p, t, states, h):
    lr, (beta1, beta2, eps) = h[LR], h[OWN:]
    m, v, *largest = states
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    largest = [torch.maximum(x, v) for x in largest]
    root = ((largest[0] if largest else v) / (1 - beta2**t)).sqrt()
    return p - lr / (1 - beta1**t) * m / (root + eps), [m, v, *largest]


def _adamw(g, p, t, states, h):
    moved, states = _adam(g, p, t, states, h)
    return moved - h[LR] * h[WEIGHT_DECAY] * p, states


def _sgd(g, p, t, states, h):
    lr, (momentum, dampening, nesterov) = h[LR], h[OWN:]
    if states:
        b = momentum * states[0] + (1 - dampening) * g
        b = b if t is None else torch.where(t == 1, g, b)
        g, states = torch.where(nesterov != 0, g + momentum * b, b), [b]
    return p - lr * g, states


def _rmsprop(g, p, t, states, h, centered, momentum):
    lr, (alpha, eps, keep) = h[LR], h[OWN:]
    v = alpha * states[0] + (1 - alpha) * g * g
    a = [alpha * states[1] + (1 - alpha) * g] if centered else []
    variance = (v - a[0].square()).clamp(min=0) if centered else v
    update = g / (variance.sqrt() + eps)
    b = [keep * states[-1] + update] if momentum else []
    return p - lr * (b[0] if momentum else update), [v, *a, *b]


def _adagrad(g, p, t, states, h):
    lr, (lr_decay, eps) = h[LR], h[OWN:]
    s = states[0] + g * g
    return p - lr / (1 + (t - 1) * lr_decay) * g / (s.sqrt() + eps), [s]


def _lion(g, p, t, states, h):
    lr, (beta1, beta2) = h[LR], h[OWN:]
    update = (beta1 * states[0] + (1 - beta1) * g).sign()
    return p - lr * (update + h[WEIGHT_DECAY] * p), [beta2 * states[0] + (1 - beta2) * g]


# --- what is done around every rule -----------------------------------------------------------------------
def _store(target: Tensor, value: Tensor, skip: Tensor) -> None:
    """target <- value, or nothing where the step is skipped."""
    target.copy_(torch.where(skip, target, value.reshape(target.shape)))


def _skip(device: torch.device, found_inf: Tensor | None, stats: Tensor | None) -> Tensor:
    skip = torch.zeros((), dtype=torch.bool, device=device)
    if found_inf is not None:
        skip = skip | (found_inf.to(device).reshape(()) != 0)
    if stats is not None:
        skip = skip | (stats[1].to(device) != 0)
    return skip


@torch.no_grad()
def _phase(
    rule: Rule,
    decoupled: bool,
    params: list[Tensor],
    grads: list[Tensor],
    states: list[list[Tensor]],
    emas: list[Tensor],
    steps: list[Tensor],
    hyper: Tensor,
    groups: list[int],
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    stats: Tensor | None = None,
    grads_after: int = 0,
) -> None:
    """states: the lists that the rule keeps."""
    for i, param in enumerate(params):
        h = hyper[groups[i]].unbind()
        skip = _skip(param.device, found_inf, stats)
        p, t = param.double(), steps[i].double().reshape(()) + 1 if steps else None
        clipped = grads[i].double()
        if grad_scale is not None:
            clipped = clipped / grad_scale.double().reshape(())
        if stats is not None:
            clipped = clipped * clip_coefficient(h[MAX_GRAD_NORM], stats[0])
        g = clipped * (1 - 2 * h[MAXIMIZE])
        if not decoupled:
            g = g + h[WEIGHT_DECAY] * p
        g = g + h[L1] * p.sign()
        moved, new = rule(g, p, t, [s[i].double() for s in states], h)

        if emas:
            # Of the parameter as it is kept in the arithmetic of the step, before a half dtype rounds it.
            _store(emas[i], h[EMA_DECAY] * emas[i].double() + (1 - h[EMA_DECAY]) * moved, skip)
        _store(param, moved, skip)
        for s, value in zip(states, new, strict=True):
            _store(s[i], value, skip)
        if t is not None:
            _store(steps[i], t, skip)
        if grads_after == WRITE:
            _store(grads[i], clipped, skip)
        elif grads_after == ZERO:
            grads[i].zero_()


def _given(*lists: list[Tensor]) -> list[list[Tensor]]:
    """The optional lists that are there."""
    return [tensors for tensors in lists if tensors]


def adam_(params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, *rest, **phase) -> None:
    states = [exp_avgs, exp_avg_sqs, *_given(max_exp_avg_sqs)]
    _phase(_adam, False, params, grads, states, *rest, **phase)


def adamw_(params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, *rest, **phase) -> None:
    states = [exp_avgs, exp_avg_sqs, *_given(max_exp_avg_sqs)]
    _phase(_adamw, True, params, grads, states, *rest, **phase)


def sgd_(params, grads, momentum_buffers, *rest, **phase) -> None:
    _phase(_sgd, False, params, grads, _given(momentum_buffers), *rest, **phase)


def rmsprop_(params, grads, square_avgs, grad_avgs, momentum_buffers, *rest, **phase) -> None:
    def rule(*args):
        return _rmsprop(*args, centered=bool(grad_avgs), momentum=bool(momentum_buffers))

    states = [square_avgs, *_given(grad_avgs, momentum_buffers)]
    _phase(rule, False, params, grads, states, *rest, **phase)


def adagrad_(params, grads, sums, *rest, **phase) -> None:
    _phase(_adagrad, False, params, grads, [sums], *rest, **phase)


def lion_(params, grads, exp_avgs, *rest, **phase) -> None:
    _phase(_lion, True, params, grads, [exp_avgs], *rest, **phase)
