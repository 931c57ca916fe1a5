"""Turn pydantic's findings into one line that names the key, what is wrong, and what is allowed."""

from __future__ import annotations

import difflib
from typing import Any, get_args

from pydantic import BaseModel, ValidationError


def explain(error: ValidationError, model: type[BaseModel]) -> tuple[str, str]:
    """Say the first thing that is wrong with a configuration file.

    Args:
        error: what pydantic found.
        model: the class that was validated; used to say which keys exist.

    Returns:
        `(problem, hint)`, both without a trailing full stop. Values are never quoted, only their
        types: a configuration file may hold what should not be in a log.
    """
    first = error.errors(include_url=False, include_input=True)[0]
    place = ".".join(str(part) for part in first["loc"]) or "the file"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    kind = first["type"]
    if kind == "extra_forbidden":
        return f"unknown key {place}{more}", _suggest(first["loc"], model)
    if kind == "missing":
        return f"{place} is missing{more}", "add it"
    if kind == "value_error":
        return f"{place}{more}", str(first["msg"]).removeprefix("Value error, ")
    given = type(first["input"]).__name__
    return f"{place} is of type {given} and not valid{more}", str(first["msg"])


def _suggest(location: tuple[int | str, ...], model: type[BaseModel]) -> str:
    fields = _fields_at(location[:-1], model)
    close = difflib.get_close_matches(str(location[-1]), fields, n=1)
    if close:
        return f"did you mean {close[0]}?"
    return f"allowed here: {', '.join(fields)}" if fields else "remove it"


def _fields_at(location: tuple[int | str, ...], model: type[BaseModel]) -> list[str]:
    current: Any = model
    for part in location:
        current = _step(current, part)
    return sorted(current.model_fields) if _is_model(current) else []


def _step(current: Any, part: int | str) -> Any:
    if _is_model(current) and part in current.model_fields:
        return _unwrap(current.model_fields[part].annotation)
    if _is_model(current) and isinstance(part, str):
        return current  # a discriminator value that pydantic adds to the location
    return current


def _unwrap(annotation: Any) -> Any:
    if _is_model(annotation):
        return annotation
    for inner in get_args(annotation):
        found = _unwrap(inner)
        if _is_model(found):
            return found
    return annotation


def _is_model(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, BaseModel)
