"""Write the pages of docs/ that follow from the code, and check that no link is broken.

`make docs` runs this; the tests fail if a page is not what it would write.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from fedward.common.cli import GROUPS, root
from fedward.common.exit_codes import exit_codes

DOCS = Path(__file__).resolve().parent
REPOSITORY = DOCS.parent
GENERATED = "<!-- Written by docs/generate.py (make docs). Do not edit. -->"
WIDTH = 100
_LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def cli_page() -> str:
    """docs/cli.md: the `--help` of every command."""
    parts = [GENERATED, "", "# The fedward command", ""]
    top = click.Context(root, info_name="fedward", terminal_width=WIDTH, **root.context_settings)
    for words, command in _commands():
        # Below the root's context, as when it is invoked: settings are inherited from there.
        inner = click.Context(command, top, words.removeprefix("fedward "), terminal_width=WIDTH)
        context = top if command is root else inner
        title = f"{'#' * min(2 + words.count(' '), 4)} {words}"
        parts += [title, "", "```", command.get_help(context).rstrip(), "```", ""]
    return "\n".join(parts)


def exit_codes_page() -> str:
    """docs/exit-codes.md: what each exit code means."""
    rows = [f"| {code} | {meaning} |" for code, meaning in exit_codes().items()]
    return "\n".join(
        [
            GENERATED,
            "",
            "# Exit codes",
            "",
            "Every failure of `fedward` ends in one line on standard error, `error: …`, that says",
            "what is wrong and what to do next, and in one of these codes. The line holds nothing",
            "private. `fedward --debug` adds the traceback, which may.",
            "",
            "| code | meaning |",
            "|---|---|",
            *rows,
            "",
        ]
    )


def pages() -> dict[Path, str]:
    """The generated pages and their content."""
    return {DOCS / "cli.md": cli_page(), DOCS / "exit-codes.md": exit_codes_page()}


def broken_links() -> list[str]:
    """Relative links in the Markdown of the repository that lead nowhere, as `file: link`."""
    found = []
    for page in [*REPOSITORY.glob("*.md"), *DOCS.rglob("*.md")]:
        links = _LINK.findall(page.read_text(encoding="utf-8"))
        here = [link for link in links if "://" not in link]
        name = page.relative_to(REPOSITORY)
        found += [f"{name}: {link}" for link in here if not (page.parent / link).exists()]
    return found


def _commands() -> Iterator[tuple[str, click.Command]]:
    yield "fedward", root
    context = click.Context(root, info_name="fedward")
    for name in GROUPS:
        command = root.get_command(context, name)
        if command is not None:
            yield from _below(f"fedward {name}", command)


def _below(words: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    yield words, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from _below(f"{words} {name}", inner)


def main() -> int:
    """Write the pages; return 1 if a link is broken."""
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
        click.echo(f"wrote {path.relative_to(REPOSITORY)}")
    broken = broken_links()
    for line in broken:
        click.echo(f"broken link in {line}", err=True)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
