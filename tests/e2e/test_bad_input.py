"""Bad input: one line that says what to do, the documented exit code, nothing half-written."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Spoil = Callable[[Any], object]

FINISHED = {"results.json", "report.html", "predictions.parquet", "model"}
DP = 'mode = "dp"\ndelta = 1e-3\nepsilon = '
NO_DP = 'mode = "none"'
MLP = ('name = "logistic"', 'name = "mlp"\nhidden = [8]')
SITES = 'sites = ["north.toml", "south.toml"]'


@dataclass(frozen=True)
class Case:
    """How good files are spoilt, what `fedward simulate` then exits with, and what it says."""

    name: str
    spoil: Spoil
    code: int
    words: tuple[str, ...]


def study(*changes: tuple[str, str]) -> Spoil:
    return lambda files: files.edit("study.toml", *changes)


def site(*changes: tuple[str, str]) -> Spoil:
    return lambda files: files.edit("south.toml", *changes)


def table(*changes: tuple[str, str]) -> Spoil:
    return lambda files: files.edit("south.csv", *changes)


def rows(change: Callable[[list[str]], str | None]) -> Spoil:
    return lambda files: files.rows("south", change)


def only(patients: set[str]) -> Spoil:
    return rows(lambda row: ",".join(row) if row[0] in patients else None)


def age(cell: str) -> Spoil:
    """Write `cell` where south's patient 7 had an age."""
    return rows(lambda r: ",".join([r[0], cell if r[0] == "south-7" else r[1], r[2], r[3]]))


def straddle(files: Any) -> None:
    """Patient south-5 is in both training and testing data."""
    site(("[patients]", '[split]\ncolumn = "part"\n[patients]'))(files)
    table(("sex,died", "sex,died,part"))(files)
    rows(
        lambda row: ",".join(
            [
                "south-5" if row[0] == "south-6" else row[0],
                *row[1:],
                "train" if int(row[0].partition("-")[2]) % 2 else "test",
            ]
        )
    )(files)


def both(*spoils: Spoil) -> Spoil:
    return lambda files: [spoil(files) for spoil in spoils]


CASES = [
    # The study file.
    Case(
        "unknown key",
        study(("learning_rate", "lerning_rate")),
        3,
        ("study.toml", "unknown key training.lerning_rate", "did you mean learning_rate?"),
    ),
    Case(
        "unknown section",
        study(("[algorithm]", "[algoritm]")),
        3,
        ("unknown key algoritm", "did you mean algorithm?"),
    ),
    Case(
        "wrong type",
        study(("rounds = 3", 'rounds = "3"')),
        3,
        ("training.rounds is a string", "must be an integer"),
    ),
    Case(
        "not TOML", study(("rounds = 3", "rounds = ")), 3, ("study.toml is not valid TOML", "line")
    ),
    Case(
        "missing study",
        lambda files: (files.folder / "study.toml").unlink(),
        3,
        ("cannot read study file study.toml", "fedward study new"),
    ),
    Case(
        "empty study", lambda files: (files.folder / "study.toml").write_text(""), 3, ("missing",)
    ),
    Case(
        "no [simulation]",
        study(("[simulation]\n" + SITES + "\ncompare = []\n", "")),
        3,
        ("no [simulation] section", "fedward study new"),
    ),
    Case(
        "metric of another task",
        study(("bootstrap = 50", 'metric = "rmse"')),
        3,
        ("[evaluation] metric 'rmse'", "binary"),
    ),
    # The site files.
    Case(
        "missing site file",
        study(('"south.toml"', '"west.toml"')),
        4,
        ("cannot read site file west.toml", "check the path"),
    ),
    Case(
        "unknown key of a site",
        site(("column", "colum")),
        4,
        ("south.toml", "unknown key patients.colum", "did you mean column?"),
    ),
    Case(
        "two sites of one name",
        site(('name = "south"', 'name = "north"')),
        4,
        ("two site files are called north",),
    ),
    Case(
        "label that the study does not have",
        site(("[patients]", '[target]\nvalues = {yes = "dead"}\n[patients]')),
        4,
        ("[target] values", "labels are no, yes"),
    ),
    # The data.
    Case(
        "missing data file",
        lambda files: (files.folder / "south.csv").unlink(),
        5,
        ("site south", "south.csv does not exist", "[source]"),
    ),
    Case(
        "empty data file",
        lambda files: (files.folder / "south.csv").write_text(""),
        5,
        ("site south", "south.csv cannot be read", "not empty"),
    ),
    Case(
        "wrong column",
        table(("patient_id,age,", "patient_id,ages,")),
        5,
        ("site south", "no column age", "did you mean ages?"),
    ),
    Case(
        "all-missing feature",
        both(
            study(("max = 110.0", 'max = 110.0\nmissing = "impute"')),
            rows(lambda r: ",".join([r[0], "", r[2], r[3]])),
        ),
        5,
        ("site south", "feature age has no usable value", "[features.age]"),
    ),
    Case("missing value", age(""), 5, ("site south", "age is missing in some rows", "'impute'")),
    Case("text for a number", age("old"), 5, ("site south", "age", "not finite numbers")),
    Case("out of range", age("470"), 5, ("site south", "age", "bounds 0 … 110 years", "'clip'")),
    Case(
        "unknown category",
        table((",M,", ",X,")),
        5,
        ("site south", "feature sex", "categories are F, M", "[features.sex] values"),
    ),
    Case("unknown label", table((",yes", ",maybe")), 5, ("site south", "labels are no, yes")),
    Case(
        "one class only",
        table((",yes", ",no")),
        5,
        ("site south", "one class of died only", "single_class = 'allow'"),
    ),
    Case("no patient", only(set()), 5, ("site south", "south.csv has no rows")),
    Case("one patient", only({"south-1"}), 5, ("site south", "fewer than two patients")),
    Case(
        "one patient with many rows",
        rows(lambda r: ",".join(["south-1", *r[1:]])),
        5,
        ("site south", "fewer than two patients", "[patients]"),
    ),
    Case("a patient in train and test", straddle, 5, ("site south", "both training and testing")),
    Case(
        "more sites than patients",
        study((SITES, 'source = "north.toml"\npartition = {kind = "iid", sites = 40}')),
        5,
        ("too few patients", "lower sites or min_patients"),
    ),
    # The privacy promise.
    Case(
        "epsilon that the noise cannot reach",
        study((NO_DP, DP + "1.0\nnoise_multiplier = 0.5")),
        6,
        (
            "site north",
            "would cost epsilon = ",
            "above the study's 1",
            "noise_multiplier of at least",
        ),
    ),
    Case(
        "delta above one over the patients",
        study((NO_DP, DP.replace("1e-3", "0.1") + "1.0")),
        6,
        ("site north", "delta is too large"),
    ),
    Case(
        "delta out of reach",
        study((NO_DP, DP.replace("1e-3", "1e-300") + "1.0")),
        6,
        ("site north", "delta", "1e-10"),
    ),
    Case(
        "batch larger than a site",
        study((NO_DP, DP + "1.0"), ("batch_size = 8", "batch_size = 800")),
        6,
        ("site north", "batch_size is larger", "smaller batch_size"),
    ),
    # Training.
    Case(
        "NaN loss",
        study(MLP, ("learning_rate = 0.5", "learning_rate = 1e30")),
        7,
        ("round 1", "north", "south", "diverged", "lower [training] learning_rate"),
    ),
    Case(
        "NaN gradient under differential privacy",
        study(MLP, ("learning_rate = 0.5", "learning_rate = 1e30"), (NO_DP, DP + "5.0")),
        7,
        ("diverged", "not finite", "lower [training] learning_rate"),
    ),
    Case(
        "more sites needed than there are",
        study(("[evaluation]", "[aggregation]\nmin_sites = 3\n[evaluation]")),
        8,
        ("2 of 3 needed sites",),
    ),
    Case(
        "updates larger than allowed",
        study(("[evaluation]", "[aggregation]\nmax_update_norm = 1e-9\n[evaluation]")),
        8,
        ("round 1", "north", "larger than [aggregation] max_update_norm"),
    ),
]


def assert_refused(done: Any, code: int, words: tuple[str, ...]) -> None:
    """One line on standard error, with these words; nothing on standard output."""
    assert done.code == code, done.err
    assert done.out == ""
    assert len(done.errors) == 1, done.err
    line = done.errors[0]
    assert line.startswith("error: ")
    for word in words:
        assert word in line
    assert "Traceback" not in line
    assert "defect" not in line
    assert not re.search(r"/\S+/\S+/", line), "a path of this machine is in the message"


def assert_nothing_half_written(out: Path) -> None:
    if not out.is_dir():
        return
    assert FINISHED & {path.name for path in out.iterdir()} == set()
    assert [p for p in out.rglob("*") if p.name.startswith(".")] == []
    assert [
        p
        for p in out.rglob("*")
        if p.is_file()
        and p.suffix not in (".safetensors", ".sha256")
        and p.name not in ("lock", "engine.json")
    ] == []


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input_is_refused_in_one_line(case: Case, files: Any, warm: Any) -> None:
    case.spoil(files)
    done = warm("simulate", "study.toml", cwd=files.folder)
    assert_refused(done, case.code, case.words)
    assert_nothing_half_written(files.out)
    # No cell of a patient is in the message.
    for cell in ("470", "maybe", "south-5", "south-7", "old,"):
        assert cell not in done.err


def test_every_exit_code_is_documented(repository: Path) -> None:
    text = (repository / "docs" / "exit-codes.md").read_text()
    for code in {case.code for case in CASES} | {10, 130}:
        assert f"| {code} |" in text


def test_the_unspoilt_files_pass(files: Any, warm: Any) -> None:
    done = warm("simulate", "study.toml", cwd=files.folder)
    assert (done.code, done.errors) == (0, [])
    assert {path.name for path in files.out.iterdir()} == FINISHED | {"checkpoints"}
    assert "A small study" in done.out
    assert "Warning" not in done.out


def test_progress_is_a_few_plain_lines(files: Any, warm: Any) -> None:
    """Also with more sites than rounds."""
    files.edit(
        "study.toml",
        (SITES, 'source = "north.toml"\npartition = {kind = "iid", sites = 5, min_patients = 8}'),
        ("compare = []", 'compare = ["local"]'),
        ("rounds = 3", "rounds = 2"),
        ('modality = "tabular"', 'modality = "tabular"\nsingle_class = "allow"'),
    )
    done = warm("simulate", "study.toml", cwd=files.folder)
    assert (done.code, done.errors) == (0, [])
    shown = [line.partition(",")[0] for line in done.err.splitlines()]
    assert shown == [
        "Federated: round 1 of 2",
        "Federated: round 2 of 2",
        "Local only: round 1 of 2",
        "Local only: round 2 of 2",
    ]


def test_a_real_process_says_the_same(files: Any, fedward: Any) -> None:
    files.edit("south.csv", (",M,", ",X,"))
    done = fedward("simulate", "study.toml", cwd=files.folder)
    assert_refused(done, 5, ("site south", "feature sex"))


def test_a_damaged_picture_is_refused(files: Any, warm: Any) -> None:
    draw = np.random.default_rng(0)
    lines = ["file,finding"]
    for number in range(40):  # enough for both findings among those kept for testing
        pixels = draw.integers(0, 255, (16, 16), dtype=np.uint8)
        Image.fromarray(pixels).save(files.folder / f"{number}.png")
        lines.append(f"{number}.png,{'no' if number % 2 else 'yes'}")
    (files.folder / "labels.csv").write_text("\n".join(lines) + "\n")
    damaged = files.folder / "5.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    (files.folder / "south.toml").write_text(
        '[site]\nname = "south"\n[source]\nkind = "images"\npath = "."\nlabels = "labels.csv"\n'
        "[patients]\none_row_per_patient = true\n"
    )
    text = (files.folder / "study.toml").read_text()
    features = text[text.index("[[data.features]]") : text.index("[preprocess]")]
    files.edit(
        "study.toml",
        (features, ""),
        ('"tabular"', '"image"'),
        ('target = "died"', 'target = "finding"'),
        ('standardise = "bounds"', "image = {height = 16, width = 16}"),
        ('name = "logistic"', 'name = "cnn"'),
        (SITES, 'sites = ["south.toml"]'),
    )
    done = warm("simulate", "study.toml", cwd=files.folder)
    assert_refused(done, 5, ("site south", "picture of row 6", "replace it", "filter"))
    assert_nothing_half_written(files.out)


# A run that goes wrong without ending: it is reported, not hidden.


def test_scores_of_a_diverged_model_are_called_so(files: Any, warm: Any) -> None:
    files.edit("study.toml", ("learning_rate = 0.5", "learning_rate = 1e38"))
    done = warm("simulate", "study.toml", cwd=files.folder)
    assert (done.code, done.errors) == (0, [])
    assert "Warning: federated: nearly every score is exactly 0 or 1" in done.out
    assert "training diverged" in (files.out / "report.html").read_text()


def test_a_baseline_that_diverges_costs_only_itself(files: Any, warm: Any) -> None:
    files.edit(
        "study.toml",
        MLP,
        ("compare = []", 'compare = ["local", "pooled"]'),
        ("[simulation]", "[simulation.baselines]\nlearning_rate = 1e30\n[simulation]"),
    )
    done = warm("simulate", "study.toml", cwd=files.folder)
    assert (done.code, done.errors) == (0, [])
    assert "Warning: pooled: could not be trained" in done.out
    assert "local, south: could not be trained" in done.out


def test_a_site_that_diverges_is_named(files: Any, warm: Any) -> None:
    files.edit("study.toml", MLP, ('"bounds"', '"none"'), ("max = 110.0", "max = 1e35"))
    files.rows("south", lambda row: ",".join([row[0], "1e34", row[2], row[3]]))
    done = warm("simulate", "study.toml", "--json", cwd=files.folder)
    assert done.code == 0
    assert re.search(
        r"federated, south: left out of \d of 3 rounds: local training diverged", done.out
    )


def test_impossible_privacy_shows_in_the_results(files: Any, warm: Any) -> None:
    files.edit("study.toml", (NO_DP, DP + "1e-4"))
    done = warm("simulate", "study.toml", cwd=files.folder)
    assert done.code == 0
    assert "Warning: federated: " in done.out


def test_what_others_misread_as_epsilon_one_is_refused(files: Any, warm: Any) -> None:
    """30 patients, batch 4, 1,500 steps, sigma 2.734, delta 1e-2: epsilon is 5.80 and not 1."""
    site_rows = {f"south-{number}" for number in range(41)}
    files.edit("south.toml", ("[patients]", '[split]\ncolumn = "part"\n[patients]'))
    files.edit("south.csv", ("sex,died", "sex,died,part"))
    files.rows(
        "south",
        lambda r: (
            ",".join([*r, "train" if int(r[0][6:]) < 30 else "test"]) if r[0] in site_rows else None
        ),
    )
    files.edit(
        "study.toml",
        (NO_DP, 'mode = "dp"\nepsilon = 1.0\ndelta = 1e-2\nnoise_multiplier = 2.734'),
        ("rounds = 3", "rounds = 15"),
        ("local_steps = 5", "local_steps = 100"),
        ("batch_size = 8", "batch_size = 4"),
        ("[evaluation]", '[aggregation]\nweights = "equal"\n[evaluation]'),
        (SITES, 'sites = ["south.toml"]'),
    )
    done = warm("simulate", "study.toml", cwd=files.folder)
    assert_refused(done, 6, ("site south", "epsilon = 5.80", "above the study's 1"))
