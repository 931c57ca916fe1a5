"""Of what was found in the data, and of what privacy costs there, no word leaves a site."""

from __future__ import annotations

import pytest

from fedward.client.telling import LONGEST_REASON, may_be_told, reason_to_tell
from fedward.common.errors import (
    DataError,
    FedwardError,
    ModelError,
    OutputError,
    PolicyError,
    PrivacyError,
    RoundError,
    SiteConfigError,
)

SECRET = "37 patients of /data/ward-7 cost epsilon = 2.91"


class NewError(FedwardError):
    """A kind that nobody has thought about."""

    exit_code = 99


@pytest.mark.parametrize(
    "kind", [DataError, PrivacyError, OutputError, SiteConfigError, ModelError, NewError]
)
def test_what_depends_on_patients_is_a_fixed_sentence(kind: type[FedwardError]) -> None:
    told = reason_to_tell(kind(SECRET, hint=SECRET))
    assert told == reason_to_tell(kind("other", hint="words"))
    assert not any(c.isdigit() for c in told)
    assert not may_be_told(kind.exit_code, SECRET)
    assert not may_be_told(kind.exit_code, told + " 37")


@pytest.mark.parametrize("kind", [RoundError, PolicyError])
def test_what_is_about_the_study_is_told_in_one_bounded_line(kind: type[FedwardError]) -> None:
    told = reason_to_tell(kind("round 3\n\x1b[2J is over " + "x" * 2000, hint="go on"))
    assert told.startswith("round 3 [2J is over")
    assert len(told) == LONGEST_REASON
    assert told.isprintable()
    assert may_be_told(kind.exit_code, told)
    assert not may_be_told(kind.exit_code, told + "x")
    assert not may_be_told(kind.exit_code, "two\nlines")
