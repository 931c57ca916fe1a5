"""What the `fedward` command's exit codes mean: one table, taken from the error tree.

>>> from fedward.common.errors import StudyError
>>> print(exit_codes_help(StudyError).splitlines()[-1].strip())
3    The study file is missing, malformed or contradicts itself
"""

from __future__ import annotations

from fedward.common.errors import FedwardError, error_classes

SUCCESS = 0
DEFECT = 1
USAGE = 2
BROKEN_PIPE = 141

_GENERAL = {
    SUCCESS: "Success",
    DEFECT: "A defect in fedward itself",
    USAGE: "A wrong command line",
    BROKEN_PIPE: "Whatever read the output stopped reading",
}


def exit_codes() -> dict[int, str]:
    """All exit codes and their meaning, ascending."""
    meanings = dict(_GENERAL)
    for kind in error_classes():
        meanings.setdefault(kind.exit_code, _first_sentence(kind))
    return dict(sorted(meanings.items()))


def exit_codes_help(*kinds: type[FedwardError]) -> str:
    r"""The paragraph that ends a command's `--help`: 0 and 2, and those of the given errors.

    It starts with `\b`, which keeps click from joining the lines.
    """
    meanings = {code: _GENERAL[code] for code in (SUCCESS, USAGE)}
    meanings |= {kind.exit_code: _first_sentence(kind) for kind in kinds}
    lines = [f"  {code:<4} {meaning}" for code, meaning in sorted(meanings.items())]
    # 0 leads, then 2: a reader looks for these two first.
    return "\n".join(["\b\nExit codes:", *lines])


def _first_sentence(kind: type[FedwardError]) -> str:
    first = (kind.__doc__ or kind.__name__).strip().splitlines()[0]
    return first.removesuffix(".")
