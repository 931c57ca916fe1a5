"""Every `--help` satisfies someone who has read nothing else, on a terminal of 80 columns."""

from __future__ import annotations

import importlib
import re
from typing import Any

import click
import pytest
import typer

from fedward.common.cli import GROUPS


def commands() -> list[list[str]]:
    """The root, every group and every command in it, as arguments."""
    found: list[list[str]] = [[]]
    for name, group in GROUPS.items():
        command = typer.main.get_command(importlib.import_module(group.module).app)
        found.append([name])
        if isinstance(command, click.Group):
            found += [[name, inner] for inner in command.commands]
    return found


@pytest.mark.parametrize("arguments", commands(), ids=lambda a: " ".join(a) or "fedward")
def test_help(arguments: list[str], warm: Any) -> None:
    done = warm(*arguments, "--help")
    assert (done.code, done.err) == (0, "")
    text = done.out
    assert text.startswith(f"Usage: {' '.join(['fedward', *arguments])} ")
    for part in ("\n  Example", f"\n    fedward {' '.join(arguments)}", "Options:", "Exit codes:"):
        assert part in text, part
    assert [line for line in text.splitlines() if len(line) > 80] == []
    # Words are not torn apart at the end of a line, and no markup is left over.
    assert re.findall(r"\w-\n +\w", text) == []
    assert not re.search(r"\*\*|\[bold|\x08|\x1b", text)
    # Every option and argument says what it is for.
    for option in re.findall(r"^  (-\S+(?:, --\S+)?(?: [A-Z]+)?)\s*(.*)$", text, re.MULTILINE):
        assert option[1] or re.search(rf"{re.escape(option[0])}.*\n {{10,}}\w", text), option


@pytest.mark.parametrize("arguments", commands()[1:], ids=" ".join)
def test_examples_in_help_use_options_that_exist(arguments: list[str], warm: Any) -> None:
    text = warm(*arguments, "--help").out
    examples = re.findall(rf"^    fedward {' '.join(arguments)}\b(.*)$", text, re.MULTILINE)
    assert examples
    listed = set(re.findall(r"(--[a-z-]+)", text.partition("Options:")[2]))
    if "Commands:" in text:
        return  # a group's examples use its commands' options
    for example in examples:
        assert set(re.findall(r"(--[a-z-]+)", example)) <= listed
