"""Fuzz one target, guided by coverage: `python -m tests.fuzz.run TARGET --seconds 60`.

Ends with 0 if nothing was found. Anything that is neither accepted nor refused by a `FedwardError`,
any input that takes more than 10 s, and memory beyond 1 GB end it with the offending input on disk.

What atheris makes of a comparison of arrays keeps them, 1 kB each time: so targets that compare
arrays end after `MOST_RUNS` inputs, and begin again with the corpus that was found.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["fedward", "json", "tomllib"]):
    from tests.fuzz.targets import TARGETS, corpus, survives

MOST_RUNS = {"statistics": 300_000, "counts": 300_000, "task": 300_000, "reply": 300_000}


def main() -> None:
    """Set libFuzzer up and hand over."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--corpus", type=Path, help="A folder; one that is there is gone on with.")
    parser.add_argument("--findings", type=Path, default=Path(tempfile.gettempdir()))
    chosen = parser.parse_args()
    folder = chosen.corpus or Path(tempfile.mkdtemp(prefix=f"corpus-{chosen.target}-"))
    folder.mkdir(exist_ok=True)
    for number, seed in enumerate(corpus(chosen.target)):
        (folder / f"seed-{number}").write_bytes(seed)
        survives(TARGETS[chosen.target], seed)  # loads what is loaded late, before time is taken
    target = TARGETS[chosen.target]
    options = [
        f"-max_total_time={chosen.seconds}",
        f"-runs={MOST_RUNS.get(chosen.target, -1)}",
        "-timeout=10",
        "-rss_limit_mb=1024",
        "-max_len=8192",
        "-verbosity=0",
        "-print_final_stats=1",
        f"-artifact_prefix={chosen.findings}/{chosen.target}-",
    ]
    atheris.Setup([sys.argv[0], *options, str(folder)], lambda data: survives(target, data))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
