"""A server of its own process that runs rounds over replies which are files; says its peak memory.

python memory_child.py STUDY.json FOLDER SITES
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from fedward.common import records
from fedward.common.study import Study
from fedward.common.wire.body import Body, Content, write_body
from fedward.server.checkpoints import CheckpointFolder
from fedward.server.flower_internals import Run, identify, quieten
from fedward.server.rounds import Rounds

SHAPES = {"embed": (2500, 4000), "small": (7,), "body": (1250, 2000)}  # 12.5 million values
FIRST = 2


class OnDisk(Array):
    """An array in the body of a reply."""

    def __init__(self, body: Body, name: str) -> None:
        spec = body.specs[name]
        self.__dict__.update(_body=body, _name=name)
        self.dtype, self.shape, self.stype = str(spec.dtype), spec.shape, "lazy"

    def block(self, start: int, stop: int) -> Any:
        """A part of it."""
        return self.__dict__["_body"].block(self.__dict__["_name"], start, stop)

    def numpy(self) -> Any:
        """All of it: nobody may ask."""
        raise AssertionError("a whole update was read")


class FileGrid(Grid):
    """Replies are bodies on disk, as over the link."""

    def __init__(self, folder: Path, sites: int) -> None:
        self._folder, self._sites = folder, sites
        self._run = Run.create_empty(1)
        self._bodies: list[Body] = []

    def set_run(self, run: Run) -> None:
        """Not asked."""

    @property
    def run(self) -> Run:
        """Not asked."""
        return self._run

    create_message: Callable[..., Message]
    push_messages: Callable[..., Iterable[str]]
    pull_messages: Callable[..., Iterable[Message]]

    def get_node_ids(self) -> Iterable[int]:
        """All nodes."""
        return range(FIRST, FIRST + self._sites)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Answer as sites would; the values differ from site to site."""
        while self._bodies:  # of the round before
            self._bodies.pop().close()
        for message in messages:
            yield Message(self._answer(message), reply_to=message)

    def _answer(self, message: Message) -> RecordDict:
        node, kind = message.metadata.dst_node_id, message.metadata.message_type
        if kind == records.INTRODUCE:
            return RecordDict({records.CONFIG: ConfigRecord({records.SITE: f"site-{node:02d}"})})
        record = ArrayRecord()
        if kind == records.TRAIN:
            for name, array in message.content.array_records[records.ARRAYS].items():
                assert array.numpy().shape == SHAPES[name]  # as the link does to write the task
            body = Body.open(self._folder / f"reply-{node % 3}")
            self._bodies.append(body)
            for name in body.specs:
                record[name] = OnDisk(body, name)
        metrics = MetricRecord({records.WEIGHT: 1.0, records.RELEASED: 0.0})
        return RecordDict({records.ARRAYS: record, records.METRICS: metrics})


FileGrid.__abstractmethods__ = frozenset()


class Nobody:
    """Watches nothing."""

    def __getattr__(self, _name: str) -> Callable[..., dict[str, Any]]:
        return lambda *_: {}


def memory_mb(line: str) -> float:
    """Of this process; not getrusage, which remembers the parent's peak too."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(text.split(line)[1].split()[0]) / 1024


def main() -> None:
    """Run, and print what was measured."""
    study = Study.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
    folder, sites = Path(sys.argv[2]), int(sys.argv[3])
    rng = np.random.default_rng(0)
    for index in range(3):
        arrays = {n: rng.normal(size=s).astype(np.float32) for n, s in SHAPES.items()}
        write_body(folder / f"reply-{index}", Content(arrays=arrays))
        del arrays
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # forget the peak until here
    start = memory_mb("VmHWM:")
    quieten()
    identify(1)
    outcome = Rounds(
        study,
        FileGrid(folder, sites),
        checkpoints=CheckpointFolder(folder / "checkpoints"),
        observer=Nobody(),
        make_weights=lambda _study, _transform: {
            name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()
        },
    ).run()
    sys.stdout.write(
        json.dumps(
            {
                "start_mb": start,
                "peak_mb": memory_mb("VmHWM:"),
                "torch": "torch" in sys.modules,
                "participants": [len(record.participants) for record in outcome.history],
                "weight": float(outcome.weights["small"][0]),
            }
        )
    )


if __name__ == "__main__":
    main()
