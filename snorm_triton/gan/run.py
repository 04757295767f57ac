"""A run from its first step, or from a checkpoint, to its last, to Ctrl-C, or to an error."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..checkpoints.placing import put_bytes
from .checkpoint import Checkpoint, save_checkpoint
from .config import TrainingConfig
from .config_files import to_toml
from .datasets import ImageSet
from .interruption import Interruption
from .journal import Journal, check_tensorboard
from .metrics import Record
from .ranks import Ranks
from .trainer import Trainer


@dataclass(frozen=True)
class Outcome:
    """How a run ended: at which step, with which last row, and by which signal, 0 for none."""

    step: int
    record: Record | None
    steps_per_second: float
    signal: int


class Run:
    """A training in a folder, which it makes: config.toml, metrics.csv, checkpoint.pt and pictures.

    `config` and `data` are those of `fit_to_data`. With a `checkpoint` it goes on where that was:
    on a CPU, with as many ranks, the rest comes out bit for bit as if it had never ended. Raises
    ValueError for what does not fit, OSError where the folder cannot be written.
    """

    def __init__(
        self,
        config: TrainingConfig,
        data: ImageSet,
        folder: Path,
        *,
        checkpoint: Checkpoint | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        check_tensorboard(config)
        self.config, self.data, self.folder = config, data, folder
        torch.set_num_threads(config.threads or torch.get_num_threads())
        self.trainer = Trainer(config, data, ranks)
        self.journal = Journal(self.trainer, data, folder)
        if checkpoint is not None:
            checkpoint.check_config(config)
            checkpoint.check_data(data)
            self._load(checkpoint)

    def _load(self, checkpoint: Checkpoint) -> None:
        try:
            self.trainer.load_state_dict(checkpoint.state["trainer"])
            self.journal.load_state_dict(checkpoint.state["journal"])
        except (RuntimeError, KeyError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"resume: {checkpoint.path} is of another model: {reason}") from error

    def train(self, *, progress: bool = True) -> Outcome:
        """Train to the last step, or to the first SIGINT or SIGTERM, and save either way."""
        is_first = self.trainer.ranks.is_first
        if is_first:
            self.folder.mkdir(parents=True, exist_ok=True)
            put_bytes(self.folder / "config.toml", to_toml(self.config).encode())
            self.journal.open()
        if not self.trainer.step:
            self.save()  # so that there always is something to go on from
        first, start = self.trainer.step, time.perf_counter()
        with Interruption() as interruption:
            stopped_by = self._loop(interruption, progress and is_first)
            speed = (self.trainer.step - first) / (time.perf_counter() - start)
            if is_first:
                self.journal.draw()
                self.journal.close()
        return Outcome(self.trainer.step, self.journal.last_record, speed, stopped_by)

    def _loop(self, interruption: Interruption, progress: bool) -> int:
        last = self.config.steps or 0
        stopped_by = 0
        options: Any = {"unit": "step", "disable": None if progress else True}
        with tqdm(total=last, initial=self.trainer.step, **options) as bar:
            while self.trainer.step < last and not stopped_by:
                self.journal.add(self.trainer.advance())
                bar.update()
                self._tell(bar, progress)
                stopped_by = self.trainer.ranks.largest(interruption.signal)
                step = self.trainer.step
                if step % self.config.checkpoint_every == 0 or step == last or stopped_by:
                    self.save()
        return stopped_by

    def _tell(self, bar: Any, progress: bool) -> None:
        """A new record beside the bar, or where there is no terminal as a line."""
        record = self.journal.last_record
        if record is None or record.step != self.trainer.step:
            return
        numbers = {
            "D": f"{record.discriminator_loss:.3f}",
            "G": f"{record.generator_loss:+.3f}",
            "max_sigma": f"{record.largest_sigma:.3f}",
            **{name: f"{value:.3g}" for name, value in record.quality.items()},
        }
        if not bar.disable:
            bar.set_postfix(numbers, refresh=False)
        elif progress:
            text = ", ".join(f"{name} {value}" for name, value in numbers.items())
            print(f"step {record.step}/{self.config.steps}: {text}", flush=True)

    def save(self) -> None:
        """The checkpoint, in place when it is complete; every rank has to call it."""
        journal = self.journal.state_dict()
        if self.trainer.ranks.is_first:
            state = {"trainer": self.trainer.state_dict(), "journal": journal}
            save_checkpoint(self.folder, self.config, self.data, state)
