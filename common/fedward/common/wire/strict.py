"""JSON as both sides agree to read it: what the standard leaves open is refused.

No NaN or infinity (not even as 1e999), no integer beyond 64 bits, no key twice, no half of a
surrogate pair, UTF-8 only. So nothing that was read can fail later when it is written again.

    >>> loads(b'{"a": 1}')
    {'a': 1}
    >>> loads(b'{"a": 1, "a": 2}')
    Traceback (most recent call last):
    ValueError: a key stands twice
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

_SURROGATE = b"\\ud"


def loads(data: bytes) -> Any:
    """Read JSON.

    Raises:
        ValueError: it is none, or one of the things above.
    """
    try:
        value = json.loads(
            data.decode("utf-8"),
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_whole,
            object_pairs_hook=_once,
        )
    except RecursionError as error:
        raise ValueError("too deep") from error
    if _SURROGATE in data.lower():
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    return value


def dumps(value: Any) -> bytes:
    """Write JSON that `loads` accepts, always the same for the same value.

    Raises:
        ValueError: it holds something that JSON cannot say, or that `loads` refuses.
    """
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, RecursionError) as error:
        raise ValueError("not for JSON") from error
    return text.encode("ascii")


def _no_constant(_: str) -> NoReturn:
    raise ValueError("not a finite number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("not a finite number")
    return value


def _whole(text: str) -> int:
    value = int(text)
    if not -(1 << 63) <= value < 1 << 64:
        raise ValueError("more than 64 bits")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key stands twice")
    return result
