"""Pictures with a learnable finding: grey noise, and in ill patients a bright spot somewhere.

Hospitals differ in contrast and brightness. A spot is as bright as the noise, so that few pictures
do not teach where to look, and many do.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 16
SITES = ("north", "south", "east", "west")


def make(
    draw: np.random.Generator, patients: int, site: int, spot: float = 130.0
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """uint8 `[patients, SIDE, SIDE]` and 0 or 1 for each: half of the patients are ill."""
    finding = draw.permutation(np.arange(patients) % 2)
    contrast, brightness = 0.85 + 0.08 * site, 70.0 + 8.0 * site
    noise = draw.normal(0.0, 45.0, (patients, SIDE, SIDE))
    rows, columns = np.mgrid[:SIDE, :SIDE]
    centres = draw.uniform(3, SIDE - 4, (patients, 2))
    squared = (rows - centres[:, :1, None]) ** 2 + (columns - centres[:, 1:, None]) ** 2
    spots = spot * np.exp(-squared / (2 * 1.3**2)) * finding[:, None, None]
    pixels = brightness + contrast * (noise + spots)
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8), finding


def write_folder(folder: Path, pixels: NDArray[np.uint8], finding: NDArray[np.int64]) -> None:
    """PNG files and `labels.csv` with a patient per picture."""
    folder.mkdir(parents=True)
    lines = ["file,patient,finding"]
    for number, (picture, ill) in enumerate(zip(pixels, finding, strict=True)):
        Image.fromarray(picture).save(folder / f"{number:04d}.png")
        lines.append(f"{number:04d}.png,p{number},{'spot' if ill else 'clear'}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")


FOLDER_SITE = """
[site]
name = "{name}"
[source]
kind = "images"
path = "{name}"
labels = "{name}/labels.csv"
[patients]
column = "patient"
"""

ARCHIVE_SITE = """
[site]
name = "{name}"
[source]
kind = "medmnist"
path = "{name}.npz"
[patients]
one_row_per_patient = true
"""

STUDY = """
[study]
name = "spots"
title = "Bright spots on grey pictures"
purpose = "Show that hospitals with few pictures learn together"
contact = "nobody@example.org"

[task]
kind = "binary"
target = "finding"
labels = ["clear", "spot"]

[data]
modality = "image"

[preprocess]
standardise = "{standardise}"

[preprocess.image]
height = 16
width = 16

[model]
name = "cnn"
channels = [8, 16]

[training]
rounds = {rounds}
local_steps = {steps}
batch_size = {batch}
optimiser = "sgd"
learning_rate = {rate}
momentum = 0.9
seed = {seed}

[algorithm]
name = "fedavg"

[privacy]
{privacy}

[aggregation]
weights = "equal"

[evaluation]
bootstrap = 100
{holdout}

[simulation]
sites = ["north.toml", "south.toml", "east.toml", "west.toml"]
compare = {compare}
"""
