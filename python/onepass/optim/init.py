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


def with_signature(init: Callable[..., None], torch_class: Any) -> Callable[..., None]:
    """The constructor, with torch's signature, then keyword-only its own arguments and the phase's."""
    torchs = inspect.signature(torch_class.__init__)
    own = [p for p in inspect.signature(init).parameters.values() if p.kind is p.KEYWORD_ONLY]
    phase = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
        for name, default in Phase.arguments().items()
    ]
    init.__signature__ = torchs.replace(parameters=[*torchs.parameters.values(), *own, *phase])  # type: ignore
    return init
