"""The part of the command `doctor` that both sides share: show findings, end with the worst."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from fedward.common.commands import print_json
from fedward.common.diagnosis.findings import Check, diagnose, exit_code, line, summary


def show(checks: Sequence[Check], *, as_json: bool) -> None:
    """Make the checks, print each finding as it comes, and end with the exit code of the first.

    Raises:
        typer.Exit: something is wrong.
    """
    width = max(len(check.name) for check in checks)
    findings = []
    for finding in diagnose(checks):
        findings.append(finding)
        if not as_json:
            typer.echo(line(finding, width))
    if as_json:
        print_json(summary(findings))
    if code := exit_code(findings):
        raise typer.Exit(code)
