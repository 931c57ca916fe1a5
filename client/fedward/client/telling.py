"""What a server may be told about why a site refuses.

What was found in the data, or what privacy would cost there, depends on the patients: from the
figures in such a message their exact number can be worked out. The site itself is told all.
"""

from __future__ import annotations

from fedward.common.errors import (
    DataError,
    FedwardError,
    IdentityError,
    LinkError,
    OutputError,
    PolicyError,
    PrivacyError,
    RoundError,
    RoundSpentError,
    SiteConfigError,
    StateError,
    StudyError,
    TrainingError,
    error_for_exit_code,
)

LONGEST_REASON = 500
"""Characters of a reason that travels."""

_FIXED: dict[type[FedwardError], str] = {
    DataError: "the site's data cannot be used as the study demands; the site knows why",
    OutputError: "the site cannot store what it has to; the site knows why",
    # First: it is a PrivacyError too. That a round cannot be had is no secret, why is one.
    RoundSpentError: "the site has paid for this before and does not do it again; it knows why",
    PrivacyError: "the privacy promise cannot be kept at this site; the site knows why",
    SiteConfigError: "the site's configuration does not fit the study; the site knows why",
}
_SPOKEN = (
    IdentityError,
    LinkError,
    PolicyError,
    RoundError,
    StateError,
    StudyError,
    TrainingError,
)
"""Kinds whose own words are about the study, the round or the site's rules, never about data."""
_UNSAID = "the site cannot answer; the site knows why"


def reason_to_tell(refusal: FedwardError) -> str:
    """What a server may know about why a site refuses: one printable line of bounded length.

    Guarantee:
        Of what was found in the data, and of what privacy costs there, a fixed sentence is told
        and nothing else. A kind of error that is not known here is treated the same way.
    """
    for kind, sentence in _FIXED.items():
        if isinstance(refusal, kind):
            return sentence
    if not isinstance(refusal, _SPOKEN):
        return _UNSAID
    line = " ".join(str(refusal).split())
    return "".join(c for c in line if c.isprintable())[:LONGEST_REASON]


def may_be_told(code: int, reason: str) -> bool:
    """Whether a refusal with this exit code may leave with this reason."""
    kind = error_for_exit_code(code)
    if kind is None:
        return False
    if kind in _FIXED:
        return reason == _FIXED[kind]
    if kind not in _SPOKEN:
        return reason == _UNSAID
    return 0 < len(reason) <= LONGEST_REASON and reason.isprintable()
