"""The chart of a result: how many times as fast as torch's parametrization, layer by layer."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from bench.result import Ratio, Result, Row, rows_of, speedup, values

COLORS = {"forward": "#8db7dd", "forward + backward": "#1d4f8c"}
INK, FAINT, GRID = "#24292f", "#6e7781", "#d8dee4"
HEADINGS = {"layer": "one weight", "model": "all weights of a model"}
BAR = 0.38  # height, where a row is 1 high


def rows_from_top(result: Result) -> list[tuple[str, str]]:
    """(suite, case) of each row of the chart; a case of "" is the heading of its suite."""
    lines = []
    for suite in HEADINGS:
        cases = values(rows_of(result, suite), "case")
        lines += [(suite, case) for case in ("", *cases)] if cases else []
    return lines


def limits(speedups: list[Ratio]) -> tuple[float, float]:
    """Of the axis: all bars with their labels, and parity well inside."""
    return min(0.7, *(each.low / 1.5 for each in speedups)), max(
        2.0, *(each.high * 1.6 for each in speedups)
    )


def panel(axes: Axes, rows: list[Row], lines: list[tuple[str, str]]) -> None:
    """The bars of one dtype: they start at parity, and reach as far left as right for 1/2 and 2."""
    places = {line: place for place, line in enumerate(lines)}
    directions = [direction for direction in COLORS if direction in values(rows, "pass")]
    for row in rows:
        measured = speedup(row)
        if measured is None:
            continue
        low, middle, high = measured
        offset = directions.index(row["pass"]) - (len(directions) - 1) / 2
        place = places[row["suite"], row["case"]] + offset * BAR
        axes.barh(place, middle - 1, BAR, left=1, color=COLORS[row["pass"]], zorder=2)
        axes.plot([low, high], [place, place], color=INK, linewidth=0.8, zorder=3)
        faster = middle >= 1
        axes.annotate(
            f"{middle:.2f}",
            (max(high, middle) if faster else min(low, middle), place),
            xytext=(4 if faster else -4, 0),
            textcoords="offset points",
            ha="left" if faster else "right",
            va="center_baseline",
            fontsize=7.5,
            color=INK,
        )


def style(axes: Axes, lines: list[tuple[str, str]], span: tuple[float, float]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xlim(*span)
    axes.xaxis.set_major_locator(LogLocator(base=2))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}×"))
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.set_yticks(range(len(lines)), [case or HEADINGS[suite] for suite, case in lines])
    for label, (_, case) in zip(axes.get_yticklabels(), lines, strict=True):
        label.set(color=INK if case else FAINT, fontstyle="normal" if case else "italic")
    axes.tick_params(length=0, labelsize=8.5, labelcolor=INK)
    axes.grid(axis="x", color=GRID, linewidth=0.8, zorder=0)
    axes.axvline(1, color=INK, linewidth=1, zorder=4)
    axes.spines[:].set_visible(False)


def figure_of(result: Result) -> Figure:
    lines = rows_from_top(result)
    rows = [row for row in result["rows"] if row["suite"] in HEADINGS]
    dtypes = values(rows, "dtype")
    figure = Figure(figsize=(8.6, 1.3 + 0.36 * len(lines)), layout="constrained")
    grid = figure.subplots(1, len(dtypes), sharey=True, squeeze=False)
    span = limits([each for row in rows if (each := speedup(row))])
    for axes, dtype in zip(grid[0], dtypes, strict=True):
        panel(axes, [row for row in rows if row["dtype"] == dtype], lines)
        style(axes, lines, span)
        axes.set_title(dtype, fontsize=9, color=FAINT, loc="left")
    return figure


def draw(result: Result, path: Path) -> None:
    figure_of(result).savefig(path, dpi=200)
