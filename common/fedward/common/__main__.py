"""`python -m fedward.common` is the `fedward` command, where that is not on the path."""

from __future__ import annotations

import sys

from fedward.common.cli import main

sys.exit(main())
