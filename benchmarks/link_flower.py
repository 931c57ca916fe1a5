"""Flower's own SuperLink and SuperNodes beside the link: the same arrays, echoed, nothing else.

Three processes of flwr's and an app of its own for each message, as `flower-superlink` starts them;
without certificates, which costs it nothing and spares it some work. There is no registry, no audit
log, no checkpoint and no check of any update in these figures.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent
LIMIT_S = 600.0
CASES = (("100 kB", 2, 25_000, 4), ("50 MB", 2, 12_500_000, 3))
"""Name, nodes, values, rounds."""
PROJECT = """
[project]
name = "echo"
version = "1.0.0"
description = "Nothing is trained"
license = {{ text = "Apache-2.0" }}
dependencies = []
[tool.flwr.app]
publisher = "fedward"
[tool.flwr.app.components]
serverapp = "echo.apps:server"
clientapp = "echo.apps:client"
[tool.flwr.app.config]
out = "{out}"
nodes = {nodes}
values = {values}
rounds = {rounds}
"""
APPS = """
import json, time
import numpy as np
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

server = ServerApp()
client = ClientApp()

@client.train()
def train(message, context):
    return Message(message.content, reply_to=message)

@server.main()
def main(grid, context):
    config = context.run_config
    while len(list(grid.get_node_ids())) < config["nodes"]:
        time.sleep(0.5)
    weights, seconds = np.zeros(config["values"], np.float32), []
    for _ in range(config["rounds"]):
        begun = time.perf_counter()
        content = RecordDict({"arrays": ArrayRecord([weights])})
        asked = [Message(content, node, "train") for node in grid.get_node_ids()]
        replies = list(grid.send_and_receive(asked))
        weights = sum(r.content["arrays"].to_numpy_ndarrays()[0] for r in replies) / len(replies)
        seconds.append(time.perf_counter() - begun)
    open(config["out"], "w").write(json.dumps(seconds))
"""


def measure() -> list[dict[str, Any]]:
    """Print and give the seconds of a round of each case."""
    results: list[dict[str, Any]] = []
    for label, nodes, values, rounds in CASES:
        with tempfile.TemporaryDirectory() as place:
            seconds = _run(Path(place), nodes=nodes, values=values, rounds=rounds)
        median_s = statistics.median(seconds)
        results.append(
            {"carrier": "SuperLink", "model": label, "sites": nodes, "median_s": median_s}
        )
        print(f"{label:>8} {nodes:>6} {1e3 * median_s:>6.0f} ms  (Flower's SuperLink)", flush=True)
    return results


def _run(folder: Path, *, nodes: int, values: int, rounds: int) -> list[float]:
    out, port = folder / "seconds.json", _free()
    (folder / "app" / "echo").mkdir(parents=True)
    text = PROJECT.format(out=out, nodes=nodes, values=values, rounds=rounds)
    (folder / "app" / "pyproject.toml").write_text(text)
    (folder / "app" / "echo" / "__init__.py").write_text("")
    (folder / "app" / "echo" / "apps.py").write_text(APPS)
    (folder / "flwr").mkdir()
    (folder / "flwr" / "config.toml").write_text(
        '[superlink]\ndefault = "here"\n[superlink.here]\n'
        f'address = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    link = f"127.0.0.1:{port}"
    offline = "--disable-runtime-dependency-installation"
    started = [_start(folder, "flower-superlink", "--insecure", "--port", str(port), offline)]
    try:
        _wait(lambda: _answers(port))
        for _ in range(nodes):
            own = ("--insecure", "--superlink", link, "--port", str(_free()))
            started.append(_start(folder, "flower-supernode", *own))
        run = [str(BIN / "flwr"), "run", str(folder / "app"), "here"]
        subprocess.run(run, check=True, cwd=folder, env=_environment(folder), capture_output=True)
        _wait(lambda: out.exists() and out.read_text().endswith("]"))
        found: list[float] = json.loads(out.read_text())
        return found[1:]
    finally:
        for process in started:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in started:
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _start(folder: Path, *command: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [str(BIN / command[0]), *command[1:]],
        cwd=folder,
        env=_environment(folder),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _environment(folder: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "FLWR_HOME": str(folder / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "OMP_NUM_THREADS": "1",
    }


def _wait(ready: Any) -> None:
    until = time.monotonic() + LIMIT_S
    while not ready():
        if time.monotonic() > until:
            raise TimeoutError("Flower's processes did not come to an end")
        time.sleep(0.2)


def _answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
        return True
    return False


def _free() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
