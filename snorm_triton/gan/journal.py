"""What a run writes down as it goes: rows of metrics.csv, pictures, events for TensorBoard."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .classifier import Classifier
from .config import TrainingConfig
from .datasets import ImageSet, as_bytes
from .metrics import MetricsFile, Record, read_metrics
from .pictures import draw_samples, save_grid, tile
from .sigma_picture import draw_sigma
from .singular_values import top_singular_values
from .trainer import Losses, Trainer

ROWS, COLUMNS = 8, 10
JUDGED = 500
SNAPSHOTS = (0.02, 0.05, 0.15, 0.4, 1.0)
"""The parts of the training after which samples are kept for samples.png."""


class Journal:
    """The journal of a run of `trainer`, in `folder`, which only the first rank writes.

    Samples are of the same noise throughout, and where the networks take labels a class a column.
    """

    def __init__(self, trainer: Trainer, data: ImageSet, folder: Path) -> None:
        self._trainer, self._data, self._folder = trainer, data, folder
        self.last_record: Record | None = None
        self.snapshots: dict[int, Tensor] = {}
        self._sums = torch.zeros(2, dtype=torch.float64, device=trainer.device)
        self._count = 0
        config = trainer.config
        self._classes = data.classes
        self._columns = min(COLUMNS, len(self._classes)) if config.conditional else COLUMNS
        random = torch.Generator().manual_seed(config.seed + 1)
        self._shown = self._inputs(ROWS * self._columns, self._classes[: self._columns], random)
        self._judged = self._inputs(JUDGED, self._classes, random)
        self.classifier: Classifier | None = None

    def _inputs(
        self, count: int, classes: Tensor, random: torch.Generator
    ) -> tuple[Tensor, Tensor | None]:
        z = torch.randn(count, self._trainer.config.z_dim, generator=random)
        y = classes.repeat(-(-count // len(classes)))[:count]
        return z, y if self._trainer.config.conditional else None

    def open(self) -> None:
        """Begin to write, at the step where the trainer is; on the first rank alone."""
        config = self._trainer.config
        if config.evaluate:
            self.classifier = Classifier(self._data)
        self._metrics = MetricsFile(self._folder / "metrics.csv", self._trainer.step)
        (self._folder / "samples").mkdir(exist_ok=True)
        self._events = None
        if config.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            folder = self._folder / "tensorboard"
            self._events = SummaryWriter(folder, purge_step=self._trainer.step + 1)

    def add(self, losses: Losses) -> None:
        """Take in the step that the trainer has just made."""
        trainer, config = self._trainer, self._trainer.config
        self._sums += torch.stack(losses)
        self._count += 1
        step, last = trainer.step, trainer.config.steps or 0
        if step % (config.record_every or 1) == 0 or step in (1, last):
            means = (trainer.ranks.mean(self._sums) / self._count).tolist()
            self._sums.zero_()
            self._count = 0
            if trainer.ranks.is_first:
                self._record(*means)
        if trainer.ranks.is_first:
            self._keep_pictures(step, last)

    def _record(self, discriminator_loss: float, generator_loss: float) -> None:
        record = Record(
            self._trainer.step,
            discriminator_loss,
            generator_loss,
            self._quality(),
            top_singular_values(self._trainer.discriminator.network),
        )
        self._metrics.add(record)
        self.last_record = record
        if self._events is not None:
            for name, value in record.row().items():
                self._events.add_scalar(name.replace("sigma ", "sigma/"), value, record.step)

    def _quality(self) -> dict[str, float]:
        if self.classifier is None:
            return {}
        z, y = self._judged
        images = self._trainer.sample(z, y)
        agreement = {} if y is None else {"agreement": self.classifier.agreement(images, y)}
        return agreement | {"frechet_distance": self.classifier.distance(images)}

    def _keep_pictures(self, step: int, last: int) -> None:
        snapshot = step in {max(1, round(part * last)) for part in SNAPSHOTS}
        picture = step % self._trainer.config.picture_every == 0 or step == last
        if not (snapshot or picture):
            return
        images = as_bytes(self._trainer.sample(*self._shown))
        if snapshot:
            self.snapshots[step] = images
        if picture:
            save_grid(self._folder / "samples" / f"step-{step:07d}.png", images, self._columns)
            if self._events is not None:
                grid = tile(images, self._columns)
                self._events.add_image("samples", grid, step, dataformats="HWC")

    def draw(self) -> None:
        """samples.png and sigma.png, as far as the run has come."""
        if self.snapshots:
            count = ROWS * self._columns
            real = self._data.images[torch.arange(count) % len(self._data)]
            if self._trainer.config.conditional:
                real = self._data.rows(ROWS, self._classes[: self._columns])
            path = self._folder / "samples.png"
            draw_samples(path, real, self.snapshots, columns=self._columns)
        metrics = read_metrics(self._folder / "metrics.csv")
        if metrics:
            spectral = self._trainer.config.normalization in ("ours", "torch", "hook")
            draw_sigma(self._folder / "sigma.png", metrics, spectral=spectral)

    def close(self) -> None:
        """Write what TensorBoard's writer still holds."""
        if self._events is not None:
            self._events.close()

    def state_dict(self) -> dict[str, Any]:
        """What is not in a file yet; every rank has to ask for it."""
        self._sums = self._trainer.ranks.mean(self._sums)
        return {"sums": self._sums.cpu(), "count": self._count, "snapshots": dict(self.snapshots)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was; before `open`."""
        self._sums = state["sums"].to(self._trainer.device)
        self._count, self.snapshots = state["count"], dict(state["snapshots"])


def check_tensorboard(config: TrainingConfig) -> None:
    """Raise ValueError where event files are asked for and nothing can write them."""
    if config.tensorboard and find_spec("tensorboard") is None:
        raise ValueError("tensorboard: the package is missing: pip install tensorboard")
