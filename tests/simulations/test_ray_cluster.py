"""The `ray` engine at the address of a cluster that Ray's own command began."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.simulations.ray_extra import needs_ray
from tests.simulations.test_simulation_repeats import a_study, run, write_site

from fedward.common.errors import LinkError
from fedward.simulations.engines.cluster import session
from fedward.simulations.fakes import make_cohorts, small_study

pytestmark = [
    needs_ray,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Ray leaves files to the system
]
ASKS_FOR = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "ab" * 32}
END_S = 60.0


@contextmanager
def cluster() -> Iterator[str]:
    """The address of a cluster of two processors that asks for a secret."""
    ray = str(Path(sys.executable).with_name("ray"))
    options = ["--head", "--block", "--port=0", "--num-cpus=2", "--include-dashboard=false"]
    with (
        tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder,
        subprocess.Popen(
            [ray, "start", *options, "--object-store-memory=100000000", f"--temp-dir={folder}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={**os.environ, **ASKS_FOR, "RAY_USAGE_STATS_ENABLED": "0"},
        ) as process,
    ):
        try:
            assert process.stdout is not None
            port = None
            while port is None:
                line = process.stdout.readline()
                assert line, "ray start ended"
                port = re.search(r"--address='[^']+:(\d+)'", line)
            yield f"127.0.0.1:{port[1]}"
        finally:
            process.terminate()
            process.wait(END_S)


def test_it_computes_what_loop_does_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole study, differential privacy included; who lacks the secret is refused."""
    for cohort in make_cohorts(small_study(), 3, patients=60):
        write_site(tmp_path, small_study(), cohort)
    study = a_study(
        privacy={"mode": "dp", "epsilon": 6.0, "delta": 1e-3},
        preprocess={"standardise": "federated"},
    )
    expected = run(tmp_path, tmp_path / "loop", study, engine="loop")
    expected.pop("engine")
    with cluster() as address:
        with (
            pytest.raises(LinkError, match="cannot be joined"),
            session.connected(address, processors=2),
        ):
            pass
        for name, value in ASKS_FOR.items():
            monkeypatch.setenv(name, value)
        found = run(tmp_path, tmp_path / "ray", study, engine="ray", ray_address=address)
        session.check(address)  # it is there still
    assert found.pop("engine") == {
        "name": "ray",
        "why": "one site after another in 2 Ray workers of a cluster",
    }
    assert found == expected
    for name in ("predictions.parquet", "model/weights.safetensors"):
        one, other = ((tmp_path / out / name).read_bytes() for out in ("loop", "ray"))
        assert one == other
