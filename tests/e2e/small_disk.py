"""A disk that is full when a test says so: a small file system in memory, and a file that fills it.

with SmallDisk(folder) as disk:    # what is in the folder stays there
    disk.fill()
    ...
    disk.make_room()
"""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

_BLOCK = 4096


class SmallDisk:
    """Mounted over a folder; skips the test where nobody may mount anything.

    Args:
        folder: existing.
        size_mb: of the disk.
    """

    def __init__(self, folder: Path, *, size_mb: int = 24) -> None:
        self._folder = folder
        self._size_mb = size_mb
        self._ballast = folder / "ballast"

    def __enter__(self) -> Self:
        aside = self._folder.with_name(f".{self._folder.name}.aside")
        shutil.copytree(self._folder, aside)
        mode = self._folder.stat().st_mode & 0o777
        options = f"size={self._size_mb}m,mode={mode:o}"
        command = ["mount", "-t", "tmpfs", "-o", options, "fedward-test", str(self._folder)]
        try:
            done = subprocess.run(command, capture_output=True, check=False)
        except OSError:
            done = None
        if done is None or done.returncode != 0:
            pytest.skip("a small disk cannot be mounted here: it needs root")
        shutil.copytree(aside, self._folder, dirs_exist_ok=True)
        shutil.rmtree(aside)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        aside = self._folder.with_name(f".{self._folder.name}.aside")
        self.make_room()
        shutil.copytree(self._folder, aside)
        subprocess.run(["umount", str(self._folder)], check=True)
        shutil.copytree(aside, self._folder, dirs_exist_ok=True)
        shutil.rmtree(aside)

    def fill(self) -> None:
        """Leave not a single block."""
        with self._ballast.open("ab") as file, suppress(OSError):
            while True:
                os.write(file.fileno(), bytes(_BLOCK))

    def make_room(self) -> None:
        """Give everything back."""
        self._ballast.unlink(missing_ok=True)
