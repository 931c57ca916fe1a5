"""Valid inputs that the fuzzer starts from, and keys to make them with."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
from flwr.app import Context, RecordDict

from fedward.client.flower_app import build_client_app
from fedward.common.identity.enrolment import write_bundle
from fedward.common.identity.issuing import Authority, issue, make_issuer, make_root
from fedward.common.identity.keys import PrivateKey
from fedward.common.identity.requests import make_request
from fedward.common.identity.roster import Member, Roster, sign_roster
from fedward.common.metrics import count
from fedward.common.preprocess import fit
from fedward.common.study import study_hash
from fedward.common.study.load import EXAMPLE
from fedward.server.first_weights import first_weights
from fedward.server.flower_internals import identify, quieten
from fedward.simulations.fakes import make_cohorts, make_sites, small_study

NOW = datetime(2026, 1, 2, tzinfo=UTC)
KEY = PrivateKey.generate()
_ROOT_KEY, _ISSUER_KEY = PrivateKey.generate(), PrivateKey.generate()
_ROOT = make_root(_ROOT_KEY, "Fuzz", now=NOW)
ROOT = _ROOT.pem


def _roster() -> tuple[bytes, bytes]:
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
    data = sign_roster(roster, _ISSUER_KEY, issuer)
    leaf = issue(KEY.public, "server", "coordinator", Authority(_ISSUER_KEY, issuer), now=NOW)
    return data, write_bundle(leaf, issuer, _ROOT, data, roster).encode()


_ROSTER, _BUNDLE = _roster()
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

TRANSFORM = fit(STUDY, _SUMS).to_json()
HASH = study_hash(STUDY)
WEIGHTS = first_weights(STUDY, fit(STUDY, _SUMS))
identify(1)
quieten()
APP = build_client_app(lambda _context: _SITE)
CONTEXT = Context(1, 2, {}, RecordDict(), {})

VALID: dict[str, list[bytes]] = {
    "roster": [_ROSTER],
    "bundle": [_BUNDLE],
    "certificates": [ROOT.encode()],
    "request": [make_request(KEY, "north")],
    "public_key": [KEY.public.pem.encode(), KEY.sign(b"something")],
    "study": [EXAMPLE.encode()],
    "transform": [fit(STUDY, _SUMS).to_json().encode()],
    "statistics": [bytes(80)],
    "counts": [bytes(80)],
}
