"""Runs `fedward` again and again without importing torch each time: one fork per command.

Started by conftest.py as a process of its own. Reads one JSON request per line, answers with one
line. Every command is a real process, with its own exit code, files and signals; what it shares
with the others is only what was imported before any of them began.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
from typing import Any

PRELOADED = (
    "fedward.client.cli",
    "fedward.client.predict_cli",
    "fedward.client.private",
    "fedward.simulations.cli",
    "fedward.simulations.progress",
    "fedward.simulations.simulate",
)


def serve() -> None:
    for module in PRELOADED:
        importlib.import_module(module)
    _answer("ready")
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _become(json.loads(line))
        _, status, used = os.wait4(child, 0)
        code = os.waitstatus_to_exitcode(status)
        _answer(json.dumps({"code": code, "peak_kb": used.ru_maxrss}))


def _answer(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _become(request: dict[str, Any]) -> None:
    """Be the command: never returns."""
    os.chdir(request["cwd"])
    os.environ.update(request["env"])
    for target, path in ((1, request["out"]), (2, request["err"])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), target)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if request["file_limit"] is not None:
        limit = (request["file_limit"], request["file_limit"])
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    from fedward.common.cli import main

    code = main(request["arguments"])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    serve()
