"""Everything that a network can do happens during a run, and the model is the same."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from fedward.simulations.rehearsal.federation import Federation

from .federated import (
    NAMES,
    approve_everywhere,
    change,
    check_run,
    difference,
    reached,
    released,
    running,
    study_text,
)
from .proxies import Proxies

pytestmark = pytest.mark.slow
FAULTS = 9
LIMIT_S = 300.0
"""Only so that a test that hangs ends."""


def test_a_network_that_cuts_corrupts_duplicates_and_delays_changes_nothing(tmp_path: Path) -> None:
    with ExitStack() as stack:
        proxies: list[Proxies] = []

        def before(federation: Federation) -> None:
            for name in NAMES:
                change(federation.site(name) / "client.toml", "# retry_s = 1.0", "retry_s = 0.1")
            proxies.append(stack.enter_context(Proxies(federation)))

        text = study_text(rounds=120, more="every = 40")
        federation = stack.enter_context(running(tmp_path, text, before=before))
        federation.submit()
        approve_everywhere(federation)
        reached(federation, 1, within_s=LIMIT_S)
        proxies[0].trouble(seed=5, faults=FAULTS)
        federation.until(proxies[0].settled, LIMIT_S)
        assert federation.run()["state"] in ("running", "evaluating")  # type: ignore[index]
        run = released(federation, within_s=LIMIT_S)
        assert proxies[0].happened == dict.fromkeys(NAMES, FAULTS)
        federation.stop()
    check_run(federation, run, everybody=True)
    assert difference(federation, run) == 0.0
