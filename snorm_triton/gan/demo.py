"""The demo: train, watch the singular values, write samples.png, sigma.png and metrics.csv."""

from pathlib import Path

import torch
from tqdm import tqdm

from .data import NUM_CLASSES, DigitReader, load_digits, rows_of_digits
from .history import ROWS_SHOWN, History, write_csv
from .pictures import draw_samples, draw_sigma
from .training import NORMALIZATIONS, Trainer, TrainingConfig


def run_demo(
    output: Path,
    config: TrainingConfig,
    *,
    normalization: str = "snorm",
    seed: int = 0,
    device: str = "cpu",
    progress: bool = True,
) -> History:
    """Train on the digits and write samples.png, sigma.png and metrics.csv into `output`.

    Seeds torch's global generators: on a CPU the same seed gives the same files. Raises ValueError
    for a normalization that is not one of `NORMALIZATIONS`, OSError where `output` is no folder.
    """
    if normalization not in NORMALIZATIONS:
        raise ValueError(
            f"normalization must be one of {', '.join(NORMALIZATIONS)}, got {normalization!r}"
        )
    output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    images, labels = load_digits()
    trainer = Trainer(images.to(device), labels.to(device), config, NORMALIZATIONS[normalization])
    history = History(trainer, DigitReader(images, labels), config.steps)
    with tqdm(range(1, config.steps + 1), unit="step", disable=not progress) as bar:
        for step in bar:
            losses = trainer.step()
            history.add(step, losses)
            bar.set_postfix(
                D=f"{losses.discriminator:.2f}",
                G=f"{losses.generator:+.2f}",
                max_sigma=f"{history.records[-1].largest_sigma:.3f}",
                refresh=False,
            )
    real = rows_of_digits(images, labels, ROWS_SHOWN)
    draw_samples(output / "samples.png", real, history.snapshots, columns=NUM_CLASSES)
    draw_sigma(
        output / "sigma.png",
        [record.step for record in history.records],
        [record.sigma for record in history.records],
    )
    write_csv(output / "metrics.csv", history.records)
    return history
