"""What a training run leaves behind: one record every so often, and samples of the same noise."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from .data import NUM_CLASSES, DigitReader
from .singular_values import TopSingularValues, top_singular_values
from .training import Losses, Trainer

SAMPLES_PER_CLASS = 40
ROWS_SHOWN = 8
RECORDS = 80
SNAPSHOTS = (0.02, 0.05, 0.15, 0.4, 1.0)
"""The parts of the training after which samples are kept."""


@dataclass(frozen=True)
class Record:
    """A row of metrics.csv: mean losses since the row before, the rest as measured at `step`.

    `agreement` is the share of generated digits that a classifier of the real ones reads as the
    class they were asked for.
    """

    step: int
    discriminator_loss: float
    generator_loss: float
    agreement: float
    sigma: Mapping[str, TopSingularValues]

    @property
    def largest_sigma(self) -> float:
        """The largest singular value of any weight in use."""
        return max(values.normalized for values in self.sigma.values())

    def row(self) -> dict[str, float]:
        """The columns of metrics.csv, in order."""
        return {
            "step": self.step,
            "discriminator_loss": self.discriminator_loss,
            "generator_loss": self.generator_loss,
            "agreement": self.agreement,
            "largest_sigma": self.largest_sigma,
            **{f"sigma {layer}": values.normalized for layer, values in self.sigma.items()},
            **{f"raw sigma {layer}": values.raw for layer, values in self.sigma.items()},
        }


class History:
    """The records and snapshots of one run of `trainer` over `steps` steps."""

    def __init__(self, trainer: Trainer, reader: DigitReader, steps: int) -> None:
        self.records: list[Record] = []
        self.snapshots: dict[int, Tensor] = {}
        self._trainer, self._reader, self._last_step = trainer, reader, steps
        self._snapshot_steps = {max(1, round(part * steps)) for part in SNAPSHOTS}
        self._record_every = max(1, steps // RECORDS)
        self._losses: list[Losses] = []
        self._y = torch.arange(NUM_CLASSES).repeat(SAMPLES_PER_CLASS).to(trainer.labels)
        self._z = trainer.noise(len(self._y))

    def add(self, step: int, losses: Losses) -> None:
        """Take in a finished step, counted from 1."""
        self._losses.append(losses)
        if step in self._snapshot_steps:
            self.snapshots[step] = self._samples()[: ROWS_SHOWN * NUM_CLASSES]
        if step % self._record_every == 0 or step in (1, self._last_step):
            self.records.append(self._measure(step))
            self._losses.clear()

    def _samples(self) -> Tensor:
        return self._trainer.sample(self._z, self._y).cpu()

    def _measure(self, step: int) -> Record:
        return Record(
            step,
            fmean(losses.discriminator for losses in self._losses),
            fmean(losses.generator for losses in self._losses),
            self._reader.agreement(self._samples(), self._y.cpu()),
            top_singular_values(self._trainer.discriminator),
        )


def write_csv(path: Path, records: Sequence[Record]) -> None:
    """The records as a table with a header."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, records[0].row())
        writer.writeheader()
        writer.writerows(record.row() for record in records)
