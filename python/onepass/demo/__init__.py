"""`python -m onepass demo`: trains one small CNN under several optimizers, quantizes it, and reports.

data.py: what is learned; model.py: what learns it; train.py: how; quantize.py: what becomes of it in 8 bits;
report.py, picture.py: what is shown.
"""

import argparse
import time
from pathlib import Path


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m onepass demo",
        description="Train a small residual CNN on handwritten digits with torch's AdamW and with onepass'; "
        "then quantize it.",
    )
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for demo.png and demo.json")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches (default 0)")
    parser.add_argument(
        "--epochs",
        type=int,
        help="(default 15; with --amp fp16 4: torch's float16 convolutions are slow on most CPUs)",
    )
    parser.add_argument("--threads", type=int, default=1, help="torch's threads (default 1, see train.py)")
    parser.add_argument(
        "--amp",
        choices=("fp16", "bf16"),
        help="forward passes under autocast; fp16 with a loss scale, each run under its own library's scaler",
    )
    parser.add_argument(
        "--fused-bn",
        action="store_true",
        help="onepass' run trains onepass.nn.fuse(model): batch norm, shortcut and ReLU in one op",
    )
    args = parser.parse_args(argv)
    if args.epochs is None:
        args.epochs = 4 if args.amp == "fp16" else 15
    for name in ("epochs", "threads"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} has to be at least 1, not {getattr(args, name)}")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    # Imported here, before any work: what is missing is said at once.
    from . import data, quantize, report, train

    args.out.mkdir(parents=True, exist_ok=True)
    digits = data.load()
    settings = train.Settings(
        seed=args.seed, epochs=args.epochs, threads=args.threads, amp=args.amp, fused_bn=args.fused_bn
    )
    begun = time.perf_counter()
    with report.training_bar(settings.epochs * data.steps_per_epoch(digits, settings.batch)) as tick:
        learners = train.train(digits, settings, train.RUNS, tick)
    seconds = time.perf_counter() - begun
    ours = next(learner for learner in learners if learner.run.ours)
    with report.timing_bar() as timed:
        quantized = quantize.compare(ours.model, digits, settings.threads, timed)
    summary = report.summarise(learners, quantized, digits, settings, seconds)
    report.show(summary)
    for path in report.save(summary, args.out):
        print(path)
    return 0
