"""`fedward client check-data`: a site's data against a study."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedward.common.commands import new_app
from fedward.common.errors import DataError, OutputError, SiteConfigError, StudyError
from fedward.common.exit_codes import exit_codes_help
from fedward.common.files import read_bytes, write_atomic

if TYPE_CHECKING:
    from fedward.client.quality import QualityReport

app = new_app()


@app.command(
    "check-data",
    short_help="Check this site's data against a study, and report their quality.",
    help="""Check this site's data against a study, and report their quality.

Reads the study file (study.toml), which says what is needed, and the site's own file (site.toml),
which says where the data are and how local columns, units and codes map to the study. Reports rows,
patients, duplicates, missing values, values out of range, unknown categories, class balance, and
everything for which the study would refuse the data. Nothing is changed and nothing is sent.

The report holds exact counts: it STAYS AT THE SITE. Do not send it to anyone.

Which patients are kept for testing depends on the site's secret key, unless the data say it in a
column named by [split]. With --key-file that division is checked too.

\b
The smallest site.toml:
  [site]
  name = "north"
  [source]
  kind = "csv"
  path = "patients.csv"
  [patients]
  column = "patient_id"

\b
More that a site.toml can say:
  [source]   kind = csv, parquet, images, medmnist or sklearn;
             path, with ${VARIABLES}; filter = "age >= 18 AND sex = 'F'";
             null_values = ["?", "NA"]; separator = ";"; decimal_comma = true;
             columns = [..] for a file without a header line;
             labels: the table of a picture folder; file: its column of names
  [patients] column, or one_row_per_patient = true
  [split]    column, train, test: a published division
  [target]   column; values = {"0" = "no", "1" = "yes"}; or threshold = 0.5
  [features.weight]  column = "WEIGHT_LB"; scale = 0.4536; offset = 0.0
  [features.sex]     values = {"M" = "male", "F" = "female"}

\b
Examples:
  fedward client check-data study.toml site.toml
  fedward client check-data study.toml site.toml --json --out quality.json
""",
    epilog=exit_codes_help(StudyError, SiteConfigError, DataError, OutputError),
)
def check_data(
    study_file: Annotated[
        Path, typer.Argument(metavar="STUDY", help="The study file (study.toml).")
    ],
    site_file: Annotated[
        Path, typer.Argument(metavar="SITE", help="This site's file (site.toml).")
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help="Report as JSON, for other programs.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write the report there, not to the screen."),
    ] = None,
    key_file: Annotated[
        Path | None,
        typer.Option("--key-file", metavar="FILE", help="File with the site's secret key."),
    ] = None,
) -> None:
    """Report on a site's data; exit with the code of `DataError` if the study refuses them."""
    from fedward.client.quality import check_quality
    from fedward.client.site_config import load_site_config
    from fedward.common.study import load_study

    study = load_study(study_file)
    config = load_site_config(site_file)
    key = None if key_file is None else read_bytes(key_file)
    report = check_quality(study, config, key=key)
    show_report(report, as_json=as_json, out=out)
    if not report.usable:
        raise DataError(
            "the study refuses these data",
            hint="correct what the report lists under 'The study refuses these data'"
            if not as_json
            else "correct what the report lists under 'problems'",
        )


def show_report(report: QualityReport, *, as_json: bool = False, out: Path | None = None) -> None:
    """Print a quality report, or write it to a file."""
    from rich.console import Console

    from fedward.client.quality import render

    if as_json:
        text = json.dumps(report.to_dict(), indent=2, ensure_ascii=False)
    else:
        # Captured: rich would end the process itself if the reader of a pipe is gone.
        wide = Console(file=io.StringIO(), width=100, color_system=None)
        page = Console() if out is None else wide
        with page.capture() as capture:
            page.print(render(report))
        text = capture.get().removesuffix("\n")
    if out is None:
        typer.echo(text)
        return
    write_atomic(out, text + "\n")
    typer.echo(f"wrote {out}: it stays at the site, do not send it to anyone")
