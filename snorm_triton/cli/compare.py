"""`compare`: how robust training is with each normalization, over the presets A to F."""

import argparse
import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from .training import PACKAGES, Status, check_folder, in_a_sentence, missing_packages

STEPS = 1200


def add_to(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    parser = add_parser(
        "compare",
        help="train on digits with presets A to F, with no normalization, weight norm and ours",
        description="Writes comparison.png and .md, and a folder for each of the 18 runs. "
        "What is finished there is not trained again; what was interrupted goes on.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--output", type=Path, default=Path("compare-output"), help="folder to write to"
    )
    parser.add_argument("--steps", type=int, default=STEPS, help="generator steps of each run")
    parser.add_argument("--seed", type=int, default=0, help="of every run")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time, of a thread each"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> Status:
    """Compare; a sentence where it cannot be done."""
    packages = {"sklearn": "scikit-learn", **PACKAGES}
    return missing_packages(packages) or in_a_sentence(lambda: _compare(arguments))


def _compare(arguments: argparse.Namespace) -> Status:
    from tqdm import tqdm

    from ..gan.classifier import Classifier
    from ..gan.comparison import CELLS, distance_of_halves, distance_of_run, train_cells
    from ..gan.comparison_picture import draw_comparison, table_of
    from ..gan.datasets import load

    for name in ("steps", "jobs"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(arguments, name)}")
    folder: Path = arguments.output
    check_folder(folder)
    data = load("digits")
    classifier = Classifier(data)
    floor = distance_of_halves(data, classifier)
    title = (
        f"SN-ResNet on the 8x8 digits, {arguments.steps} generator steps, seed {arguments.seed}, "
        f"non-saturating loss, torch {version('torch')}"
    )
    distances = {}
    cells = train_cells(folder, arguments.steps, arguments.seed, arguments.jobs)
    try:
        for cell in tqdm(cells, "runs", len(CELLS), unit="run", disable=None):
            distances[cell] = distance_of_run(cell.folder(folder), data, classifier)
            draw_comparison(folder / "comparison.png", distances, floor, title)
    except KeyboardInterrupt:
        cells.close()  # which waits until each run has saved itself
        print(f"interrupted, saved: compare --output {folder} goes on")
        return 130
    table = table_of(distances, floor, title)
    (folder / "comparison.md").write_text(table, encoding="utf-8")
    print(f"{table}\ncomparison.png and comparison.md are in {folder.resolve()}")
    return None
