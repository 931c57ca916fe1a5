"""Exit codes: every error has its own, and every place that documents them agrees."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest

from fedward.common import errors
from fedward.common.errors import error_classes
from fedward.common.exit_codes import exit_codes, exit_codes_help

DOCS = Path(__file__).resolve().parents[2] / "docs"
EVERY = list(error_classes())


def test_every_error_of_the_tree_is_found() -> None:
    named = {
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, errors.FedwardError)
    }
    assert named - {errors.FedwardError} == set(EVERY)


def test_codes_are_distinct_and_none_is_taken_by_the_shell() -> None:
    codes = [kind.exit_code for kind in EVERY]
    assert len(set(codes)) == len(codes)
    assert all(2 < code < 126 or code == 130 for code in codes)


def test_the_tree_drawn_in_errors_is_the_tree() -> None:
    drawn = dict(re.findall(r"[├└]── (\w+) +(\d+)", errors.__doc__ or ""))
    assert drawn == {kind.__name__: str(kind.exit_code) for kind in EVERY}


def test_the_page_lists_every_code() -> None:
    page = (DOCS / "exit-codes.md").read_text(encoding="utf-8")
    rows = {int(code): text for code, text in re.findall(r"^\| (\d+) \| (.+) \|$", page, re.M)}
    assert rows == exit_codes()


def test_every_error_has_a_meaning() -> None:
    meanings = exit_codes()
    for kind in EVERY:
        assert len(meanings[kind.exit_code]) > 15


def test_the_help_paragraph_names_what_can_happen() -> None:
    text = exit_codes_help(errors.OutputError, errors.StudyError)
    assert [int(code) for code in re.findall(r"^  (\d+)", text, re.M)] == [0, 2, 3, 10]


@pytest.mark.parametrize("kind", EVERY)
def test_errors_survive_the_way_back_from_a_worker(kind: type[errors.FedwardError]) -> None:
    error = kind("a problem", hint="a hint")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301  (our own bytes)
    assert type(again) is kind
    assert (again.problem, again.hint, str(again)) == ("a problem", "a hint", str(error))
