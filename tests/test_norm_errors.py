"""Wrong arguments of batch normalization: C++, reference and fakes name the same argument in the same words,
and nothing has been written: running statistics are what they were."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from onepass import use_backend
from onepass.ops import BY_NAME, OPS
from onepass.testing.cases import CASES
from optim_helpers import needs_cpp
from test_errors import faked, message_of
from torch._subclasses.fake_tensor import FakeTensorMode

NORMS = [op.name for op in OPS if op.bench == "norm"]
FORWARD = ("batch_norm_fwd", "batch_norm_eval", "batch_norm_apply")
RUNNING = ("batch_norm_fwd", "batch_norm_apply")
BACKWARD = ("batch_norm_bwd", "batch_norm_bwd_stats", "batch_norm_bwd_apply")
Change = Callable[[dict[str, Any]], None]


def _arguments(name: str) -> dict[str, Any]:
    wanted = "residual_relu" if name != "batch_norm_stats" else "plain"
    case = next(case for case in CASES[name] if case.name in (wanted, "rows"))
    return case(0, torch.float32)


def _replace(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    def run(a: dict[str, Any]) -> None:
        a[name] = change(a[name])

    return run


def _freed(t: torch.Tensor) -> torch.Tensor:
    t = t.clone()
    t.untyped_storage().resize_(0)
    return t


def _faults() -> list:
    rows = []

    def row(names: tuple[str, ...], words: str, change: Change, on_fakes: bool = True) -> None:
        rows.extend(
            pytest.param(name, f"{name}: {words}", change, on_fakes, id=f"{name}-{i}-{len(rows)}")
            for i, name in enumerate(names)
        )

    every = tuple(NORMS)
    row(
        every,
        "input has shape [4], expected at least 2 dimensions",
        _replace("input", lambda t: torch.zeros(4)),
    )
    row(every, "input has a dtype that is not served", _replace("input", lambda t: t.long()))
    row(every, "input has no storage: it was freed", _replace("input", _freed), on_fakes=False)
    acts = (*FORWARD, *BACKWARD)
    row(acts, "act is 'gelu', expected None, 'relu', 'leaky_relu' or 'silu'", lambda a: a.update(act="gelu"))
    row(
        FORWARD,
        "residual has shape [4, 6, 5, 1], expected [4, 6, 5, 7] as input",
        _replace("residual", lambda t: t[..., :1]),
    )
    row(
        FORWARD,
        "residual has dtype torch.float64, expected torch.float32 as input",
        _replace("residual", lambda t: t.double()),
    )
    row(
        FORWARD,
        "residual has another memory format than input",
        _replace("residual", lambda t: t.contiguous(memory_format=torch.channels_last)),
    )
    row(FORWARD, "residual is on another device than input", _replace("residual", lambda t: t.to("meta")))
    row(FORWARD, "residual has no storage: it was freed", _replace("residual", _freed), on_fakes=False)
    for vector in ("weight", "bias"):
        row(
            acts,
            f"{vector} has shape [5], expected [6]: input has shape [4, 6, 5, 7]",
            _replace(vector, lambda t: t[:5]),
        )
        row(acts, f"{vector} has shape [6, 1], expected [6]", _replace(vector, lambda t: t[:, None]))
        row(
            acts,
            f"{vector} has dtype torch.float16, expected torch.float32 for torch.float32 input",
            _replace(vector, lambda t: t.half()),
        )
        row(acts, f"{vector} is on another device than input", _replace(vector, lambda t: t.to("meta")))
        row(acts, f"{vector} has no storage: it was freed", _replace(vector, _freed), on_fakes=False)
    for vector in ("running_mean", "running_var"):
        row(FORWARD, f"{vector} has shape [7], expected [6]", _replace(vector, lambda t: torch.zeros(7)))
        row(
            FORWARD,
            f"{vector} has dtype torch.float64, expected torch.float32",
            _replace(vector, lambda t: t.double()),
        )
        row(
            RUNNING,
            f"{vector} has several elements at one address",
            _replace(vector, lambda t: t[:1].expand(6)),
        )
    counter = "num_batches_tracked has to be one torch.int64 element on the device of input"
    row(RUNNING, counter, _replace("num_batches_tracked", lambda t: t.int()))
    row(RUNNING, counter, _replace("num_batches_tracked", lambda t: torch.zeros(2, dtype=torch.int64)))
    row(
        RUNNING,
        "momentum is None, which needs num_batches_tracked",
        lambda a: a.update(momentum=None, num_batches_tracked=None),
    )
    row(RUNNING, "eps is 0, expected > 0", lambda a: a.update(eps=0.0))
    row(FORWARD, "eps is -1, expected", lambda a: a.update(eps=-1.0))
    row(FORWARD, "eps is nan, expected", lambda a: a.update(eps=float("nan")))
    one = "expected more than 1 value per channel when training, got input of shape [1, 6, 1, 1]"
    row(("batch_norm_fwd",), one, lambda a: a.update(input=torch.zeros(1, 6, 1, 1), residual=None))
    row(("batch_norm_apply",), "moments has 18 elements, expected 19", _replace("moments", lambda t: t[:18]))
    row(
        ("batch_norm_apply",),
        "moments has 57 elements, expected 57, contiguous",
        _replace("moments", lambda t: t.half()),
    )
    row(
        BACKWARD,
        "grad_output has shape [4, 6, 5, 1], expected [4, 6, 5, 7] as input",
        _replace("grad_output", lambda t: t[..., :1]),
    )
    row(
        BACKWARD,
        "grad_output has dtype torch.float16, expected torch.float32 as input",
        _replace("grad_output", lambda t: t.half()),
    )
    row(BACKWARD, "stats has 12 elements, expected 18", _replace("stats", lambda t: t[:2]))
    row(
        BACKWARD,
        "stats has 18 elements, expected 18, contiguous",
        _replace("stats", lambda t: t.t().contiguous().t()),
    )
    row(BACKWARD, "mask has 104 elements, expected 105", _replace("mask", lambda t: t[:104]))
    row(BACKWARD, "mask has no storage: it was freed", _replace("mask", _freed), on_fakes=False)
    row(("batch_norm_bwd_apply",), "sums has 12 elements, expected 13", _replace("sums", lambda t: t[:12]))
    return rows


@needs_cpp
@pytest.mark.parametrize("name, words, change, on_fakes", _faults())
def test_all_say_the_same_and_nothing_was_written(name: str, words: str, change: Change, on_fakes: bool):
    op = getattr(torch.ops.onepass, name)
    said = set()
    for backend in ("cpp", "reference"):
        arguments = _arguments(name)
        change(arguments)
        kept = {
            key: t for key, t in arguments.items() if isinstance(t, torch.Tensor) and t.device.type == "cpu"
        }
        kept = {key: t for key, t in kept.items() if t.numel() == 0 or t.untyped_storage().nbytes() > 0}
        before = {key: t.clone() for key, t in kept.items()}
        with use_backend(backend):
            said.add(message_of(lambda a=arguments: op(**a)))
        assert all(torch.equal(t, before[key]) for key, t in kept.items())
    if on_fakes:
        arguments = _arguments(name)
        change(arguments)
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            said.add(message_of(lambda: op(**faked(arguments, mode))))
    (message,) = said
    assert message.startswith(words), message


@needs_cpp
@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("backend", ("cpp", "reference"))
def test_right_arguments_are_not_refused(name: str, backend: str):
    arguments = _arguments(name)
    with use_backend(backend):
        results = getattr(torch.ops.onepass, name)(**arguments)
    assert all(t.isfinite().all() for t in (results if isinstance(results, tuple) else (results,)))
    assert BY_NAME[name].bench == "norm"
