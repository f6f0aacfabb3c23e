"""Triton's interpreter in a process of its own: it has to be chosen before Triton is imported. Tests ask it.

A test file ends in `if __name__ == "__main__": serve(globals())`, and each function answer_NAME in it answers
ask(NAME, ...), in and out as JSON.
"""

import json
import os
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def serve(answers: dict[str, Any]) -> None:
    """Answers one line of JSON for each that comes in."""
    warnings.simplefilter("ignore")
    replies, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        name, arguments = json.loads(line)
        try:
            reply = {"result": answers["answer_" + name](**arguments)}
        except Exception:
            reply = {"failed": traceback.format_exc()}
        print(json.dumps(reply), file=replies, flush=True)


@contextmanager
def asking(file: str) -> Iterator[Callable]:
    """ask(NAME, arguments...): the result of answer_NAME of this file, in the interpreter's process."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, file], env=environment, **pipes) as process:

        def ask(name: str, **arguments: Any) -> Any:
            print(json.dumps([name, arguments]), file=process.stdin, flush=True)
            reply = json.loads(process.stdout.readline())
            assert "failed" not in reply, reply["failed"]
            return reply["result"]

        yield ask
        process.stdin.close()
