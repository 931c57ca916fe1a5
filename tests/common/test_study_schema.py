"""The study schema: what it accepts, and that everything else is refused by name."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from fedward.common.errors import StudyError
from fedward.common.study import Study, load_study, parse_study
from fedward.common.study.load import EXAMPLE

Change = tuple[str, str]
Table = dict[str, Any]


def edited(*changes: Change) -> str:
    text = EXAMPLE
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    return text


def refusal(*changes: Change) -> str:
    with pytest.raises(StudyError) as caught:
        parse_study(edited(*changes))
    message = str(caught.value)
    assert "\n" not in message
    return message


DP = ('mode = "none"', 'mode = "dp"\nepsilon = 3.0\ndelta = 1e-3')
IMAGE = (
    ('modality = "tabular"\n[[data.features]]\nname = "age"\nmin = 0.0\nmax = 120.0', ""),
    ("[data]", '[data]\nmodality = "image"\n[preprocess.image]\nheight = 16\nwidth = 16'),
    ('"logistic"', '"cnn"'),
)
REGRESSION = (
    ('kind = "binary"', 'kind = "regression"'),
    ('labels = ["no", "yes"]', ""),
    ('mode = "none"', 'mode = "none"\n[evaluation]\nmetric = "rmse"'),
)


def test_the_example_is_valid() -> None:
    study = parse_study(EXAMPLE)
    assert study.study.version == "1"
    assert study.training.local_epochs == 1
    assert not study.private


@pytest.mark.parametrize(
    "changes",
    [
        (DP,),
        IMAGE,
        REGRESSION,
        (("rounds = 3", "rounds = 100000"),),
        (("learning_rate = 0.1", "learning_rate = 1"),),
        (('["no", "yes"]', '["a", "b", "c"]'), ('kind = "binary"', 'kind = "multiclass"')),
        (('"fedavg"', '"fedprox"\nmu = 0.01'),),
        (('"fedavg"', '"fedyogi"\nserver_learning_rate = 0.01'),),
    ],
)
def test_valid_variants(changes: tuple[Change, ...]) -> None:
    parse_study(edited(*changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        # Types are never coerced.
        ((("rounds = 3", 'rounds = "3"'),), "training.rounds is a string: it must be an integer"),
        ((("rounds = 3", "rounds = true"),), "training.rounds is a boolean"),
        ((("rounds = 3", "rounds = 3.0"),), "training.rounds is a float"),
        ((("min = 0.0", 'min = "0"'),), r"data.features\[0\].min is a string"),
        ((("min = 0.0", "min = true"),), r"data.features\[0\].min is a boolean"),
        ((('["no", "yes"]', '"no"'),), "task.labels is a string: it must be an array"),
        ((('["no", "yes"]', '["no", 1]'),), r"task.labels\[1\] is an integer"),
        ((("[task]", "[[task]]"),), "task is an array: it must be a table"),
        ((("[privacy]", "[aggregation]\nsecure = 1\n[privacy]"),), "aggregation.secure is an int"),
        # Ranges.
        ((("rounds = 3", "rounds = 0"),), "training.rounds .* greater than or equal to 1"),
        ((("batch_size = 32", "batch_size = -1"),), "training.batch_size"),
        ((("learning_rate = 0.1", "learning_rate = nan"),), "training.learning_rate .* finite"),
        ((("learning_rate = 0.1", "learning_rate = inf"),), "training.learning_rate .* finite"),
        ((("learning_rate = 0.1", "learning_rate = 0.0"),), "training.learning_rate"),
        ((DP, ("epsilon = 3.0", "epsilon = 0.0")), "privacy.epsilon"),
        ((DP, ("delta = 1e-3", "delta = 1.0")), "privacy.delta"),
        ((DP, ("delta = 1e-3", "delta = 0")), "privacy.delta"),
        ((('"example"', '"Has Space"'),), "study.name"),
        ((('"example"', '"../etc"'),), "study.name"),
        # Unknown and missing keys.
        ((("rounds = 3", "round = 3"),), r"unknown key training.round .*did you mean rounds\?"),
        ((("[privacy]", "[privcy]"),), r"unknown key privcy .*did you mean privacy\?"),
        ((("min = 0.0", "minimum = 0.0"),), r"unknown key data.features\[0\].minimum"),
        ((('title = "An example"', ""),), "study.title is missing"),
        # The algorithm is one of several kinds.
        ((('"fedavg"', '"fedavgg"'),), "algorithm.name is not known: choose one of fedavg, "),
        ((('name = "fedavg"', ""),), "algorithm.name is missing"),
        ((('"fedavg"', '"fedprox"'),), "algorithm.mu is missing"),
        ((('"fedavg"', '"fedavg"\nmu = 1.0'),), "unknown key algorithm.mu: allowed here: name"),
        ((('"fedavg"', '"fedadam"\nserver_learning_rate = 0.1\nbeta1 = 0.9'),), "mean beta_1?"),
        # The model comes from the registry.
        ((('"logistic"', '"logistc"'),), "model: there is no model of that name, choose one of"),
        ((('"logistic"', '["mlp"]'),), "model: a name is missing"),
        ((('name = "logistic"', ""),), "model: a name is missing"),
        ((('"logistic"', '"mlp"\nhiden = [3]'),), "unknown key hiden: did you mean hidden?"),
        ((('"logistic"', '"mlp"\nhidden = []'),), "hidden .* length of at least 1"),
        ((('"logistic"', '"mlp"\nhidden = [0]'),), r"hidden\[0\]"),
    ],
)
def test_refused_with_the_key_and_what_is_allowed(changes: tuple[Change, ...], words: str) -> None:
    assert re.search(words, refusal(*changes))


SIMULATION = 'mode = "none"\n[simulation]\n'


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ((('["no", "yes"]', '["no", "no"]'),), "labels must differ"),
        ((('["no", "yes"]', '["no"]'),), "exactly two labels"),
        ((('"binary"', '"multiclass"'),), "at least three labels"),
        ((('"binary"', '"regression"'),), "a regression task has no labels"),
        ((("[data]", "bounds = [1.0, 0.0]\n[data]"),), "low < high"),
        ((("min = 0.0", "min = 200.0"),), "min of age must be below its max"),
        ((("min = 0.0", 'type = "boolean"\nmin = 0.0'),), "min and max are for numeric"),
        ((("min = 0.0", 'min = 0.0\ncategories = ["a"]'),), "categories are for categorical"),
        (
            (("min = 0.0\nmax = 120.0", 'type = "categorical"\ncategories = ["a", "a"]'),),
            "categories of age must differ",
        ),
        ((("[model]", '[[data.features]]\nname = "age"\n[model]'),), "different names"),
        (
            (('[[data.features]]\nname = "age"\nmin = 0.0\nmax = 120.0', ""),),
            "at least one \\[\\[data.features\\]\\]",
        ),
        ((('"tabular"', '"image"'),), "an image study has no"),
        ((("local_epochs = 1", ""),), "exactly one of local_epochs and local_steps"),
        ((("local_epochs = 1", "local_epochs = 1\nlocal_steps = 1"),), "exactly one of"),
        ((("rounds = 3", 'rounds = 3\noptimiser = "adam"\nmomentum = 0.5'),), "momentum is for"),
        ((('"none"', '"dp"'),), "needs epsilon and delta"),
        ((('"none"', '"dp"\nepsilon = 1.0'),), "needs epsilon and delta"),
        ((("[privacy]", "[aggregation]\nsecure = true\n[privacy]"),), "not available yet"),
        ((('"logistic"', '"cnn"'),), "cnn takes image data"),
        ((*IMAGE, ('"cnn"', '"mlp"')), "mlp takes tabular data"),
        ((*IMAGE, ("[preprocess.image]\nheight = 16\nwidth = 16", "")), "modality 'image' needs"),
        (
            (("[model]", "[preprocess.image]\nheight = 16\nwidth = 16\n[model]"),),
            "modality 'tabular' has no",
        ),
        (
            (("max = 120.0", ""), ("[model]", '[preprocess]\nimpute = "bounds"\n[model]')),
            "'bounds' needs min and max of feature age",
        ),
        ((*REGRESSION, ("rmse", "auroc")), "'auroc' does not fit a regression task"),
        (
            (('mode = "none"', 'mode = "none"\n[evaluation]\nmetric = "mae"'),),
            "'mae' does not fit a binary task",
        ),
        # Differential privacy needs everything that is not noised to be public.
        ((DP, ("max = 120.0", "")), "public bounds: give feature age"),
        ((DP, ("min = 0.0\nmax = 120.0", 'type = "categorical"')), "needs the categories of age"),
        (
            (*REGRESSION, ('mode = "none"', 'mode = "dp"\nepsilon = 1.0\ndelta = 1e-3')),
            r"needs \[task\] bounds",
        ),
        ((('mode = "none"', SIMULATION),), "either sites .* or source"),
        ((('mode = "none"', SIMULATION + 'sites = ["a"]\nsource = "b"'),), "either sites"),
        ((('mode = "none"', SIMULATION + 'source = "b"'),), "belong together"),
        (
            (('mode = "none"', SIMULATION + 'source = "b"\npartition = {kind = "iid"}'),),
            "'iid' needs sites",
        ),
        (
            (('mode = "none"', SIMULATION + 'source = "b"\npartition = {kind = "column"}'),),
            "'column' needs column",
        ),
        (
            (
                (
                    'mode = "none"',
                    SIMULATION + 'source = "b"\npartition = {kind = "feature-shift", sites = 2}',
                ),
            ),
            "'feature-shift' needs column",
        ),
    ],
)
def test_rules_between_keys(changes: tuple[Change, ...], words: str) -> None:
    assert re.search(words, refusal(*changes))


@pytest.mark.parametrize("key", ["standardise", "impute"])
def test_private_and_from_the_sites_own_rows_is_a_contradiction(key: str) -> None:
    """Exact values of a site's own rows would shape its updates without any noise."""
    own = f'[preprocess]\n{key} = "site"\n[model]'
    absent = ("max = 120.0", 'max = 120.0\nmissing = "impute"')
    assert "own rows" in refusal(DP, absent, ("[model]", own))
    parse_study(edited(absent, ("[model]", own)))


def sections(value: BaseModel) -> list[BaseModel]:
    """A model and every model inside it."""
    found = [value]
    for name in type(value).model_fields:
        inner = getattr(value, name)
        for item in inner if isinstance(inner, tuple) else (inner,):
            if isinstance(item, BaseModel):
                found += sections(item)
    return found


def test_nothing_can_be_changed_after_loading() -> None:
    study = parse_study(edited(DP))
    found = sections(study)
    assert len(found) > 9
    for section in found:
        for name in type(section).model_fields:
            with pytest.raises(ValidationError):
                setattr(section, name, getattr(section, name))


def tables(table: Table) -> list[Table]:
    found = [table]
    for value in table.values():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, dict):
                found += tables(item)
    return found


@given(st.from_regex(r"[a-z_]{1,12}", fullmatch=True), st.integers(0, 8))
def test_an_unknown_key_is_refused_in_every_table(key: str, where: int) -> None:
    content = tomllib.loads(EXAMPLE)
    every = tables(content)
    target = every[where % len(every)]
    known = set(Study.model_fields) | {
        name for section in sections(parse_study(EXAMPLE)) for name in type(section).model_fields
    }
    if key in known:
        return
    target[key] = 1
    with pytest.raises(ValidationError, match=key):
        Study.model_validate(content)


@given(st.text(max_size=200))
def test_any_text_is_a_study_or_a_refusal(text: str) -> None:
    with pytest.raises(StudyError) as caught:
        parse_study(text)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_binary_file_are_refused(tmp_path: Any) -> None:
    with pytest.raises(StudyError, match=r"cannot read study file none.toml.*fedward study new"):
        load_study(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(StudyError, match=r"cannot read study file binary.toml"):
        load_study(tmp_path / "binary.toml")
    with pytest.raises(StudyError, match="cannot read"):
        load_study(tmp_path)


def test_values_of_the_file_are_never_quoted() -> None:
    assert "secret" not in refusal(("rounds = 3", 'rounds = "secret"'))
    assert "secret" not in refusal(('kind = "binary"', 'kind = "secret"'))
    assert "secret" not in refusal(('"fedavg"', '"secret"'))
