"""What a comparison came to, as six groups of bars and as a table."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from .comparison import NORMALIZATIONS, Cell
from .pictures import save_figure
from .presets import ROBUSTNESS

COLORS = {"none": "0.65", "weight-norm": "C1", "ours": "C0"}
LABELS = {"none": "no normalization", "weight-norm": "weight norm", "ours": "spectral norm, ours"}
WIDTH = 0.27

Distances = Mapping[Cell, float]


def draw_comparison(path: Path, distances: Distances, floor: float, title: str) -> None:
    """Bars of the Frechet distances on a logarithmic axis, their values on top.

    A bar that ends at `floor`, the distance of the real images from themselves, stands for a run
    that diverged, and without a word for one that is not finished.
    """
    figure = Figure(figsize=(12, 6.5), layout="constrained")
    axes = figure.add_subplot()
    for number, name in enumerate(NORMALIZATIONS):
        cells = [Cell(preset, name) for preset in ROBUSTNESS]
        places = [group + (number - 1) * WIDTH for group in range(len(cells))]
        values = [distances.get(cell, math.nan) for cell in cells]
        heights = [value if math.isfinite(value) else floor for value in values]
        axes.bar(places, heights, WIDTH * 0.94, color=COLORS[name], label=LABELS[name])
        for place, value, height in zip(places, values, heights, strict=True):
            axes.annotate(_short(value), (place, height), ha="center", va="bottom", fontsize=9)
    axes.axhline(floor, color="black", linewidth=0.8, linestyle="--", label="real, half from half")
    axes.set_yscale("log")
    axes.set_xticks(range(len(ROBUSTNESS)), [_describe(preset) for preset in ROBUSTNESS])
    axes.set_ylabel("Fréchet distance in a classifier's features (lower is better)")
    axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    save_figure(path, figure)


def table_of(distances: Distances, floor: float, title: str) -> str:
    """The same in Markdown."""
    header = ["preset", "learning rate", "betas", "D steps", *(LABELS[n] for n in NORMALIZATIONS)]
    rows = [
        [
            preset,
            f"{options['learning_rate']:g}",
            " ".join(f"{beta:g}" for beta in options["betas"]),
            str(options["discriminator_steps"]),
            *(_short(distances.get(Cell(preset, name), math.nan)) for name in NORMALIZATIONS),
        ]
        for preset, options in ROBUSTNESS.items()
    ]
    lines = [_row(header), _row(["---"] * len(header)), *map(_row, rows)]
    return f"{title}\n\n" + "\n".join(lines) + f"\n\nReal digits, half from half: {floor:.3g}\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _short(value: float) -> str:
    return {math.inf: "diverged"}.get(value, "" if math.isnan(value) else f"{value:.3g}")


def _describe(preset: str) -> str:
    options = ROBUSTNESS[preset]
    beta1, beta2 = options["betas"]
    rate, steps = options["learning_rate"], options["discriminator_steps"]
    return f"{preset}\nlr {rate:g}\nβ {beta1:g}, {beta2:g}\nD steps {steps}"
