"""The output folder while a simulation runs: held by one run, continued only by the same run.

OUT/checkpoints/lock               held while a run lasts; empty
OUT/checkpoints/simulation.sha256  which study and seed the checkpoints belong to
OUT/checkpoints/data.sha256        which data: a digest for each site
OUT/checkpoints/<arm>/             states after rounds, and what happened in them
OUT/cache/<site>/                  decoded pictures
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from fedward.common.errors import DataError, OutputError, StudyError
from fedward.common.files import output_error, read_bytes, remove_leftovers, write_atomic
from fedward.server.checkpoints import HISTORY

ENGINE = "engine.json"
"""Beside an arm's checkpoints: what computes it."""
_OTHER_RUN = "continue with the study file and --seed it was started with, or choose another --out"


class RunFolder:
    """Where a run keeps its state.

    Args:
        out: the output folder; need not exist.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.checkpoints = out / "checkpoints"
        self.cache = out / "cache"
        self._lock = self.checkpoints / "lock"
        self._mark = self.checkpoints / "simulation.sha256"
        self._data = self.checkpoints / "data.sha256"
        self._begins = False

    @property
    def begun(self) -> bool:
        """Whether a run began here, so that there is something to continue."""
        return self._mark.exists()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other runs out; the system lets go when the process ends, however it ends.

        If the body fails before `begin`, what was made here is removed again.

        Raises:
            OutputError: another run holds the folder, or it cannot be written.
        """
        made = [p for p in (self.checkpoints, *self.checkpoints.parents) if not p.exists()]
        new_lock = not self._lock.exists()
        descriptor = self._take_lock()
        new_cache = not self.cache.exists()
        try:
            yield
        finally:
            if not self._begins:
                if new_cache:
                    shutil.rmtree(self.cache, ignore_errors=True)
                with suppress(OSError):  # what others have put there meanwhile stays
                    if new_lock:
                        self._lock.unlink()
                    for folder in made:
                        folder.rmdir()
            os.close(descriptor)

    def check_study(self, simulation_hash: str) -> None:
        """Refuse to continue nothing, or another experiment.

        Raises:
            OutputError: there is nothing to continue.
            StudyError: there is a run of another study or seed.
        """
        if not self.begun:
            raise OutputError(
                f"there is nothing to continue in {self.out}",
                hint="check --out, or start without --resume",
            )
        known = read_bytes(self._mark, error=OutputError).decode(errors="replace").strip()
        if known != simulation_hash:
            raise StudyError(f"{self.out} holds a run of another study or seed", hint=_OTHER_RUN)

    def check_data(self, digests: Mapping[str, str]) -> None:
        """Refuse to continue with other data than the run began with.

        Args:
            digests: of every site, by name.

        Raises:
            DataError: a site's data changed, or the site came or went.
            OutputError: the folder does not say which data the run began with.
        """
        known = self.known_data()
        changed = [s for s in sorted({*known, *digests}) if known.get(s) != digests.get(s)]
        if changed:
            more = f" (and of {len(changed) - 1} more)" if len(changed) > 1 else ""
            raise DataError(
                f"the data of site {changed[0]}{more} changed since the run began",
                hint="bring them back, or start again without --resume",
            )

    def known_data(self) -> dict[str, str]:
        """The digest of every site's data, as the run began with them.

        Raises:
            OutputError: the folder does not say.
        """
        try:
            known = json.loads(read_bytes(self._data, error=OutputError))
            return {str(site): str(digest) for site, digest in known.items()}
        except (OutputError, ValueError, AttributeError) as error:
            raise OutputError(
                f"{self.out} does not say which data its run began with",
                hint="start again without --resume",
            ) from error

    def begin(self, simulation_hash: str, digests: Mapping[str, str], *, resume: bool) -> None:
        """Make room for the run; only now, when it is known that it can begin.

        Args:
            simulation_hash: of study and seed.
            digests: of every site's data, by name.
            resume: keep the checkpoints that are there.

        Raises:
            OutputError: the disk is full or the folder cannot be written.
        """
        self._begins = True
        try:
            for place in (self.out, self.cache, *self.checkpoints.glob("*/"), self.checkpoints):
                remove_leftovers(place)
            if not resume:
                _clear(self.checkpoints)
        except OSError as error:
            raise output_error(self.out, error) from error
        write_atomic(self._data, json.dumps(dict(digests), indent=1) + "\n")
        write_atomic(self._mark, simulation_hash + "\n")

    def _take_lock(self) -> int:
        while True:
            try:
                self.checkpoints.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o666)
            except OSError as error:
                raise output_error(self.out, error) from error
            if self._holds(descriptor):
                return descriptor
            # A run that could not begin has removed this very file: nobody else would see it.
            os.close(descriptor)

    def _holds(self, descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return os.path.samestat(os.fstat(descriptor), self._lock.stat())
        except FileNotFoundError:
            return False
        except BlockingIOError as error:
            os.close(descriptor)
            raise OutputError(
                f"another run is writing to {self.out}",
                hint="wait for its end, or choose another --out",
            ) from error
        except OSError as error:
            os.close(descriptor)
            raise output_error(self.out, error) from error


def _clear(folder: Path) -> None:
    """Remove the checkpoints of an earlier experiment, and nothing else."""
    for pattern in ("round-*.safetensors", HISTORY, ENGINE):
        for path in sorted(folder.glob(f"*/{pattern}")):
            path.unlink()
