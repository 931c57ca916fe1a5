"""The texts of `--sweep` and `--seeds`, read.

>>> parse_axis("algorithm=fedavg,fedprox")
Axis(key='algorithm', values=('fedavg', 'fedprox'))
>>> parse_axis("model.hidden=[64, 32],[128]").values
([64, 32], [128])
>>> parse_seeds("3", first=7), parse_seeds("1,5", first=7)
((7, 8, 9), (1, 5))
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

_KEY = re.compile(r"[A-Za-z_][\w-]*(\.[A-Za-z_][\w-]*)*")
_SETTING = re.compile(rf"{_KEY.pattern}=")
_OPEN, _CLOSE, _QUOTES = "[{", "]}", "\"'"
_MOST_SEEDS = 1000


@dataclass(frozen=True)
class Axis:
    """A key of the study file, as a dotted path, and the values that it takes one after another."""

    key: str
    values: tuple[Any, ...]


def with_repeated_option(arguments: Sequence[str], option: str) -> list[str]:
    """A command line in which every `key=values` that follows an option has that option before it.

    >>> with_repeated_option(["study.toml", "--sweep", "a=1,2", "b.c=3", "--json"], "--sweep")
    ['study.toml', '--sweep', 'a=1,2', '--sweep', 'b.c=3', '--json']
    """
    found: list[str] = []
    expected = following = False
    for word in arguments:
        if expected:
            expected, following = False, True
        elif word == option:
            expected = True
        elif following and _SETTING.match(word):
            found.append(option)
        else:
            following = word.startswith(f"{option}=")
        found.append(word)
    return found


def parse_axis(text: str) -> Axis:
    """Read `key=value,value`: values are TOML, and what is no TOML is a string.

    Raises:
        ValueError: there is no key or no value, brackets are left open, or a value comes twice.
    """
    key, equals, rest = text.partition("=")
    if not equals or not _KEY.fullmatch(key):
        raise ValueError(f"'{text}' is not key=value,value with the key of a study file")
    values = tuple(_value(key, piece) for piece in _pieces(key, rest))
    for at, value in enumerate(values):
        if any(value == other and type(value) is type(other) for other in values[:at]):
            raise ValueError(f"{key} has the value {value_text(value)} twice")
    return Axis(key, values)


def parse_seeds(text: str, *, first: int) -> tuple[int, ...]:
    """Read `5` (so many seeds, from `first` on) or `1,2,3` (these).

    Raises:
        ValueError: it is neither, or a seed comes twice.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words or not all(word.isdecimal() and word.isascii() for word in words):
        raise ValueError("give a number of seeds, such as 5, or the seeds, such as 1,2,3")
    numbers = tuple(int(word) for word in words)
    if "," not in text:
        if not 1 <= numbers[0] <= _MOST_SEEDS:
            raise ValueError(f"the number of seeds must be between 1 and {_MOST_SEEDS:,}")
        return tuple(range(first, first + numbers[0]))
    if len(set(numbers)) < len(numbers) or max(numbers) >= 2**63 or len(numbers) > _MOST_SEEDS:
        raise ValueError(f"seeds must differ, be below 2**63 and at most {_MOST_SEEDS:,}")
    return numbers


def value_text(value: Any) -> str:
    """A value as people write it: strings bare, a table by its name and what else it says.

    >>> value_text("fedavg"), value_text([64, 32]), value_text(True), value_text(1e-3)
    ('fedavg', '[64,32]', 'true', '0.001')
    >>> value_text({"name": "fedprox", "mu": 0.1})
    'fedprox(mu=0.1)'
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(value_text, value))}]"
    if isinstance(value, dict):
        inner = ",".join(f"{k}={value_text(v)}" for k, v in value.items() if k != "name")
        return f"{value.get('name', '')}({inner})"
    return str(value)


def _pieces(key: str, text: str) -> Iterator[str]:
    """Divide at commas that are in no bracket and no quotes."""
    depth, quote, piece = 0, "", ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in _QUOTES:
            quote = letter
        else:
            depth += (letter in _OPEN) - (letter in _CLOSE)
        if letter == "," and not depth and not quote:
            yield piece
            piece = ""
        else:
            piece += letter
    if depth or quote:
        raise ValueError(f"a bracket or quotation mark of {key} is left open")
    yield piece


def _value(key: str, piece: str) -> Any:
    word = piece.strip()
    if not word or "\n" in word:
        raise ValueError(f"{key} has an empty value")
    try:
        return tomllib.loads(f"value = {word}")["value"]
    except tomllib.TOMLDecodeError as error:
        if any(letter in word for letter in _OPEN + _CLOSE + _QUOTES + "#="):
            raise ValueError(f"a value of {key} is not TOML: {error}") from error
        return word
