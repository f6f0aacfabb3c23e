"""The sweep over loss scaling: steps under a GradScaler, and sums of gradients over micro-batches."""

import argparse
from collections.abc import Iterator

from . import jobs, optim
from .optim import Block, Progress

# Sums are of gradients that are narrower than float32.
_DTYPES = {jobs.ACCUMULATE: "bfloat16"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    optim.add_shared_arguments(parser)
    parser.add_argument(
        "--phase",
        nargs="+",
        choices=jobs.AMP_PHASES,
        default=jobs.AMP_PHASES,
        help="scaled: step and update, clipping by max_grad_norm. scaled-explicit: unscale_, "
        "clip_grad_norm_, step and update. accumulate: a micro-batch's gradients to float32 sums. Against "
        "torch's own calls for each. Default: all",
    )
    parser.add_argument(
        "--dtype",
        choices=jobs.DTYPES,
        help="of parameters and gradients; default: float32, for accumulate bfloat16",
    )


def sweep(args: argparse.Namespace, progress: Progress) -> Iterator[Block]:
    for phase in args.phase:
        dtype = args.dtype or _DTYPES.get(phase, "float32")
        asked = argparse.Namespace(**{**vars(args), "phase": [phase], "dtype": dtype})
        yield from optim.sweep(asked, progress)
