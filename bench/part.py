"""A piece of what a contestant does in a round."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

Step = Callable[[], object]
Around = Callable[[], contextlib.AbstractContextManager[object]]


@dataclass(frozen=True)
class Part:
    """A piece of a contestant's step, or, without a name, all of it."""

    name: str | None
    step: Step
    bytes_per_element: int  # the least that it has to move
    around: tuple[Around, ...] = ()  # what its turns are run under
