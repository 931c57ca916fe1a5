"""Flower's own SuperLink beside the link; see `measure`."""

from __future__ import annotations

from typing import Any


def measure() -> list[dict[str, Any]]:
    """Not yet."""
    return []
