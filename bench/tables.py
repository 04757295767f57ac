"""The Markdown of a result's rows: accesses of a layer and of a model, and training steps."""

from __future__ import annotations

from collections.abc import Callable

from bench.result import (
    COMPILED_SUITES,
    SUITES,
    Result,
    Row,
    ratio,
    rows_of,
    values,
    variant_names,
)
from bench.training import NONE
from bench.variants import COPY

TITLES = SUITES | COMPILED_SUITES


def duration(seconds: float) -> str:
    for scale, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"


def table(header: list[str], lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *lines))


def company(result: Result) -> str:
    """How busy others kept the processors meanwhile: threads that wait for one skew every time."""
    used = [row["cpus_used_by_others"] for row in result["rows"]]
    if not used or None in used:
        return ""
    processors = result["processors"]
    line = f"Other processes used up to {max(0.0, *used):.1f} of {processors} processors meanwhile."
    if max(used) > 0.2 * processors:
        line += " **The machine was too busy for these times to mean anything: measure again.**"
    return line + "\n"


def variant_table(rows: list[Row], columns: list[str], cell: Callable[[Row, str], str]) -> str:
    """`columns` of the row itself, then a column for each variant that has anything to show."""
    cells = {name: [cell(row, name) for row in rows] for name in variant_names(rows)}
    shown = {name: column for name, column in cells.items() if any(column)}
    lines = [
        [*(row[column] for column in columns), *(column[place] for column in shown.values())]
        for place, row in enumerate(rows)
    ]
    return table([*columns, *shown], lines)


def time_cell(row: Row, name: str) -> str:
    if name in row["errors"]:
        return "failed (below)"
    of_baseline = ratio(row, name)
    if of_baseline is None:
        return ""
    time = duration(row["variants"][name]["median"])
    if name == row["baseline"]:
        reached = row.get("bandwidth")
        bandwidth = "" if reached is None else f"; {reached:.0%} of the bandwidth"
        return f"**{time}** ({1 / row['variants'][COPY]['ratio']:.2f} copies{bandwidth})"
    low, middle, high = of_baseline
    return f"{time} ({middle:.2f}; {low:.2f} to {high:.2f})"


def memory_cell(row: Row, name: str) -> str:
    if name == COPY or name not in row["memory"]:
        return ""
    memory = row["memory"][name]
    count = f"{memory['allocated']:.2f}" if "model" in row["suite"] else memory["allocations"]
    return f"{count} ({memory['peak'] - 1:.2f})"


def overhead_cell(row: Row, name: str) -> str:
    of_baseline = ratio(row, name)
    if name == NONE or of_baseline is None:
        return "failed (below)" if name in row["errors"] else ""
    low, middle, high = (100 * (each - 1) for each in of_baseline)
    memory = row["memory"][name]["peak"] - row["memory"][NONE]["peak"]
    return f"{middle:+.1f} % ({low:+.1f} to {high:+.1f}); {memory:+.2f}"


def access_tables(result: Result, suite: str) -> list[str]:
    """Times, then memory, of a forward pass and of a forward and a backward pass."""
    sections = []
    is_model = "model" in suite
    counted = "All that is allocated" if is_model else "Allocations as large as the weight"
    for direction in values(rows_of(result, suite), "pass"):
        rows = rows_of(result, suite, direction)
        times = variant_table(rows, ["case", "dtype", "backend"], time_cell)
        memory = variant_table(rows, ["case", "dtype"], memory_cell)
        gradients = " (the gradients among it)" if "backward" in direction else ""
        sections.append(
            f"""## {TITLES[suite]}, {direction}

{times}

{counted} in one such access, and in brackets the most held at once beyond the normalized \
weights{gradients}, both in units of the weights. Where a layer has \
one output, a vector is as large as the weight:

{memory}
"""
        )
    return sections


def training_table(result: Result) -> str:
    rows = rows_of(result, "training")
    if not rows:
        return ""
    steps = [{**row, NONE: duration(row["variants"][NONE]["median"])} for row in rows]
    return f"""## A training step of the SN-ResNet GAN

An update of the discriminator and one of the generator, float32, in eager mode. What each \
normalization of the discriminator adds to the time of the step, with the quartiles of the rounds, \
and to the most memory held at once, in units of the normalized weights.

{variant_table(steps, ["case", NONE], overhead_cell)}
"""
