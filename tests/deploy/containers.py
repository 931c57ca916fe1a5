"""Reads a Containerfile far enough to judge it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "container"


@dataclass(frozen=True)
class Instruction:
    """One instruction: its name, and the rest of its line with continuations joined."""

    name: str
    rest: str

    @property
    def words(self) -> list[str]:
        """The JSON form of CMD and ENTRYPOINT."""
        found = json.loads(self.rest)
        assert all(isinstance(word, str) for word in found)
        return list(found)


def read(path: Path) -> list[list[Instruction]]:
    """The stages of a Containerfile; what stands before the first FROM is a stage of its own."""
    text = "\n".join(
        line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")
    ).replace("\\\n", " ")
    stages: list[list[Instruction]] = [[]]
    for line in filter(None, map(str.strip, text.splitlines())):
        name, _, rest = line.partition(" ")
        if name == "FROM":
            stages.append([])
        stages[-1].append(Instruction(name, " ".join(rest.split())))
    return stages


def problems(path: Path) -> set[str]:
    """What must not be in an image of ours."""
    arguments, *stages = read(path)
    last = stages[-1]
    names = {each.name for each in last}
    users = [each.rest for each in last if each.name == "USER"]
    bases = [each.rest for each in arguments if each.name == "ARG" and "BASE=" in each.rest]
    judged = {
        "the base image has no version": not bases or ":" not in bases[0] or "latest" in bases[0],
        "a stage has a base of its own": any(
            stage[0].rest.split()[0] != "${BASE}" for stage in stages
        ),
        "tools of the build stay in the image": len(stages) < 2,
        "it runs as root": not users or users[-1].split(":")[0] in ("0", "root"),
        "nobody asks whether it is well": "HEALTHCHECK" not in names,
        "what it writes is lost": "VOLUME" not in names,
    }
    steps = {problem for stage in stages for each in stage for problem in _step(each)}
    return steps | {problem for problem, found in judged.items() if found}


def _step(each: Instruction) -> Iterator[str]:
    if each.name == "ADD" or "http" in each.rest:
        yield "something comes from the internet"
    if each.name == "RUN" and "--network=none" not in each.rest:
        yield "a step of the build may use the network"
    if "pip install" in each.rest and "--no-index" not in each.rest:
        yield "packages come from the internet"
    if each.name == "COPY" and "--from=" not in each.rest:
        yield "something of the source is copied"
