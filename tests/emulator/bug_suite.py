"""Runs bugs/*.cu: each bug and its correct twin, in every mode, many in a child process.

A child that a sanitizer ends is followed by another one that goes on behind the case that ended it."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .build import build
from .run import FOUND, environment

FOLDER = Path(__file__).resolve().parent / "bugs"
MARK = "@case "


@dataclass(frozen=True)
class Pass:
    """One way to run everything."""

    mode: str
    order: str = "forward"
    concurrent_blocks: bool = False


PASSES = (
    Pass("plain"),
    Pass("plain", "reverse"),
    Pass("plain", "shuffled"),
    Pass("asan"),
    Pass("tsan"),
    Pass("tsan", concurrent_blocks=True),
)


@dataclass
class Outcome:
    complaint: str  # what the emulator or a sanitizer said, empty if nothing
    values: list[float] | None  # None where it did not come to an end


def module(mode: str) -> Path:
    return build("emulated_bugs", [*sorted(FOLDER.glob("*.cu")), FOLDER / "bind.cpp"], mode)


# In the child: each case is announced on stderr, so that what a sanitizer says can be told apart.
CHILD = f"""
import json, sys
import emulator
path, order, concurrent = sys.argv[1:4]
bugs, switches = emulator.load(path), emulator.Emulator(path)
switches.set_order(order, seed=1)
switches.set_concurrent_blocks(concurrent == "True")
for name, fixed in json.loads(sys.argv[4]):
    case = json.dumps([name, fixed])
    print("{MARK}" + case, file=sys.stderr, flush=True)
    try:
        print("{MARK}" + json.dumps([case, "", bugs.run(name, fixed)]), flush=True)
    except RuntimeError as error:
        print("{MARK}" + json.dumps([case, str(error), None]), flush=True)
"""


def _child(path: Path, how: Pass, cases: list[tuple[str, bool]]) -> dict[tuple[str, bool], Outcome]:
    switches = [how.order, str(how.concurrent_blocks)]
    command = [sys.executable, "-c", CHILD, str(path), *switches, json.dumps(cases)]
    done = subprocess.run(command, env=environment(how.mode), capture_output=True, text=True, timeout=600)
    results: dict[tuple[str, bool], Outcome] = {}
    for line in done.stdout.splitlines():
        if line.startswith(MARK):
            case, complaint, values = json.loads(line[len(MARK) :])
            results[tuple(json.loads(case))] = Outcome(complaint, values)
    spoken = re.split(rf"^{MARK}(.*)$", done.stderr, flags=re.MULTILINE)[1:]
    for case, said in zip(spoken[::2], spoken[1::2], strict=True):
        key = tuple(json.loads(case))
        ended = Outcome(f"exit status {done.returncode}", None)
        outcome = results.setdefault(key, ended)
        if FOUND.search(said):
            outcome.complaint = said.strip()
    if not results:
        raise RuntimeError(f"the child ran nothing: {done.stderr[-2000:]}")
    return results


def run_all(how: Pass, names: list[str]) -> dict[tuple[str, bool], Outcome]:
    """The outcome of each bug (False) and each twin (True)."""
    path = module(how.mode)
    left = [(name, fixed) for name in names for fixed in (True, False)]
    outcomes: dict[tuple[str, bool], Outcome] = {}
    while left:
        outcomes |= _child(path, how, left)
        left = [case for case in left if case not in outcomes]
    return outcomes


def table() -> list[tuple[str, str]]:
    """Names, and what is wrong, read off the sources."""
    text = "".join(p.read_text() for p in sorted(FOLDER.glob("*.cu")))
    return re.findall(r'^BUG\((\w+),\s+"(.*)"\)', text, re.MULTILINE)


def differs(values: list[float] | None, expected: list[float] | None) -> bool:
    return repr(values) != repr(expected)


def found_by(name: str, outcomes: dict[Pass, dict[tuple[str, bool], Outcome]]) -> Iterator[Pass]:
    """The passes that tell the bug: by a complaint, or by other values than the twin's."""
    expected = outcomes[PASSES[0]][name, True].values
    for how, results in outcomes.items():
        bug = results[name, False]
        if bug.complaint or differs(bug.values, expected):
            yield how
