"""The command line: `python -m onepass info | selftest | demo | bench`."""

import argparse
import importlib
import sys

# Each module has main(argv) -> exit code, with its own --help. It is imported only when it is asked for.
COMMANDS = {
    "info": ("onepass.info", "versions, what is built, and which backend serves what"),
    "selftest": ("onepass.selftest", "every op on every backend of this machine against the reference"),
    "demo": ("onepass.demo", "train a small CNN with torch's AdamW and with onepass', and quantize it"),
    "bench": ("onepass.bench", "time the ops against their peers"),
}

# Packages that the library itself does not need, by the extra that brings them.
EXTRAS = {"rich": "cli", "tqdm": "cli", "matplotlib": "cli", "sklearn": "cli"}


def main(argv: list[str] | None = None) -> int:
    """Runs one command. Returns the exit code: 0 good, 1 something is wrong, 2 it could not be run."""
    parser = argparse.ArgumentParser(
        prog="python -m onepass", description="Training ops for PyTorch in one pass."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="|".join(COMMANDS))
    for name, (_, text) in COMMANDS.items():
        commands.add_parser(name, help=text, add_help=False)
    known, rest = parser.parse_known_args(argv)
    module, _ = COMMANDS[known.command]
    try:
        return importlib.import_module(module).main(rest)
    except ModuleNotFoundError as missing:
        package = (missing.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        print(
            f"onepass {known.command} needs the package {package!r}, which is not installed: "
            f'pip install "onepass[{EXTRAS[package]}]"',
            file=sys.stderr,
        )
        return 2


if __name__ == "__main__":
    sys.exit(main())
