"""The singular values of a checkpoint's weights, drawn: a line of ticks for each weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from .values import Spectrum

RAW, NORMALIZED = "#b2552a", "#1f6f8b"
LONGEST_NAME = 40


def draw(file: IO[bytes], form: str, spectra: Sequence[Spectrum], title: str) -> None:
    """Draw all singular values of each weight, raw on the left, as they are used on the right.

    Args:
        file: what the picture is written to.
        form: one of matplotlib's, such as ``"png"`` or ``"svg"``.
        spectra: from above to below; at least one.
        title: what the checkpoint is called.
    """
    figure = Figure(figsize=(11, 1.6 + 0.32 * len(spectra)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for place, each in enumerate(spectra):
        _ticks(left, place, each.raw, RAW)
        if each.normalized is not None:
            _ticks(right, place, each.normalized, NORMALIZED)
        else:
            right.annotate("not known", (0.02, place), va="center", color="gray", fontsize=8)
    left.set_xscale("log")
    lowest, highest = left.get_xlim()
    left.set_xlim(left=max(lowest, 1e-3 * highest))  # what is next to nothing is not worth the room
    left.set_title("raw", loc="left", fontsize=10)
    right.set_title("as used", loc="left", fontsize=10)
    right.axvline(1, color="black", linewidth=0.8, zorder=0)
    right.set_xlim(left=0)
    left.set_yticks(range(len(spectra)), [_short(each.name) for each in spectra], fontsize=8)
    left.set_ylim(len(spectra) - 0.5, -0.5)
    for axes in (left, right):
        axes.set_xlabel("singular value", fontsize=9)
        axes.tick_params(axis="x", which="both", labelsize=8)
        axes.grid(axis="x", alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{title}: every singular value is a tick, the largest a dot", fontsize=11)
    figure.savefig(file, format=form, dpi=150)


def _ticks(axes: Axes, place: int, values: Tensor, color: str) -> None:
    shown = values[values > values[0] * 1e-6].tolist()  # of a zero, a logarithm shows nothing
    # Faint where they are many, so that their density is seen.
    faint = max(0.08, min(0.8, 30 / max(1, len(shown))))
    axes.plot(shown, [place] * len(shown), "|", color=color, alpha=faint, markersize=11)
    axes.plot(shown[:1], [place] * len(shown[:1]), "o", color=color, markersize=4)


def _short(name: str) -> str:
    name = name.replace("$", r"\$")  # which matplotlib takes for mathematics
    return name if len(name) <= LONGEST_NAME else "…" + name[1 - LONGEST_NAME :]
