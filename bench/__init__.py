"""Benchmarks of onepass against its peers: `python -m onepass bench <area>`. How to read them: README.md."""

from .cli import AREAS, main

__all__ = ["AREAS", "main"]
