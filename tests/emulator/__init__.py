"""Runs real CUDA sources on the CPU, every thread of every block: docs/emulator.md."""

from .build import ROOT, build
from .module import ORDERS, Emulator, load
from .run import Report, run_python

__all__ = ["ORDERS", "ROOT", "Emulator", "Report", "build", "load", "run_python"]
