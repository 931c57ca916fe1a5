"""Whether a service is well, and if not, why: a list of named checks.

>>> health = Health({"disk": lambda: None, "database": lambda: "it does not answer"})
>>> health.problems()
{'database': 'it does not answer'}
>>> health.well()
False
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fedward.common.errors import FedwardError

Check = Callable[[], str | None]
"""Looks at one thing, quickly: None if it is well, otherwise what is wrong, in words.

What it says can be read by whoever may ask for `/healthz`: nothing private.
"""


class Health:
    """Checks that are made whenever somebody asks.

    Args:
        checks: what to look at, by name.
    """

    def __init__(self, checks: Mapping[str, Check]) -> None:
        self._checks = dict(checks)

    def problems(self) -> dict[str, str]:
        """What is wrong, by the name of the check; empty if everything is well."""
        found = {name: _look(check) for name, check in self._checks.items()}
        return {name: problem for name, problem in found.items() if problem}

    def well(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems()


def _look(check: Check) -> str | None:
    try:
        return check()
    except FedwardError as error:
        return error.problem
