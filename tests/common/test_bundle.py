"""Model bundles: round trip, determinism, and refusal of everything that was not written here."""

from __future__ import annotations

import hashlib
import json
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fedward.common.errors import ModelError, OutputError
from fedward.common.models import bundle
from fedward.common.models.bundle import load_bundle, study_from_json, write_bundle
from fedward.common.models.card import CardFacts
from fedward.common.models.provenance import NOTICE, Provenance
from fedward.common.models.state import build_module, get_weights
from fedward.common.study.load import EXAMPLE, canonical_json, parse_study, study_hash
from fedward.common.study.schema import Study

TRANSFORM = '{"kind": "example"}'
FACTS = CardFacts(
    sites=("north", "south"),
    metrics={"federated": {"overall": {"auroc": {"value": 0.9, "low": 0.8, "high": 0.95}}}},
)

TABULAR = EXAMPLE + "[simulation]\nsites = ['a.toml']\n"
IMAGE = """
[study]
name = "chest"
title = "Chest"
purpose = "Find"
contact = "nobody@example.org"
[task]
kind = "multiclass"
target = "finding"
labels = ["none", "left", "right"]
[data]
modality = "image"
[preprocess.image]
height = 16
width = 16
[model]
name = "cnn"
channels = [8, 16]
pool = 2
[training]
rounds = 3
local_epochs = 1
batch_size = 32
learning_rate = 0.1
[algorithm]
name = "fedadam"
server_learning_rate = 1
[privacy]
mode = "dp"
epsilon = 3
delta = 1e-5
"""
STUDIES = {"tabular": (TABULAR, (1,)), "image": (IMAGE, (1, 16, 16))}


def write(folder: Path, text: str = TABULAR, inputs: tuple[int, ...] = (1,)) -> Study:
    study = parse_study(text)
    module = build_module(study.model, inputs, study.task.outputs, seed=3)
    write_bundle(
        folder,
        study=study,
        weights=get_weights(module),
        transform_json=TRANSFORM,
        provenance=Provenance.of(study, simulated=True),
        facts=FACTS,
    )
    return study


@pytest.mark.parametrize("name", STUDIES)
def test_round_trip(tmp_path: Path, name: str) -> None:
    text, inputs = STUDIES[name]
    study = write(tmp_path / "model", text, inputs)
    loaded = load_bundle(tmp_path / "model")
    assert loaded.study == study.model_copy(update={"simulation": None})
    assert study_hash(loaded.study) == study_hash(study)
    assert canonical_json(loaded.study) == canonical_json(study)
    assert loaded.transform_json == TRANSFORM
    assert loaded.provenance == Provenance.of(study, simulated=True)
    original = build_module(study.model, inputs, study.task.outputs, seed=3).eval()
    x = torch.rand(5, *inputs)
    module = loaded.module(inputs)
    assert not module.training
    assert torch.equal(module(x), original(x))


def test_same_inputs_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path / name)
    one, two = (
        {p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("one", "two")
    )
    assert one == two
    assert set(bundle.FILES) | {bundle.MANIFEST} <= set(one)


def test_manifest_holds_plain_sha256(tmp_path: Path) -> None:
    write(tmp_path / "model")
    manifest = json.loads((tmp_path / "model" / "manifest.json").read_text())
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((tmp_path / "model" / name).read_bytes()).hexdigest() == digest


def test_simulated_bundles_say_so(tmp_path: Path) -> None:
    write(tmp_path / "model")
    provenance = json.loads((tmp_path / "model" / "provenance.json").read_text())
    assert provenance["simulated"] is True
    assert provenance["notice"] == NOTICE
    assert provenance["seed"] == 0
    assert "not for release" in (tmp_path / "model" / "MODEL_CARD.md").read_text()


def test_a_real_run_has_no_seed_and_no_notice() -> None:
    provenance = Provenance.of(parse_study(EXAMPLE), simulated=False)
    assert (provenance.seed, provenance.notice) == (None, "")
    assert Provenance.from_json(provenance.to_json()) == provenance


@pytest.mark.parametrize(
    "change",
    [
        {"notice": ""},
        {"simulated": False},
        {"simulated": "yes"},
        {"seed": -1},
        {"study_hash": "0"},
        {"created": "today"},
    ],
)
def test_provenance_that_contradicts_itself_is_refused(change: dict[str, object]) -> None:
    content = json.loads(Provenance.of(parse_study(EXAMPLE), simulated=True).to_json())
    with pytest.raises(ValueError):  # noqa: PT011  (pydantic's error is one)
        Provenance.from_json(json.dumps({**content, **change}))
    with pytest.raises(ValueError, match="not an object"):
        Provenance.from_json("[]")


@pytest.mark.parametrize("name", [*bundle.FILES, bundle.MANIFEST])
def test_any_flipped_bit_is_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path / "model")
    path = tmp_path / "model" / name
    whole = path.read_bytes()
    step = max(1, len(whole) // 40)
    for position in range(0, len(whole), step):
        for mask in (1, 0x20, 0x2A):  # 0x2A turns a space into a newline, 0x20 changes the case
            damaged = bytearray(whole)
            damaged[position] ^= mask
            path.write_bytes(damaged)
            with pytest.raises(ModelError):
                load_bundle(tmp_path / "model")
    path.write_bytes(whole)
    load_bundle(tmp_path / "model")


@pytest.mark.parametrize("name", [*bundle.FILES, bundle.MANIFEST])
def test_missing_and_cut_files_are_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path / "model")
    path = tmp_path / "model" / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelError):
        load_bundle(tmp_path / "model")
    path.unlink()
    with pytest.raises(ModelError, match=name):
        load_bundle(tmp_path / "model")


def test_exchanged_files_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "model")
    write(tmp_path / "other", EXAMPLE.replace("rounds = 3", "rounds = 4"))
    shutil.copy(tmp_path / "other" / "study.json", tmp_path / "model" / "study.json")
    with pytest.raises(ModelError, match=r"study\.json is not as it was written"):
        load_bundle(tmp_path / "model")


def resign(folder: Path) -> None:
    """Make the manifest fit the files again, as someone who forges a bundle would."""
    digests = {n: hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in bundle.FILES}
    content = {"format": bundle.FORMAT, "version": bundle.VERSION, "files": digests}
    text = json.dumps(content, sort_keys=True, indent=1) + "\n"
    (folder / bundle.MANIFEST).write_text(text)


FORGED: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "another study": (
        "study.json",
        lambda t: t.replace(b'"rounds":3', b'"rounds":4'),
        "study.json",
    ),
    "no study": ("study.json", lambda t: b"[" * 100_000, "knows"),
    "unknown key": ("study.json", lambda t: t.replace(b'"rounds"', b'"loops"'), "knows"),
    "no provenance": ("provenance.json", lambda t: b"{}", "provenance.json"),
    "not text": ("preprocessing.json", lambda t: b"\xff", "damaged"),
    "no weights": ("weights.safetensors", lambda t: b"PK\x03\x04pickle", "weights are damaged"),
}


@pytest.mark.parametrize("case", FORGED)
def test_forged_contents_are_refused(tmp_path: Path, case: str) -> None:
    name, change, message = FORGED[case]
    write(tmp_path / "model")
    path = tmp_path / "model" / name
    path.write_bytes(change(path.read_bytes()))
    resign(tmp_path / "model")
    with pytest.raises(ModelError, match=message):
        load_bundle(tmp_path / "model")


def test_newer_and_foreign_formats_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "model")
    path = tmp_path / "model" / "manifest.json"
    content = json.loads(path.read_text())
    cases: list[tuple[dict[str, object], str]] = [
        ({"version": 2}, "format 2, this fedward reads up to 1: upgrade"),
        ({"version": "1"}, "damaged"),
        ({"version": True}, "damaged"),
        ({"format": "web-app"}, "not a fedward model"),
        ({"files": ["weights.safetensors"]}, "damaged"),
        ({"files": {**content["files"], "../../x": "0"}}, "damaged"),
    ]
    for change, message in cases:
        path.write_text(json.dumps({**content, **change}))
        with pytest.raises(ModelError, match=message):
            load_bundle(tmp_path / "model")
    for text in ("[]", "", "[" * 100_000):
        path.write_text(text)
        with pytest.raises(ModelError):
            load_bundle(tmp_path / "model")


def test_not_a_model_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "gone", tmp_path):
        with pytest.raises(ModelError, match="folder `model`"):
            load_bundle(path)


def test_weights_of_another_width_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "model")
    loaded = load_bundle(tmp_path / "model")
    with pytest.raises(ModelError, match="do not fit the study: tensor weight has shape"):
        loaded.module((2,))


def test_nothing_diverged_or_mismatched_is_written(tmp_path: Path) -> None:
    study = parse_study(EXAMPLE)
    weights = get_weights(build_module(study.model, (1,), 1, 0))
    right = Provenance.of(study, simulated=True)
    wrong = Provenance(simulated=True, study_hash="0" * 64)
    for bad, provenance, message in [
        ({**weights, "bias": np.array([np.nan], np.float32)}, right, "bias holds NaN"),
        (weights, wrong, "another study"),
    ]:
        with pytest.raises(ModelError, match=message):
            write_bundle(
                tmp_path / "model",
                study=study,
                weights=bad,
                transform_json=TRANSFORM,
                provenance=provenance,
            )
    assert not list(tmp_path.iterdir())


def test_a_foreign_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="did not make"):
        write(tmp_path)
    write(tmp_path / "model")
    write(tmp_path / "model", IMAGE, (1, 16, 16))
    assert load_bundle(tmp_path / "model").study.study.name == "chest"


@pytest.mark.parametrize("name", STUDIES)
def test_study_from_json_inverts_canonical_json(name: str) -> None:
    study = parse_study(STUDIES[name][0])
    again = study_from_json(canonical_json(study))
    assert canonical_json(again) == canonical_json(study)
    for text in ("", "[]", "{}", "null"):
        with pytest.raises(ModelError, match="not one that this fedward knows"):
            study_from_json(text)


def test_a_large_model_is_written_without_a_second_one_in_memory(tmp_path: Path) -> None:
    """The largest moment of a server's run was its release, of a model and two copies."""
    study = parse_study(TABULAR)
    weights = {"large": np.ones((1500, 1500), np.float32)}
    tracemalloc.start()
    try:
        write_bundle(
            tmp_path / "model",
            study=study,
            weights=weights,
            transform_json=TRANSFORM,
            provenance=Provenance.of(study, simulated=True),
        )
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < weights["large"].nbytes / 2  # a flag for each value: whether it is finite
