"""What the demo shows: progress bars, two tables, and two files, the picture and all figures as JSON."""

import json
import os
import platform
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from .. import __version__, backends
from . import picture
from .data import Digits
from .quantize import BATCHES, Network
from .train import Learner, Settings


@contextmanager
def training_bar(steps: int) -> Iterator[Callable[[int, float], None]]:
    """A progress bar over the steps of all epochs; yields the function to call after each."""
    with _progress() as progress:
        task = progress.add_task("training", total=steps)
        yield lambda epoch, loss: progress.update(
            task, advance=1, description=f"epoch {epoch:2d}  loss {loss:.3f}"
        )


@contextmanager
def timing_bar() -> Iterator[Callable[[float], None]]:
    """A progress bar over the timing in 8 bits; yields the function to call with the part that is done."""
    with _progress() as progress:
        task = progress.add_task("timing in 8 bits", total=100)
        yield lambda done: progress.update(task, completed=100 * done)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description:20}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    )


def summarise(
    learners: list[Learner], quantized: list[Network], digits: Digits, settings: Settings, seconds: float
) -> dict[str, Any]:
    """Everything that is shown or saved, as JSON-ready values."""
    base = learners[0]
    return {
        "versions": {"onepass": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "machine": {
            "backend": backends.backend_of("cpu"),
            "instruction_set": backends.isa(),
        },
        "settings": asdict(settings),
        "data": {"train_images": len(digits.train_labels), "test_images": len(digits.test_labels)},
        "parameters": sum(p.numel() for p in base.model.parameters()),
        "parameter_tensors": sum(1 for _ in base.model.parameters()),
        "seconds": seconds,
        "runs": [_summary(learner, base) for learner in learners],
        "quantized": [asdict(network) for network in quantized],
    }


def _summary(learner: Learner, base: Learner) -> dict[str, Any]:
    median, base_median = statistics.median(learner.step_ms), statistics.median(base.step_ms)
    return {
        "name": learner.run.name,
        "accuracy_percent": learner.accuracies[-1],
        "largest_loss_difference": max(abs(a - b) for a, b in zip(learner.losses, base.losses, strict=True)),
        "step_ms_median": median,
        "times_faster": base_median / median,
        "pass_ms_median": statistics.median(learner.pass_ms),
        "skipped_steps": learner.skipped,
        "scales": learner.scales,
        "accuracies_percent": learner.accuracies,
        "losses": learner.losses,
        "step_ms": learner.step_ms,
        "pass_ms": learner.pass_ms,
    }


def show(summary: dict[str, Any]) -> None:
    console = Console()
    _show_runs(console, summary)
    console.print()
    _show_quantized(console, summary)


def _show_runs(console: Console, summary: dict[str, Any]) -> None:
    runs, settings, machine = summary["runs"], summary["settings"], summary["machine"]
    under = f", {settings['amp']} autocast" if settings["amp"] else ""
    fused = ", batch norm fused in onepass'" if settings["fused_bn"] else ""
    table = Table(
        title=f"AdamW on handwritten digits{under}{fused}", title_justify="left", title_style="bold"
    )
    table.add_column("optimizer")
    scaled = settings["amp"] == "fp16"
    columns: tuple[str, ...] = (
        "test accuracy\n%",
        "largest loss\ndifference",
        "optimizer step\nmedian, ms",
        "times\nfaster",
    )
    columns += ("forward, backward\nmedian, ms",)
    for column in (*columns, *(("skipped\nsteps", "last\nscale") if scaled else ())):
        table.add_column(column, justify="right")
    for i, run in enumerate(runs):
        table.add_row(
            run["name"],
            f"{run['accuracy_percent']:.2f}",
            f"{run['largest_loss_difference']:.2g}" if i else "",
            f"{run['step_ms_median']:.3f}",
            f"{run['times_faster']:.2f}" if i else "",
            f"{run['pass_ms_median']:.2f}",
            *((f"{len(run['skipped_steps'])}", f"{run['scales'][-1]:.0f}") if scaled else ()),
        )
    console.print(table)
    isa = f" ({machine['instruction_set']})" if machine["instruction_set"] else ""
    console.print(
        f"Compared with {runs[0]['name']}. {summary['parameters']:,} parameters in "
        f"{summary['parameter_tensors']} tensors, {settings['epochs']} epochs, seed {settings['seed']}, "
        f"{_threads(settings['threads'])}, backend {machine['backend']}{isa}; "
        f"{summary['seconds']:.0f} s for all runs together.",
        highlight=False,
    )


def _show_quantized(console: Console, summary: dict[str, Any]) -> None:
    ways, threads = summary["quantized"], summary["settings"]["threads"]
    table = Table(title="What onepass trained, in 8 bits", title_justify="left", title_style="bold")
    table.add_column()
    for way in ways:
        table.add_column(way["name"], justify="right")
    table.add_row("test accuracy, %", *(f"{way['accuracy_percent']:.2f}" for way in ways))
    others = (str(way["differing_predictions"]) for way in ways[1:])
    table.add_row("predictions that differ", "", *others, end_section=True)
    for part in ("network", "linear_layers"):
        costs = [way[part] for way in ways]
        table.add_row(f"{part.replace('_', ' ')}, bytes", *(f"{cost['bytes']:,}" for cost in costs))
        for batch in BATCHES:
            medians = (f"{cost[f'batch_{batch}_ms_median']:.3f}" for cost in costs)
            table.add_row(f"  batch of {batch}, median ms", *medians, end_section=batch == BATCHES[-1])
    console.print(table)
    console.print(
        "Linear layers alone are in 8 bits; convolutions, with their batch norms folded in, stay float32. "
        "int8: weights and activations; int8 weights: weights alone. "
        f"{_threads(threads)}, {'its CPU time' if threads == 1 else 'wall time'}.",
        highlight=False,
    )


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def save(summary: dict[str, Any], out: Path) -> list[Path]:
    """Writes demo.png and demo.json; each is complete or not there at all."""
    paths = [out / "demo.png", out / "demo.json"]
    image, text = (path.with_name(f".{path.name}.tmp") for path in paths)
    picture.draw(summary).savefig(image, format="png")
    text.write_text(json.dumps(summary, indent=1))
    os.replace(image, paths[0])
    os.replace(text, paths[1])
    return paths
