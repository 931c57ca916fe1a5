"""Settings files, `server.toml` and `client.toml`: read once, checked whole, then frozen."""

from __future__ import annotations

import json
import os
import re
import tomllib
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from fedward.common.errors import SiteConfigError
from fedward.common.validation import explain

Settings = TypeVar("Settings", bound=BaseModel)
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def load_settings(path: Path, model: type[Settings]) -> Settings:
    """Read and check a settings file.

    Raises:
        SiteConfigError: it is missing, is not TOML, or says what is not allowed.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SiteConfigError(
            f"cannot read {path.name}", hint="check the folder, or make one with `init`"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise SiteConfigError(f"{path.name} is not valid TOML", hint=str(error)) from error
    try:
        return model.model_validate(table)
    except ValidationError as error:
        problem, hint = explain(error, model)
        raise SiteConfigError(f"{path.name}: {problem}", hint=hint) from error


def expand(text: str) -> str:
    """Put the environment's variables in place of `${NAME}`: a password is not for a file.

    Raises:
        SiteConfigError: a variable is not set.
    """

    def value(match: re.Match[str]) -> str:
        found = os.environ.get(match[1])
        if found is None:
            raise SiteConfigError(
                f"the variable {match[1]} is not set", hint="set it and try again"
            )
        return found

    return _VARIABLE.sub(value, text)


def fill(template: str, **values: str | int) -> str:
    """Put values in place of `@NAME@` in a template of a settings file, as TOML writes them.

    >>> fill("name = @NAME@, port = @PORT@", name="north", port=1)
    'name = "north", port = 1'
    """
    for name, value in values.items():
        template = template.replace(f"@{name.upper()}@", json.dumps(value, ensure_ascii=False))
    return template
