"""What a model trains on: a site's preprocessed rows, who each row belongs to, batches by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from fedward.client.cohort import Cohort
from fedward.common.preprocess import Transform
from fedward.common.table import ImageStack


class Inputs(Protocol):
    """Model inputs that can be read a batch at a time."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example, without the batch dimension."""
        ...

    def __len__(self) -> int: ...

    def take(self, rows: NDArray[np.int64]) -> torch.Tensor:
        """float32 `[len(rows), *shape]`."""
        ...


@dataclass(frozen=True)
class MatrixInputs:
    """Tabular inputs held in memory: float32 `[rows, features]`."""

    values: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """`(features,)`."""
        return tuple(self.values.shape[1:])

    def __len__(self) -> int:
        return len(self.values)

    def take(self, rows: NDArray[np.int64]) -> torch.Tensor:
        """The given rows, copied."""
        return self.values[torch.from_numpy(rows)]


@dataclass(frozen=True)
class ImageInputs:
    """Image inputs, converted when a batch is read, so that pixels may stay on disk.

    `mean` and `deviation` are per channel, for pixels scaled to [0, 1].
    """

    stack: ImageStack
    mean: NDArray[np.float32]
    deviation: NDArray[np.float32]

    @property
    def shape(self) -> tuple[int, ...]:
        """`(channels, height, width)`."""
        height, width, channels = self.stack.pixels.shape[1:]
        return (channels, height, width)

    def __len__(self) -> int:
        return len(self.stack)

    def take(self, rows: NDArray[np.int64]) -> torch.Tensor:
        """The given images, scaled, standardised, channels first."""
        pixels = self.stack.pixels[self.stack.rows[rows]].astype(np.float32) / 255.0
        standard = (pixels - self.mean) / self.deviation
        return torch.from_numpy(np.ascontiguousarray(standard.transpose(0, 3, 1, 2)))


@dataclass(frozen=True)
class Dataset:
    """Rows of one site, ready for a model.

    Attributes:
        inputs: the model's inputs, one example per row.
        target: float32 `[rows]`: class index or regression value.
        patient: int64 `[rows]`: which patient a row belongs to, 0 … patients - 1.
    """

    inputs: Inputs
    target: torch.Tensor
    patient: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.target)

    @property
    def patients(self) -> int:
        """Number of patients: private, never logged and never sent."""
        return int(self.patient.max()) + 1 if len(self.patient) else 0

    def batch(self, rows: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs `[batch, *shape]` and targets `[batch]` of the given rows."""
        return self.inputs.take(rows), self.target[torch.from_numpy(rows)]


@dataclass(frozen=True)
class JoinedInputs:
    """Several inputs of one shape, end to end; nothing is copied before a batch is read."""

    parts: tuple[Inputs, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return self.parts[0].shape

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def take(self, rows: NDArray[np.int64]) -> torch.Tensor:
        """The given rows, in the given order."""
        starts = np.cumsum([0, *(len(part) for part in self.parts)])
        owner = np.searchsorted(starts, rows, side="right") - 1
        batch = torch.empty((len(rows), *self.shape))
        for index in np.unique(owner):
            here = np.flatnonzero(owner == index)
            batch[torch.from_numpy(here)] = self.parts[index].take(rows[here] - starts[index])
        return batch


def to_dataset(cohort: Cohort, transform: Transform) -> Dataset:
    """A cohort's rows as the model sees them.

    Raises:
        DataError: a value cannot be transformed; see `Transform.apply`.
    """
    features = cohort.features
    inputs: Inputs
    if isinstance(features, ImageStack):
        inputs = ImageInputs(features, transform.image_mean, transform.image_deviation)
    else:
        inputs = MatrixInputs(torch.from_numpy(transform.apply(features)))
    return Dataset(inputs, torch.from_numpy(cohort.target), cohort.patient)


def join(datasets: Sequence[Dataset]) -> Dataset:
    """Several datasets as one; their patients are different people and get numbers of their own."""
    if len(datasets) == 1:
        return datasets[0]
    offsets = np.cumsum([0, *(dataset.patients for dataset in datasets)])
    return Dataset(
        inputs=_joined([dataset.inputs for dataset in datasets]),
        target=torch.cat([dataset.target for dataset in datasets]),
        patient=np.concatenate(
            [dataset.patient + offset for dataset, offset in zip(datasets, offsets, strict=False)]
        ),
    )


def _joined(parts: Sequence[Inputs]) -> Inputs:
    """Tables are small and read often: one copy. Pictures stay where they are."""
    tables = [part.values for part in parts if isinstance(part, MatrixInputs)]
    if len(tables) == len(parts):
        return MatrixInputs(torch.cat(tables))
    return JoinedInputs(tuple(parts))
