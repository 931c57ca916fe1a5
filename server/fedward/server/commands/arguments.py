"""What most of the coordinator's commands have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedward.common.errors import IdentityError, OutputError, SiteConfigError, StateError
from fedward.common.exit_codes import exit_codes_help

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="The consortium's folder.")]
CODES = exit_codes_help(SiteConfigError, IdentityError, OutputError, StateError)
"""Of commands that change the registry or the roster."""
