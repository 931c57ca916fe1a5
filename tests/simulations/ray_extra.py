"""Whether tests of the engine `ray` can run: Ray is an extra that `make setup` leaves out."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest

NEEDED = "FEDWARD_NEEDS_RAY"
"""Set in the continuous integration: without Ray the tests then fail instead of skipping."""
HAS_RAY = find_spec("ray") is not None or bool(os.environ.get(NEEDED))
WITHOUT_RAY = "no Ray here: install the extra `ray`"

needs_ray = pytest.mark.skipif(not HAS_RAY, reason=WITHOUT_RAY)
