"""Tensors by their devices, and an op that is called once for each of them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import backends


def by_device(tensors: Sequence[Tensor]) -> dict[torch.device, list[Tensor]]:
    """In the order in which they come."""
    found: dict[torch.device, list[Tensor]] = {}
    for t in tensors:
        found.setdefault(t.device, []).append(t)
    return found


def call_each(op: str, calls: Sequence[tuple[Any, ...]], **keywords: Sequence[Any]) -> list[Any]:
    """The op's results, a call a device. All checks come before the first call writes.

    Args:
        calls: positional arguments of each call.
        keywords: by name, an argument of each call.
    """
    named = [{name: values[i] for name, values in keywords.items()} for i in range(len(calls))]
    if len(calls) > 1:  # a call alone checks before it writes
        for arguments, more in zip(calls, named, strict=True):
            backends.check(op, *arguments, **more)
    run = getattr(torch.ops.onepass, op)
    return [run(*arguments, **more) for arguments, more in zip(calls, named, strict=True)]
