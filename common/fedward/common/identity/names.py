"""Which names members and consortia may have: what is safe in a certificate, a path and a log.

>>> check_name("north-2")
>>> check_consortium("Cardio consortium")
"""

from __future__ import annotations

import re

from fedward.common.errors import IdentityError

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_CONSORTIUM = re.compile(r"\S(?:[^\x00-\x1f\x7f]{0,62}\S)?")
RESERVED = ("root", "issuer")
"""Names of what signs certificates."""


def check_name(name: str) -> None:
    """Return if a member may be called so.

    Raises:
        IdentityError: it may not.
    """
    if not NAME.fullmatch(name) or name in RESERVED:
        raise IdentityError(
            "a name is not allowed",
            hint="1 to 64 of a-z, 0-9, - and _, beginning with a letter or digit; "
            f"not {' or '.join(RESERVED)}",
        )


def check_consortium(name: str) -> None:
    """Return if a consortium may be called so.

    Raises:
        IdentityError: it may not.
    """
    if not _CONSORTIUM.fullmatch(name):
        raise IdentityError(
            "a consortium's name is not allowed",
            hint="1 to 64 characters on one line, without spaces at its ends",
        )
