"""The chart of a result: how many times as fast as torch's parametrization, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from bench.normalizations import NEW
from bench.result import SUITES, Ratio, Result, mean_ratio, rows_of, speedup, values

COLORS = {"forward": "#8fbbe3", "forward + backward": "#1b4f91"}
INK, FAINT, GRID, WHISKER = "#1f2328", "#656d76", "#dde2e7", "#8b949e"
MEAN = "geometric mean"
THICKNESS = 0.38  # of a bar, where a line is 1 high
TOP = 0.8  # inches for the title and the legend


class Line(NamedTuple):
    """A line of the chart; without a case it is the heading of its suite."""

    suite: str
    case: str


def lines_of(result: Result) -> list[Line]:
    """From the top: each suite's heading, its cases, and their geometric mean."""
    lines = []
    for suite in SUITES:
        cases = values(rows_of(result, suite), "case")
        lines += [Line(suite, case) for case in ("", *cases, MEAN)] if cases else []
    return lines


def speedups(result: Result, dtype: str, direction: str) -> dict[Line, Ratio]:
    """What the bars show. A mean has no quartiles: its ratio stands for them."""
    measured: dict[Line, Ratio] = {}
    for suite in SUITES:
        rows = [row for row in rows_of(result, suite, direction) if row["dtype"] == dtype]
        each = {Line(suite, row["case"]): speedup(row) for row in rows}
        measured |= {line: ratio for line, ratio in each.items() if ratio}
        mean = mean_ratio(rows, NEW)
        if mean:
            measured[Line(suite, MEAN)] = Ratio(mean, mean, mean)
    return measured


def bars(axes: Axes, lines: list[Line], measured: dict[Line, Ratio], direction: str) -> None:
    """From 1 on a logarithmic axis: half as fast reaches as far left as twice as fast right."""
    offset = (list(COLORS).index(direction) - (len(COLORS) - 1) / 2) * THICKNESS
    for line, (low, middle, high) in measured.items():
        place = lines.index(line) + offset
        axes.barh(place, middle - 1, THICKNESS, left=1, color=COLORS[direction], zorder=2)
        axes.plot([low, high], [place, place], color=WHISKER, linewidth=1, zorder=3)
        side = 1 if middle >= 1 else -1
        axes.annotate(
            f"{middle:.2f}",
            (max(1, middle, high) if side > 0 else min(1, middle, low), place),
            xytext=(3 * side, 0),
            textcoords="offset points",
            ha="left" if side > 0 else "right",
            va="center_baseline",
            fontsize=7,
            fontweight="bold" if line.case == MEAN else "normal",
            color=INK,
        )


def style(axes: Axes, lines: list[Line], span: tuple[float, float]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xlim(*span)
    axes.xaxis.set_major_locator(LogLocator(base=2))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda x, _: f"{x:g}×" if x >= 1 else f"1/{1 / x:g}×")
    )
    axes.tick_params(length=0, labelsize=8, labelcolor=FAINT)
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.grid(axis="x", color=GRID, linewidth=0.8, zorder=0)
    axes.axvline(1, color=INK, linewidth=1, zorder=4)
    axes.spines[:].set_visible(False)


def name_lines(axes: Axes, lines: list[Line]) -> None:
    axes.set_yticks(range(len(lines)), [line.case or SUITES[line.suite] for line in lines])
    axes.tick_params(axis="y", labelcolor=INK)
    for label, line in zip(axes.get_yticklabels(), lines, strict=True):
        label.set_fontweight("bold" if line.case in ("", MEAN) else "normal")


def title(figure: Figure, result: Result) -> None:
    """Above the panels, in the `TOP` inches that the layout leaves free."""
    height = figure.get_figheight()
    about = (
        f"{result['device']} · torch {result['torch']} · triton {result['triton']} · "
        f"snorm_triton {result['snorm_triton']} · {result['datetime'][:10]}"
    )
    heading = "Speed of snorm_triton over torch.nn.utils.parametrizations"
    figure.text(
        0.012, 1 - 0.10 / height, heading, va="top", fontsize=11.5, weight="bold", color=INK
    )
    figure.text(0.012, 1 - 0.36 / height, about, va="top", fontsize=8.5, color=FAINT)
    figure.legend(
        handles=[Patch(color=color, label=name) for name, color in COLORS.items()],
        loc="upper left",
        bbox_to_anchor=(0.012, 1 - 0.6 / height),
        borderpad=0,
        borderaxespad=0,
        ncols=len(COLORS),
        frameon=False,
        fontsize=8.5,
        labelcolor=INK,
    )


def figure_of(result: Result) -> Figure:
    """A panel for each dtype. Bars are ratios of medians, thin lines the quartiles by round.

    The result must hold a layer or a model.
    """
    lines = lines_of(result)
    dtypes = values([row for row in result["rows"] if row["suite"] in SUITES], "dtype")
    shown = {
        (dtype, direction): speedups(result, dtype, direction)
        for dtype in dtypes
        for direction in COLORS
    }
    ratios = [ratio for measured in shown.values() for ratio in measured.values()]
    # The figures at the ends of the bars need the room of a factor.
    room = 1.3 ** (1 + len(dtypes))
    span = min([1, *(r.low for r in ratios)]) / room, max([1, *(r.high for r in ratios)]) * room
    height = TOP + 0.3 + 0.32 * len(lines)
    layout = ConstrainedLayoutEngine(rect=(0, 0, 1, 1 - TOP / height))
    figure = Figure(figsize=(8.6, height), layout=layout)
    grid = figure.subplots(1, len(dtypes), sharey=True, squeeze=False)
    for axes, dtype in zip(grid[0], dtypes, strict=True):
        for direction in COLORS:
            bars(axes, lines, shown[dtype, direction], direction)
        style(axes, lines, span)
        axes.set_title(dtype, fontsize=9, fontweight="bold", color=FAINT, loc="left")
    name_lines(grid[0][0], lines)
    title(figure, result)
    return figure


def draw(result: Result, path: Path) -> None:
    figure_of(result).savefig(path, dpi=200)
