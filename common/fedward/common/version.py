"""Which versions ran: named by `fedward --version` and written into every result."""

from __future__ import annotations

import platform
from importlib import metadata

REPORTED = ("fedward", "torch", "flwr", "opacus", "dp-accounting", "numpy", "polars")
"""Distributions whose version can change a result."""


def version() -> str:
    """Version of fedward itself."""
    return metadata.version("fedward")


def versions() -> dict[str, str]:
    """Versions of Python, fedward and those of `REPORTED` that are installed, by name.

    >>> sorted(versions())[:1]
    ['dp-accounting']
    """
    found = {"python": platform.python_version()}
    for name in REPORTED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
