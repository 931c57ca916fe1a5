"""`fedward study`: write, check, hash and explain a study file."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from fedward.common.errors import OutputError, PrivacyError, StudyError
from fedward.common.exit_codes import exit_codes_help
from fedward.common.files import write_atomic
from fedward.common.study import canonical_json, load_study, simulation_hash, study_hash
from fedward.common.study.remarks import remarks

app = typer.Typer(
    name="study",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="""Write, check, hash and explain a study file.

A study file (study.toml) is the whole protocol: every number that decides what happens is in it.
Its hash is what a hospital approves; changing anything but comments, order or [simulation] changes
the hash.

\b
Examples:
  fedward study new --modality image study.toml
  fedward study check study.toml
  fedward study show study.toml
""",
    epilog=exit_codes_help(StudyError, PrivacyError, OutputError),
)

StudyFile = Annotated[Path, typer.Argument(metavar="STUDY", help="The study file (study.toml).")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for other programs.")]


@app.command(
    "new",
    short_help="Write an annotated study file to start from.",
    help="""Write an annotated study file to start from.

Every key that a study can have is in it, with its meaning and its default. The file passes
`fedward study check` as it is; edit it and check again.

\b
Examples:
  fedward study new --modality tabular
  fedward study new --modality image scans/study.toml
""",
    epilog=exit_codes_help(OutputError),
)
def new(
    modality: Annotated[
        Literal["tabular", "image"],
        typer.Option("--modality", help="What a patient's data are: a table or pictures."),
    ],
    path: Annotated[Path, typer.Argument(help="Where to write it.")] = Path("study.toml"),
    force: Annotated[bool, typer.Option("--force", help="Replace a file that exists.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write the template of `modality` to `path`."""
    if path.exists() and not force:
        raise OutputError(f"{path} exists already", hint="choose another path or add --force")
    write_atomic(path, template(modality))
    if as_json:
        _print_json({"path": str(path), "modality": modality})
    else:
        typer.echo(f"wrote {path}: edit it, then run `fedward study check {path}`")


@app.command(
    "check",
    short_help="Check a study file and print its hash.",
    help="""Check a study file: keys, types, ranges, and that its sections agree.

Prints the study's name, its hash, and remarks on choices that deserve a second look. A study that
is wrong is refused with one line that names the key and what is allowed.

\b
Example:
  fedward study check study.toml
""",
    epilog=exit_codes_help(StudyError),
)
def check(study_file: StudyFile, as_json: AsJson = False) -> None:
    """Load the study and print what was found."""
    study = load_study(study_file)
    found = remarks(study)
    if as_json:
        _print_json({"name": study.study.name, "hash": study_hash(study), "remarks": list(found)})
        return
    typer.echo(f"{study.study.name} (version {study.study.version}) is a valid study")
    typer.echo(f"hash: {study_hash(study)}")
    for remark in found:
        typer.echo(f"remark: {remark}")


@app.command(
    "hash",
    short_help="Print the study's hash.",
    help="""Print the study's hash: the name that every party uses for it.

It is the SHA-256 of the canonical JSON: keys sorted, defaults filled in, comments and [simulation]
left out. Two files with the same hash are the same study.

\b
Examples:
  fedward study hash study.toml
  fedward study hash --canonical study.toml | sha256sum
""",
    epilog=exit_codes_help(StudyError),
)
def print_hash(
    study_file: StudyFile,
    canonical: Annotated[
        bool, typer.Option("--canonical", help="Print the canonical JSON itself.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Print the hash, or what is hashed."""
    study = load_study(study_file)
    if canonical:
        typer.echo(canonical_json(study), nl=False)
    elif as_json:
        _print_json({"study": study_hash(study), "simulation": simulation_hash(study)})
    else:
        typer.echo(study_hash(study))


@app.command(
    "show",
    short_help="Explain a study in plain words.",
    help="""Explain a study in plain words, for those who decide whether a hospital takes part.

Says who asks what, which data are needed, what would leave a hospital and what never does, what it
costs in privacy, and what the protection does and does not cover.

\b
Example:
  fedward study show study.toml
""",
    epilog=exit_codes_help(StudyError, PrivacyError),
)
def show(study_file: StudyFile, as_json: AsJson = False) -> None:
    """Print the study in words, or the same content as JSON."""
    from fedward.common.study.describe import describe  # loads torch and the accounting

    chapters = describe(load_study(study_file))
    if as_json:
        _print_json({chapter.title: list(chapter.lines) for chapter in chapters})
        return
    for number, chapter in enumerate(chapters):
        typer.echo(("\n" if number else "") + chapter.title.upper())
        for line in chapter.lines:
            typer.echo(chapter.wrapped(line))


def template(modality: str) -> str:
    """The annotated study file for `tabular` or `image`."""
    folder = resources.files("fedward.common.study") / "templates"
    return (folder / f"{modality}.toml").read_text(encoding="utf-8")


def _print_json(value: dict[str, Any]) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
