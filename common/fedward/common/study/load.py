"""From `study.toml` to a checked `Study`, and from there to the hash that names it everywhere.

>>> study = parse_study(EXAMPLE)
>>> len(study_hash(study))
64
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedward.common.errors import StudyError
from fedward.common.study.schema import Study
from fedward.common.validation import explain

EXAMPLE = """
[study]
name = "example"
title = "An example"
purpose = "Show the smallest study file"
contact = "nobody@example.org"
[task]
kind = "binary"
target = "died"
labels = ["no", "yes"]
[data]
modality = "tabular"
[[data.features]]
name = "age"
min = 0.0
max = 120.0
[model]
name = "logistic"
[training]
rounds = 3
local_epochs = 1
batch_size = 32
learning_rate = 0.1
[algorithm]
name = "fedavg"
[privacy]
mode = "none"
"""
"""The smallest study file: for doctests and for tests."""


def load_study(path: Path) -> Study:
    """Read and check a study file.

    Raises:
        StudyError: the file is missing, is not TOML, or breaks the schema; the message names the
            first offending key and what is allowed.
    """
    return parse_study(_read(path), name=path.name)


def load_table(path: Path) -> dict[str, Any]:
    """What stands in a study file, as TOML says it and nothing checked.

    Raises:
        StudyError: the file is missing or is not TOML.
    """
    return _table(_read(path), path.name)


def parse_study(text: str, *, name: str = "study.toml") -> Study:
    """Check the text of a study file; see `load_study`."""
    return study_from(_table(text, name), name=name)


def study_from(table: dict[str, Any], *, name: str) -> Study:
    """Check what stands in a study file; `name` says in a message what is wrong.

    Raises:
        StudyError: it breaks the schema.
    """
    try:
        return Study.model_validate(table)
    except ValidationError as error:
        problem, hint = explain(error, Study)
        raise StudyError(f"{name}: {problem}", hint=hint) from error


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(
            f"cannot read study file {path.name or path}",
            hint="check the path, or make one with `fedward study new`",
        ) from error


def _table(text: str, name: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise StudyError(f"{name} is not valid TOML", hint=str(error)) from error


def canonical_json(study: Study) -> str:
    """The study as one line of JSON: keys sorted, defaults filled in, `[simulation]` left out.

    Two files that mean the same federation have the same canonical JSON.
    """
    content = study.model_dump(mode="json", exclude={"simulation"}, serialize_as_any=True)
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def study_hash(study: Study) -> str:
    """SHA-256 of the canonical JSON, in hexadecimal: the name every party uses."""
    return hashlib.sha256(canonical_json(study).encode()).hexdigest()


def simulation_hash(study: Study) -> str:
    """SHA-256 over the study *and* its `[simulation]`: names a simulated experiment."""
    section = study.simulation.model_dump(mode="json") if study.simulation else None
    text = canonical_json(study) + json.dumps(section, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
