"""Presets A to F with no normalization, weight norm and ours: the paper's robustness, in small.

Miyato et al., arXiv 1802.05957, Section 4.1 and Table 1.
"""

import math
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import torch

from .checkpoint import FILE, Checkpoint
from .classifier import Classifier
from .datasets import ImageSet
from .networks import build_generator
from .presets import ROBUSTNESS

NORMALIZATIONS = ("none", "weight-norm", "ours")
JUDGED = 2000
POLL_SECONDS = 0.2

FIXED = (
    *("--data", "digits", "--loss", "non-saturating", "--no-conditional", "--no-evaluate"),
    *("--ema-decay", "0", "--threads", "1", "--device", "cpu", "--checkpoint-every", "100"),
)
"""What every run has: the paper's loss, its plain generator, one thread."""


@dataclass(frozen=True)
class Cell:
    """One run of the comparison."""

    preset: str
    normalization: str

    def folder(self, parent: Path) -> Path:
        return parent / f"{self.preset}-{self.normalization}"


CELLS = [Cell(preset, name) for preset in ROBUSTNESS for name in NORMALIZATIONS]


def train_cells(parent: Path, steps: int, seed: int, jobs: int) -> Generator[Cell, None, None]:
    """Train every cell in a process of its own, `jobs` at a time; yield each that is finished.

    One that is finished already is not trained again, one that was interrupted goes on. At Ctrl-C,
    or when the iterator is closed, each run saves itself. Raises ValueError, with its last words,
    for a run that fails.
    """
    waiting = [cell for cell in CELLS if not _is_finished(cell, parent, steps)]
    yield from (cell for cell in CELLS if cell not in waiting)
    running: dict[Cell, subprocess.Popen[str]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                cell = waiting.pop(0)
                running[cell] = _start(cell, parent, steps, seed)
            for cell in [cell for cell, process in running.items() if process.poll() is not None]:
                _check(cell, running.pop(cell))
                yield cell
            time.sleep(POLL_SECONDS)
    finally:
        for process in running.values():
            process.send_signal(signal.SIGINT)
        for process in running.values():
            process.communicate()


def _is_finished(cell: Cell, parent: Path, steps: int) -> bool:
    folder = cell.folder(parent)
    return (folder / FILE).exists() and Checkpoint(folder).step == steps


def _start(cell: Cell, parent: Path, steps: int, seed: int) -> "subprocess.Popen[str]":
    """The run, out of reach of the terminal's Ctrl-C: a second one would end it unsaved."""
    folder = cell.folder(parent)
    options = ["--steps", str(steps), "--picture-every", str(steps), "--seed", str(seed)]
    if (folder / FILE).exists():
        options += ["--resume", str(folder)]
    else:
        options += ["--output", str(folder), "--preset", cell.preset, *FIXED]
        options += ["--normalization", cell.normalization]
    return subprocess.Popen(
        [sys.executable, "-m", "snorm_triton", "train", *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _check(cell: Cell, process: "subprocess.Popen[str]") -> None:
    _, said = process.communicate()
    if process.returncode:
        reason = (said.strip().splitlines() or [f"exit status {process.returncode}"])[-1]
        raise ValueError(f"{cell.preset} with {cell.normalization}: {reason}")


@torch.no_grad()
def distance_of_run(folder: Path, data: ImageSet, classifier: Classifier) -> float:
    """The Frechet distance of 2000 samples of a run from all real images.

    It is infinite where the generator makes images that are not finite.
    """
    checkpoint = Checkpoint(folder)
    generator = build_generator(checkpoint.config, data)
    generator.load_state_dict(checkpoint.state["trainer"]["generator"]["network"])
    random = torch.Generator().manual_seed(checkpoint.config.seed + 2)
    z = torch.randn(JUDGED, checkpoint.config.z_dim, generator=random)
    images = generator.eval()(z)
    return classifier.distance(images) if bool(images.isfinite().all()) else math.inf


def distance_of_halves(data: ImageSet, classifier: Classifier) -> float:
    """That of one half of the real images from the other: what sampling alone makes of it."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    return classifier.distance_between(*(data.images[half] for half in order.chunk(2)))
