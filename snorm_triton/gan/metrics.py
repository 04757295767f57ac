"""metrics.csv: a row every so often, and what becomes of the rows when a run is resumed."""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..checkpoints.placing import put_bytes
from .singular_values import TopSingularValues


@dataclass(frozen=True)
class Record:
    """A row: mean losses since the row before, the rest as measured at `step`.

    `quality` has `agreement`, the share of samples that a classifier of the real images takes for
    the class that they were asked for, and `frechet_distance` in that classifier's features, where
    they are measured.
    """

    step: int
    discriminator_loss: float
    generator_loss: float
    quality: Mapping[str, float]
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
            **self.quality,
            "largest_sigma": self.largest_sigma,
            **{f"sigma {layer}": values.normalized for layer, values in self.sigma.items()},
            **{f"raw sigma {layer}": values.raw for layer, values in self.sigma.items()},
        }


class MetricsFile:
    """The file of a run that is at `step`; what a killed run wrote beyond it is dropped."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        kept = _rows_up_to(step, path) if step and path.exists() else ""
        put_bytes(path, kept.encode())

    def add(self, record: Record) -> None:
        """Append a row, and before the first one the header."""
        row = record.row()
        text = io.StringIO()
        writer = csv.DictWriter(text, row)
        if not self.path.stat().st_size:
            writer.writeheader()
        writer.writerow(row)
        with self.path.open("ab") as file:
            file.write(text.getvalue().encode())


def _rows_up_to(step: int, path: Path) -> str:
    """The header and the complete rows up to a step, as they are."""
    header, *rows = path.read_bytes().decode().splitlines(keepends=True) or [""]
    kept = [row for row in rows if row.endswith("\n") and int(row.split(",")[0]) <= step]
    return header + "".join(kept) if header.endswith("\n") else ""


def read_metrics(path: Path) -> dict[str, list[float]]:
    """The columns of a metrics.csv."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows] for name in (rows[0] if rows else ())}
