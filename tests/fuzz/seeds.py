"""Valid inputs that the fuzzer starts from, and keys to make them with."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np

from fedward.common.identity.issuing import Authority, make_issuer, make_root
from fedward.common.identity.keys import PrivateKey
from fedward.common.identity.requests import make_request
from fedward.common.identity.roster import Member, Roster, sign_roster
from fedward.common.metrics import count
from fedward.common.preprocess import fit
from fedward.common.study.load import EXAMPLE
from fedward.simulations.fakes import make_cohorts, make_sites, small_study

NOW = datetime(2026, 1, 2, tzinfo=UTC)
KEY = PrivateKey.generate()
_ROOT_KEY, _ISSUER_KEY = PrivateKey.generate(), PrivateKey.generate()
_ROOT = make_root(_ROOT_KEY, "Fuzz", now=NOW)
ROOT = _ROOT.pem


def _roster() -> bytes:
    issuer = make_issuer(_ISSUER_KEY.public, Authority(_ROOT_KEY, _ROOT), now=NOW)
    member = Member.make("server", "coordinator", KEY.public, since=NOW.isoformat())
    roster = Roster(
        consortium="Fuzz",
        version=1,
        issued_at=NOW.isoformat(),
        host="localhost",
        port=1,
        members=(member,),
    )
    return sign_roster(roster, _ISSUER_KEY, issuer)


STUDY = small_study(preprocess={"standardise": "federated", "impute": "federated"})
_SITE = make_sites(STUDY, make_cohorts(STUDY, 1))[0]
_SUMS = _SITE.statistics()
STATISTICS = _SUMS.to_arrays()
LEVELS = _SUMS.levels_json
_COUNTED = count(
    "binary",
    np.array([0.0, 1.0]),
    np.array([[0.2], [0.7]], np.float32),
    outputs=1,
    bins=20,
    bounds=None,
    patient=np.arange(2),
    per="row",
)
COUNTS = _COUNTED.to_arrays()

VALID: dict[str, list[bytes]] = {
    "roster": [_roster()],
    "certificates": [ROOT.encode()],
    "request": [make_request(KEY, "north")],
    "public_key": [KEY.public.pem.encode(), KEY.sign(b"something")],
    "study": [EXAMPLE.encode()],
    "transform": [fit(STUDY, _SUMS).to_json().encode()],
    "statistics": [bytes(80)],
    "counts": [bytes(80)],
}
