"""The checkpoint of a run: one file, which torch.load(weights_only=True) takes."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..checkpoints.formats import TORCH, Contents
from ..checkpoints.placing import put_in_place
from .config import TrainingConfig
from .datasets import ImageSet

FILE = "checkpoint.pt"
FORMAT = "snorm_triton training 1"


def save_checkpoint(
    folder: Path, config: TrainingConfig, data: ImageSet, state: dict[str, Any]
) -> None:
    """Put `checkpoint.pt` into a folder when it is complete: a kill leaves the one before.

    Raises OSError where it cannot be written.
    """
    contents = {
        "format": FORMAT,
        "config": asdict(config),
        "data": description_of(data),
        "state": state,
    }
    put_in_place(folder / FILE, lambda file: TORCH.write(Contents(contents), file))


class Checkpoint:
    """A checkpoint that was read.

    Raises ValueError for a file that is no checkpoint of a training run, OSError for one that
    cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE if folder.is_dir() else folder
        if folder.is_dir() and not self.path.exists():
            raise ValueError(f"resume: {folder} holds no {FILE}")
        if not folder.exists():
            raise ValueError(f"resume: there is no folder {folder}")
        contents = TORCH.read(self.path).value
        if not isinstance(contents, dict) or contents.get("format") != FORMAT:
            raise ValueError(f"resume: {self.path} is no checkpoint of a training run")
        self._contents = contents
        self.config = TrainingConfig(**contents["config"])
        self.state: dict[str, Any] = contents["state"]

    @property
    def step(self) -> int:
        """How many steps its run has made."""
        step: int = self.state["trainer"]["step"]
        return step

    @property
    def folder(self) -> Path:
        """That of its run."""
        return self.path.parent

    def check_config(self, config: TrainingConfig) -> None:
        """Raise ValueError where `config` is not that of the run, but for what may change."""
        changed = config.changed_since(self.config)
        if changed is not None:
            raise ValueError(
                f"{changed}: {self.path} is of a run with {changed}="
                f"{getattr(self.config, changed)!r}, and not {getattr(config, changed)!r}"
            )
        if self.step > (config.steps or 0):
            raise ValueError(
                f"steps: {self.path} is at step {self.step}, and not at {config.steps} or before"
            )

    def check_data(self, data: ImageSet) -> None:
        """Raise ValueError where the images are not those of the run."""
        if description_of(data) != self._contents["data"]:
            raise ValueError(
                f"data: {self.path} is of a run on other images: "
                f"{self._contents['data']}, and not {description_of(data)}"
            )


def description_of(data: ImageSet) -> dict[str, int]:
    """What tells images apart: how many, their shape, and sums of pixels and labels."""
    channels, height, width = data.shape
    return {
        "images": len(data),
        "channels": channels,
        "height": height,
        "width": width,
        "classes": data.num_classes,
        "sum of pixels": int(data.images.sum()),
        "sum of labels": int(data.labels.sum()),
    }
