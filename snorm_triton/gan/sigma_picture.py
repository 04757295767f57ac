"""The picture of the singular values over a training, from its metrics.csv."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .pictures import save_figure

LINES = 6
"""The most layers that are drawn: a reader tells no more lines apart."""

PAPER_BAND = (1.0, 1.05)
"""Where the paper's largest singular values stay (Miyato et al., arXiv 1802.05957)."""

Columns = Mapping[str, Sequence[float]]


def draw_sigma(path: Path, metrics: Columns, *, spectral: bool) -> None:
    """Above the raw weights' largest singular values, below those of the weights in use, by SVD.

    `metrics` are the columns of a metrics.csv. `spectral` says that the weights in use are the raw
    ones over sigma of the power iteration, which is drawn above, too.
    """
    layers = [name.removeprefix("raw sigma ") for name in metrics if name.startswith("raw sigma ")]
    chosen = spread(layers, LINES)
    figure = Figure(figsize=(13, 9), layout="constrained")
    above, below = figure.subplots(2, sharex=True)
    for number, layer in enumerate(chosen):
        raw, in_use = metrics[f"raw sigma {layer}"], metrics[f"sigma {layer}"]
        above.plot(metrics["step"], raw, color=f"C{number}", label=layer)
        below.plot(metrics["step"], in_use, color=f"C{number}")
        if spectral:
            estimate = [a / b if b else 0 for a, b in zip(raw, in_use, strict=True)]
            above.plot(metrics["step"], estimate, ".", color=f"C{number}", markersize=4)
    what = ": line by SVD, dots by power iteration" if spectral else ", by SVD"
    above.set_title(f"raw weight{what}")
    below.set_title("weight in use, by SVD")
    below.set_xlabel("generator step")
    for axes in (above, below):
        axes.set_ylabel("largest singular value")
    _draw_range(below, metrics, layers)
    if spectral:
        below.axhspan(*PAPER_BAND, color="0.5", alpha=0.25, label="1 to 1.05, as in the paper")
        largest = max(max(metrics[f"sigma {layer}"]) for layer in layers)
        below.set_ylim(0.95, min(max(1.12, 1.02 * largest), 2))
    below.legend(loc="upper right")
    title = "layer" if len(chosen) == len(layers) else f"{len(chosen)} of {len(layers)} layers"
    figure.legend(*above.get_legend_handles_labels(), loc="outside right upper", title=title)
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    save_figure(path, figure)


def spread(layers: Sequence[str], most: int) -> list[str]:
    """At most `most` of the layers, evenly from the first to the last."""
    if len(layers) <= most:
        return list(layers)
    return [layers[round(place * (len(layers) - 1) / (most - 1))] for place in range(most)]


def _draw_range(axes: Axes, metrics: Columns, layers: Sequence[str]) -> None:
    """Shade from the smallest to the largest of all layers, those that have no line included."""
    rows = list(zip(*(metrics[f"sigma {layer}"] for layer in layers), strict=True))
    lowest, highest = [min(row) for row in rows], [max(row) for row in rows]
    axes.fill_between(
        metrics["step"], lowest, highest, color="C0", alpha=0.12, linewidth=0, label="all layers"
    )
