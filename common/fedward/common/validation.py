"""Turn pydantic's findings into one line that names the key, what is wrong, and what is allowed.

Words are those of TOML (table, array, string), since that is what the reader wrote.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

_TYPES = {
    "str": "a string",
    "int": "an integer",
    "float": "a float",
    "bool": "a boolean",
    "list": "an array",
    "tuple": "an array",
    "dict": "a table",
}
_WANTED = {
    "string_type": "a string",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "tuple_type": "an array",
    "list_type": "an array",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
}
_UNKNOWN = "extra_forbidden"


def explain(error: ValidationError, model: type[BaseModel]) -> tuple[str, str]:
    """Say the first thing that is wrong with a configuration file.

    An unknown key comes first: a misspelt key is also a missing one, and that would mislead.

    Args:
        error: what pydantic found.
        model: the class that was validated; used to say which keys exist.

    Returns:
        `(problem, hint)`, both without a trailing full stop. Values are never quoted, only their
        types: a configuration file may hold what should not be in a log.
    """
    findings = error.errors(include_url=False, include_input=True)
    first = min(findings, key=lambda finding: finding["type"] != _UNKNOWN)
    place, owner = _locate(first["loc"], model)
    more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
    if first["type"] == _UNKNOWN:
        return f"unknown key {place}{more}", _suggest(str(first["loc"][-1]), owner)
    problem, hint = _explain_one(first, place)
    return problem + more, hint


def _explain_one(finding: ErrorDetails, place: str) -> tuple[str, str]:
    kind, context = finding["type"], finding.get("ctx", {})
    if kind == "missing":
        return f"{place} is missing", "add it"
    if kind == "value_error":
        text = str(finding["msg"]).removeprefix("Value error, ")
        return place or "the file as a whole is not valid", text
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        state = "missing" if kind.endswith("not_found") else "not known"
        allowed = str(context.get("expected_tags", "")).replace("'", "")
        hint = f"choose one of {allowed}" if allowed else "add it"
        return f"{place}.{str(context['discriminator']).strip(chr(39))} is {state}", hint
    given = _TYPES.get(type(finding["input"]).__name__, type(finding["input"]).__name__)
    if kind in _WANTED:
        return f"{place} is {given}", f"it must be {_WANTED[kind]}"
    return f"{place} ({given}) is not allowed", _rule(kind, context, str(finding["msg"]))


def _rule(kind: str, context: Mapping[str, Any], message: str) -> str:
    if kind in ("too_short", "string_too_short"):
        return f"it must have a length of at least {context['min_length']}"
    if kind in ("too_long", "string_too_long"):
        return f"it must have a length of at most {context['max_length']}"
    return message.replace("Input should", "it must").replace("String should", "it must")


def _suggest(key: str, owner: type[BaseModel] | None) -> str:
    fields = sorted(owner.model_fields) if owner else []
    close = difflib.get_close_matches(key, fields, n=1)
    if close:
        return f"did you mean {close[0]}?"
    return f"allowed here: {', '.join(fields)}" if fields else "remove it"


def _locate(
    location: tuple[int | str, ...], model: type[BaseModel]
) -> tuple[str, type[BaseModel] | None]:
    """A location as the reader wrote it, and the model that holds its last key.

    Pydantic puts the tag of a discriminated union into the location; it is no key of the file.
    """
    place = ""
    owner: type[BaseModel] | None = model
    choices: tuple[type[BaseModel], ...] = (model,)
    for part in location:
        if isinstance(part, int):
            place += f"[{part}]"
            continue
        if len(choices) > 1:
            choices = tuple(c for c in choices if part in _tags(c))
            owner = choices[0] if choices else None
            continue
        owner = choices[0] if choices else None
        place += f".{part}" if place else part
        field = owner.model_fields.get(part) if owner else None
        choices = tuple(_models(field.annotation)) if field else ()
    return place, owner


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The model classes in an annotation such as `tuple[Feature, ...]` or `FedAvg | FedProx`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        return
    for inner in get_args(annotation):
        yield from _models(inner)


def _tags(model: type[BaseModel]) -> tuple[Any, ...]:
    """The literal values of all fields: one of them is what a discriminated union goes by."""
    return tuple(
        value for field in model.model_fields.values() for value in get_args(field.annotation)
    )
