"""`fedward predict`: score new patients with a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedward.client.predict import check_free, write
from fedward.client.predict import predict as score
from fedward.common.errors import DataError, ModelError, OutputError, SiteConfigError
from fedward.common.exit_codes import exit_codes_help

app = typer.Typer(add_completion=False, rich_markup_mode=None)

_HELP = """Score new patients with a trained model.

MODEL is the folder `model` that a run wrote. Every file in it is verified first. PATIENTS is a
table (.csv, .csv.gz or .parquet) with the columns of the study's schema, listed in
MODEL/MODEL_CARD.md; other columns are ignored, but patient_id is carried through. For a model of
pictures, PATIENTS is a folder of PNG, JPEG or TIFF files, or a .npz with an array `images`.

The scores go to the terminal as CSV, or to --out. Columns: row (from 1), patient_id or file, then
probability_LABEL of the positive label (two labels), probability_LABEL of each label and the
likeliest as predicted (more labels), or value (a number). Values are cleaned and refused by the
rules of the study; a refusal names the column and the row, never the value. Nothing leaves this
machine.

\b
Examples:
  fedward predict OUT/model patients.csv
  fedward predict OUT/model patients.csv --out scores.csv
  fedward predict OUT/model patients.csv --reference our_patients.csv
"""


@app.command(
    help=_HELP, epilog=exit_codes_help(SiteConfigError, DataError, ModelError, OutputError)
)
def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The model's folder.")],
    patients: Annotated[Path, typer.Argument(metavar="PATIENTS", help="Who is to be scored.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Write to this file; one that ends in .parquet is Parquet."),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            "--reference",
            help="Your hospital's own patients, in the same form. Needed only if the study takes "
            "means and deviations from each hospital; they are computed here and stay here.",
        ),
    ] = None,
    site: Annotated[
        Path | None,
        typer.Option(
            "--site",
            help="Your site.toml, if your columns, units or codes are not those of the study. Its "
            "paths and its filter are not used.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="JSON instead of CSV: the model and the scores.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace --out if it exists.")] = False,
) -> None:
    """Score `patients` with `model`."""
    if out is not None:
        check_free(out, force=force)
    predictions = score(model, patients, reference=reference, site=site)
    notice = predictions.bundle.provenance.notice
    if notice:
        typer.echo(f"note: this model was {notice}", err=True)
    if out is None:
        typer.echo(predictions.to_json() if as_json else predictions.to_csv(), nl=False)
        return
    write(out, predictions, as_json=as_json, force=force)
    typer.echo(f"wrote {out}", err=True)
