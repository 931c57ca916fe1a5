"""The log is JSON by the line; what is written to the log that may be shared can be shared."""

from __future__ import annotations

import io
import json
import logging
import sys
import traceback
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fedward.common.files
from fedward.common import logs
from fedward.common.errors import FedwardError, LinkError, OutputError, error_classes
from fedward.common.phrases import Phrases
from fedward.common.redaction import FORMS, WITHHELD, Redactor

NAME = "fedward.common.files"
"""A module whose phrases the tests log."""
KNOWN = "check the path and the disk"
SECRET = "Ångström-1957"


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    return tmp_path / "shared.log"


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except type(error) as caught:
        return caught


def test_both_logs(shared: Path) -> None:
    stream = io.StringIO()
    with logs.configure("info", stream, shared):
        log = logging.getLogger(NAME)
        log.debug(KNOWN)
        log.info(KNOWN, extra={"facts": {"site": "north", "round": 3, "patient": SECRET}})
    (full,) = lines(stream.getvalue())
    assert full.pop("time").endswith("Z")
    assert full == {
        "level": "info",
        "logger": NAME,
        "message": KNOWN,
        "facts": {"site": "north", "round": 3, "patient": SECRET},
    }
    (line,) = lines(shared.read_text(encoding="utf-8"))
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "info",
        "logger": NAME,
        "message": KNOWN,
        "facts": {"site": "north", "round": 3},
    }


def test_a_message_that_is_made_at_run_time_is_withheld(shared: Path) -> None:
    with logs.configure("info", io.StringIO(), shared):
        logging.getLogger(NAME).info(f"read {SECRET}")
        logging.getLogger(NAME).info("cannot read %s", SECRET)
    first, second = lines(shared.read_text(encoding="utf-8"))
    assert first["message"] == WITHHELD
    assert SECRET not in json.dumps(second, ensure_ascii=False)


def test_reasons_keep_their_words_and_lose_what_they_name(shared: Path) -> None:
    known = fedward.common.files.output_error(Path(SECRET), OSError(28, SECRET))
    odd = LinkError(f"{SECRET} is odd", hint=f"ask {SECRET}")
    with logs.configure("info", io.StringIO(), shared):
        for reason in (known, str(known), odd, str(odd), SECRET, OSError(SECRET), 7):
            logging.getLogger(NAME).info(KNOWN, extra={"facts": {"reason": reason}})
    text = shared.read_text(encoding="utf-8")
    assert SECRET not in text
    gap = "cannot write …: the disk is full, free some space and try again"
    assert [line["facts"]["reason"] for line in lines(text)] == [
        f"OutputError: {gap}",
        gap,
        f"LinkError: {WITHHELD}: {WITHHELD}",
        *[WITHHELD] * 4,
    ]


def test_the_class_of_an_error_is_shared() -> None:
    record = logging.LogRecord(NAME, 20, "", 1, KNOWN, (), None)
    for value, shown in (("LinkError", "LinkError"), (KNOWN, KNOWN), (SECRET, WITHHELD)):
        record.facts = {"error": value}
        assert Redactor().redact(record)["facts"] == {"error": shown}


def test_exceptions_are_a_class_and_a_place(shared: Path, tmp_path: Path) -> None:
    stream = io.StringIO()
    with logs.configure("info", stream, shared, debug=False):
        for failing in (
            lambda: fedward.common.files.read_bytes(tmp_path / SECRET),
            lambda: int(SECRET),
        ):
            try:
                failing()
            except (FedwardError, ValueError):
                logging.getLogger(NAME).exception(KNOWN)
    ours, other = lines(stream.getvalue())
    assert (ours["error"], other["error"]) == ("DataError", "ValueError")
    assert ours["place"].startswith("fedward.common.files, line ")
    assert SECRET in ours["reason"]
    assert SECRET not in json.dumps(other, ensure_ascii=False)
    assert "traceback" not in ours
    text = shared.read_text(encoding="utf-8")
    assert SECRET not in text
    first, second = lines(text)
    assert first["reason"].startswith("cannot read …: check the path")
    assert (second["error"], second["place"]) == ("ValueError", "at an unknown place")


def test_debug_shows_everything_in_the_log_that_stays(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    monkeypatch.setenv("FEDWARD_DEBUG", "1")
    with logs.configure("info", stream, shared):
        logging.getLogger("another").error(
            "it said %s", SECRET, exc_info=raised(ValueError(SECRET))
        )
    (line,) = lines(stream.getvalue())
    assert line["message"] == f"it said {SECRET}"
    assert SECRET in line["traceback"]
    assert shared.read_text(encoding="utf-8") == ""


def test_other_libraries_are_quoted_nowhere(shared: Path) -> None:
    stream = io.StringIO()
    with logs.configure("info", stream, shared, debug=False):
        logging.getLogger("polars").error(SECRET)
        logging.getLogger(f"fedward.{SECRET}").error("x", extra={"facts": {"site": "north"}})
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn(SECRET, UserWarning, stacklevel=1)
    polars, ours, warning = lines(stream.getvalue())
    assert (polars["logger"], polars["message"]) == ("polars", WITHHELD)
    assert ours["message"] == "x"
    assert warning["message"] == WITHHELD
    assert shared.read_text(encoding="utf-8") == ""


anything = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.dates(),
        st.builds(Path, st.text(alphabet="ab/.", max_size=9)), st.builds(object),
        st.builds(ValueError, st.text()),
    ),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)  # fmt: skip


@given(st.dictionaries(st.text() | st.sampled_from(sorted(FORMS)), anything), st.text())
def test_whatever_is_logged_is_json(facts: dict[str, Any], message: str) -> None:
    stream = io.StringIO()
    with logs.configure("debug", stream, debug=False):
        logging.getLogger(NAME).info(message.replace("%", ""), extra={"facts": facts})
    (line,) = [json.loads(text) for text in stream.getvalue().split("\n") if text]
    assert set(line["facts"]) == {name.encode(errors="replace").decode() for name in facts}


secrets = st.text(
    alphabet=st.characters(codec="utf-8", categories=["L", "N", "P"]), min_size=1
).map(lambda text: f"«{text}»")
"""What no phrase, and no form of a fact, holds: quotation marks of their own."""


@st.composite
def spoilt(draw: st.DrawFn) -> logging.LogRecord:
    """A record that quotes secrets wherever one can be put."""
    secret = draw(secrets)
    problem, hint = draw(secrets), draw(st.sampled_from([KNOWN, secret]))
    kinds = [*error_classes(), ValueError, type(secret, (Exception,), {"__module__": "builtins"})]
    kind = draw(st.sampled_from(kinds))
    error = kind(problem, hint=hint) if issubclass(kind, FedwardError) else kind(secret)
    value = draw(
        st.sampled_from(
            [secret, [secret], {secret: secret}, Path(secret), error, secret.encode(), (3, secret)]
        )
    )
    text = draw(
        st.sampled_from(
            [secret, f"cannot write {secret}", f"{secret}: {KNOWN}", f"{KNOWN}{secret}"]
        )
    )
    name = draw(st.sampled_from([NAME, "fedward.common.phrases", secret, f"fedward.{secret}"]))
    level = draw(st.sampled_from([10, 20, 40, 17]))
    failed = raised(error)
    record = logging.LogRecord(
        name, level, secret, 1, text, (secret,), (type(failed), failed, failed.__traceback__)
    )
    keys = draw(
        st.lists(st.sampled_from([*FORMS, "reason", "problem", "hint", secret]), max_size=6)
    )
    record.facts = dict.fromkeys(keys, draw(st.sampled_from([value, text])))
    record.stack_info = secret
    return record


@given(spoilt())
def test_no_secret_is_shared(record: logging.LogRecord) -> None:
    shared = json.dumps(Redactor().redact(record), ensure_ascii=False)
    assert "«" not in shared
    assert "»" not in shared


def test_the_secrets_would_be_noticed() -> None:
    """The property above can fail: the log that stays holds them."""
    stream = io.StringIO()
    with logs.configure("info", stream):
        logging.getLogger(NAME).info("«x»", extra={"facts": {"reason": "«y»"}})
    assert "«x»" in stream.getvalue()
    assert "«y»" in stream.getvalue()


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("site", "north-2", "Anna Schmidt"),
        ("sites", ["north", "south"], ["north", "Anna Schmidt"]),
        ("sites", {"north"}, [["north"]]),
        ("sites", 3, -1),
        ("missing", ["south"], 37),
        ("code", 13, 37),
        ("round", 3, 3.5),
        ("round", 0, True),
        ("seconds", 1.5, float("nan")),
        ("seconds", 2, "2"),
        ("action", "train", "retire"),
        ("kind", "reply", "kind"),
        ("version", 3, -1),
        ("valid_until", "2026-11-20T17:08:17+00:00", "Ann 2026-11-20"),
        ("for_good", True, "yes"),
        ("study_hash", "0" * 64, "0" * 64 + "\n"),
        ("fedward", "0.1.0.dev1", "v1"),
        ("role", "observer", "patient"),
        ("patients", None, 12),
    ],
)
def test_the_form_of_facts(name: str, good: Any, bad: Any) -> None:
    def shared(value: Any) -> dict[str, Any]:
        record = logging.LogRecord(NAME, 20, "", 1, KNOWN, (), None)
        record.facts = {name: value}
        facts = Redactor().redact(record)["facts"]
        assert isinstance(facts, dict)
        return facts

    expected = {} if good is None else {name: sorted(good) if isinstance(good, set) else good}
    assert shared(good) == expected
    assert shared(bad) == {}


def test_files_are_put_aside(shared: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(logs, "LARGEST_FILE", 2000)
    full = tmp_path / "full.log"
    with logs.configure("info", full, shared):
        for number in range(200):
            logging.getLogger(NAME).info(KNOWN, extra={"facts": {"round": number}})
    for path in (full, shared):
        written = sorted(tmp_path.glob(path.name + "*"))
        assert len(written) == 1 + logs.OLD_FILES
        assert all(file.stat().st_size <= 2000 for file in written)
        assert lines(path.read_text(encoding="utf-8"))[-1]["facts"] == {"round": 199}


def test_a_log_that_cannot_be_opened(tmp_path: Path) -> None:
    before = logging.getLogger().handlers[:]
    with (
        pytest.raises(OutputError, match="create it first"),
        logs.configure("info", io.StringIO(), tmp_path / "none" / "shared.log"),
    ):
        pass
    with pytest.raises(ValueError, match="info"), logs.configure("loud"):
        pass
    assert logging.getLogger().handlers == before


def test_a_log_that_is_gone_ends_nothing(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, SECRET)

    with logs.configure("info", Full(), shared):
        logging.getLogger(NAME).info(KNOWN)
    assert len(lines(shared.read_text(encoding="utf-8"))) == 1
    assert SECRET not in capsys.readouterr().err


def test_a_module_without_source_has_no_phrases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fedward.made_up", ModuleType("fedward.made_up"))
    assert Phrases().public("a phrase of nobody at all", first="fedward.made_up") is None
    assert Phrases().public(KNOWN, first="fedward.made_up") == KNOWN
    assert Phrases().public(KNOWN * 100) is None


def test_the_log_that_stays_holds_no_text_of_a_chained_exception() -> None:
    stream = io.StringIO()
    try:
        try:
            raise ValueError(SECRET)
        except ValueError as cause:
            raise LinkError("the server is away", hint="wait") from cause
    except LinkError as error:
        trace = "".join(traceback.format_exception(error))
        with logs.configure("info", stream, debug=False):
            logging.getLogger(NAME).exception(KNOWN)
    assert SECRET in trace
    assert "the server is away: wait" in stream.getvalue()
    assert SECRET not in stream.getvalue()
