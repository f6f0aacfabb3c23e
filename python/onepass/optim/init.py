"""Constructors that show what they take: torch's own arguments, then the phase arguments."""

import inspect
from collections.abc import Callable
from typing import Any

from .phase import Phase


def inherited_init(cls: Any) -> Callable[..., None]:
    """A constructor that hands all on to the next class in line."""

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        super(cls, self).__init__(*args, **kwargs)

    return __init__


Parameters = dict[str, inspect.Parameter]


def own_arguments(init: Callable[..., None] | None) -> Parameters:
    """The keyword-only arguments of a constructor that hands all others on."""
    if init is None:
        return {}
    return {p.name: p for p in inspect.signature(init).parameters.values() if p.kind is p.KEYWORD_ONLY}


def with_signature(init: Callable[..., None], torch_class: Any, own: Parameters) -> Callable[..., None]:
    """The constructor, with the signature of torch's and, keyword-only, its own arguments and the phase's."""
    torchs = inspect.signature(torch_class.__init__)
    phase = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
        for name, default in Phase.arguments().items()
    ]
    every = [*torchs.parameters.values(), *own.values(), *phase]
    init.__signature__ = torchs.replace(parameters=every)  # type: ignore[attr-defined]
    return init
