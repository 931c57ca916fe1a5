"""A trained model as a folder: weights, frozen preprocessing, study, provenance and card.

    weights.safetensors   the model's weights
    preprocessing.json    the frozen transform from cleaned rows to the model's inputs
    study.json            the canonical study file: schema, task, model
    provenance.json       which study, versions and seed; whether it is for release
    MODEL_CARD.md         for people
    manifest.json         SHA-256 of each of these

Nothing in it is code and nothing is unpickled. The same inputs give the same bytes. A bundle is
read only if every file is as it was written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedward.common.errors import ModelError, RoundError
from fedward.common.files import atomic_directory, read_bytes, write_atomic
from fedward.common.models.card import CardFacts, render_card
from fedward.common.models.provenance import Provenance
from fedward.common.models.state import build_module, set_weights
from fedward.common.study.load import canonical_json, study_hash
from fedward.common.study.schema import Study
from fedward.common.tensors import Weights, from_safetensors, safetensors_pieces

if TYPE_CHECKING:
    from torch import nn

FORMAT = "fedward-model"
VERSION = 1
"""Raised when an older fedward could no longer read what is written."""

WEIGHTS = "weights.safetensors"
PREPROCESSING = "preprocessing.json"
STUDY = "study.json"
PROVENANCE = "provenance.json"
CARD = "MODEL_CARD.md"
MANIFEST = "manifest.json"
FILES = (CARD, PREPROCESSING, PROVENANCE, STUDY, WEIGHTS)
"""Every file that the manifest covers, sorted."""

_NEW_COPY = "get a new copy of the model"


@dataclass(frozen=True)
class Bundle:
    """A model that was read and verified.

    Attributes:
        study: the study that made it.
        weights: the model's weights.
        transform_json: the frozen preprocessing, see `fedward.common.preprocess`.
        provenance: where it comes from.
    """

    study: Study
    weights: Weights
    transform_json: str
    provenance: Provenance

    def module(self, inputs: tuple[int, ...]) -> nn.Module:
        """The model, ready to score, in evaluation mode.

        Args:
            inputs: shape of one example, without the batch dimension.

        Raises:
            ModelError: the weights do not fit the study's model with such inputs.
        """
        module = build_module(self.study.model, inputs, self.study.task.outputs, seed=0)
        try:
            set_weights(module, self.weights)
        except RoundError as error:
            raise ModelError(
                f"the weights do not fit the study: {error.problem}", hint=_NEW_COPY
            ) from error
        return module.eval()


def write_bundle(
    directory: Path,
    *,
    study: Study,
    weights: Weights,
    transform_json: str,
    provenance: Provenance,
    facts: CardFacts | None = None,
) -> None:
    """Write a model as a folder, whole or not at all; an older bundle there is replaced.

    Args:
        directory: the folder to make; its parent must exist.
        study: what the model was trained for.
        weights: finite, in `state_dict` order.
        transform_json: what `Transform.to_json()` gave.
        provenance: must name this study.
        facts: what the card says about sites, results and privacy.

    Raises:
        ModelError: a weight is not finite, or the provenance names another study.
        OutputError: the folder holds other files, or the disk refuses.
    """
    _check_finite(weights, hint="do not release a model that diverged")
    if provenance.study_hash != study_hash(study):
        raise ModelError("the provenance names another study", hint="take that of this study")
    # In pieces: a server that releases a large model must not hold it twice.
    contents: dict[str, list[bytes | memoryview]] = {
        WEIGHTS: list(safetensors_pieces(weights)),
        PREPROCESSING: [transform_json.encode()],
        STUDY: [canonical_json(study).encode()],
        PROVENANCE: [provenance.to_json().encode()],
        CARD: [render_card(study, provenance, facts or CardFacts()).encode()],
    }
    digests = {name: _sha256(content) for name, content in contents.items()}
    with atomic_directory(directory) as building:
        for name, content in contents.items():
            write_atomic(building / name, content)
        write_atomic(building / MANIFEST, _manifest(digests))


def _sha256(pieces: Iterable[bytes | memoryview]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def load_bundle(directory: Path) -> Bundle:
    """Read a model that `write_bundle` wrote, after verifying every file.

    Raises:
        ModelError: the folder is missing, is not a model, is damaged, or was made by a newer
            fedward.
    """
    contents = _verified(directory)
    try:
        provenance = Provenance.from_json(contents[PROVENANCE].decode())
        transform_json = contents[PREPROCESSING].decode()
    except (ValueError, RecursionError) as error:
        raise _damaged(PROVENANCE) from error
    study = study_from_json(contents[STUDY].decode(errors="replace"))
    if provenance.study_hash != study_hash(study):
        raise _damaged(STUDY)
    weights = from_safetensors(contents[WEIGHTS])
    _check_finite(weights, hint=_NEW_COPY)
    return Bundle(study, weights, transform_json, provenance)


def study_from_json(text: str) -> Study:
    """The study whose `canonical_json` is `text`.

    Raises:
        ModelError: it is something else.
    """
    try:
        return Study.model_validate(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise ModelError(
            "the study in the model is not one that this fedward knows",
            hint="use the version that provenance.json names, or get a new copy of the model",
        ) from error


def _verified(directory: Path) -> dict[str, bytes]:
    if not directory.is_dir():
        raise ModelError(
            f"there is no model folder {directory.name or directory}",
            hint="give the folder `model` that a run wrote",
        )
    if not (directory / MANIFEST).is_file():
        raise ModelError(
            f"{directory.name or directory} is not a fedward model: it has no {MANIFEST}",
            hint="give the folder `model` that a run wrote",
        )
    digests = _read_manifest(directory / MANIFEST)
    contents: dict[str, bytes] = {}
    for name in FILES:
        content = read_bytes(directory / name, error=ModelError, hint=_NEW_COPY)
        if hashlib.sha256(content).hexdigest() != digests[name]:
            raise _damaged(name)
        contents[name] = content
    return contents


def _manifest(digests: dict[str, str]) -> bytes:
    content = {"format": FORMAT, "version": VERSION, "files": digests}
    return (json.dumps(content, sort_keys=True, indent=1) + "\n").encode()


def _read_manifest(path: Path) -> dict[str, str]:
    raw = read_bytes(path, error=ModelError, hint=_NEW_COPY)
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise _damaged(MANIFEST) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ModelError(
            f"{path.parent.name} is not a fedward model", hint="give the folder that a run wrote"
        )
    version, digests = content.get("version"), content.get("files")
    if type(version) is int and version > VERSION:
        raise ModelError(
            f"the model has format {version}, this fedward reads up to {VERSION}",
            hint="upgrade fedward",
        )
    # Comparing with what we would have written refuses every other change, down to one space.
    if not isinstance(digests, dict) or tuple(sorted(digests)) != FILES:
        raise _damaged(MANIFEST)
    if raw != _manifest(digests):
        raise _damaged(MANIFEST)
    return digests


def _check_finite(weights: Weights, *, hint: str) -> None:
    for name, array in weights.items():
        if not np.isfinite(array).all():
            raise ModelError(f"tensor {name} holds NaN or infinite values", hint=hint)


def _damaged(name: str) -> ModelError:
    return ModelError(f"the model is damaged: {name} is not as it was written", hint=_NEW_COPY)
