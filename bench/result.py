"""A result: what a run of the benchmarks measured, one row a benchmark, without its timings."""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any, NamedTuple

from bench.normalizations import NEW, SPECTRAL_NORM, WEIGHT_NORM

Row = dict[str, Any]
Result = dict[str, Any]

HEAD = (
    "device",
    "processors",
    "snorm_triton",
    "torch",
    "triton",
    "python",
    "SNORM_TRITON_BACKEND",
)


# What is compared with torch's parametrization; `training` is another suite.
SUITES = {"layer": "One weight", "model": "All weights of a model"}
# The same accesses, compiled and replayed from a graph.
COMPILED_SUITES = {
    "compiled layer": "One weight, compiled or captured",
    "compiled model": "All weights of a model, compiled or captured",
}


class Ratio(NamedTuple):
    """A ratio of medians, and the quartiles of the ratios round by round."""

    low: float
    middle: float
    high: float

    def inverse(self) -> Ratio:
        return Ratio(1 / self.high, 1 / self.middle, 1 / self.low)


def condense(run: dict[str, Any]) -> Result:
    """The result of a pytest-benchmark run; of the machine it names nothing but the device."""
    rows = [benchmark["extra_info"] for benchmark in run["benchmarks"]]
    if not rows:
        raise ValueError("the run holds no benchmark")
    commit = run.get("commit_info", {})
    return {
        "datetime": run["datetime"],
        "commit": commit.get("id") or "unknown",
        "uncommitted_changes": bool(commit.get("dirty")),
        **{key: rows[0][key] for key in HEAD},
        "rows": [{key: row[key] for key in row if key not in HEAD} for row in rows],
    }


def load(path: Path) -> Result:
    """From a pytest-benchmark JSON or from a saved result."""
    content = json.loads(path.read_text())
    return condense(content) if "benchmarks" in content else content


def pool(results: list[Result]) -> Result:
    """Runs of one tree on one device as one result: of each figure of a row the median over them.

    Where a result lies in memory, and whether its pages are fresh, differs from process to process
    more than from round to round. A row that some runs leave out is pooled over the others.
    """
    first = results[0]
    for result in results[1:]:
        for key in (*HEAD, "commit", "uncommitted_changes"):
            if result[key] != first[key]:
                raise ValueError(f"runs of different {key}: {first[key]!r} and {result[key]!r}")
    alike: dict[tuple[str, ...], list[Row]] = {}
    for row in (row for result in results for row in result["rows"]):
        key = tuple(row[column] for column in ("suite", "case", "dtype", "pass"))
        alike.setdefault(key, []).append(row)
    return {**first, "rows": [_pooled(rows) for rows in alike.values()]}


def _pooled(rows: list[Row]) -> Row:
    variants = {}
    for name in rows[0]["variants"]:
        timings = [row["variants"][name] for row in rows if name in row["variants"]]
        variants[name] = {
            key: median(timing[key] for timing in timings) for key in ("median", "ratio")
        }
        for key in ("quartiles", "ratio_quartiles"):
            ends = zip(*(timing[key] for timing in timings), strict=True)
            variants[name][key] = [median(each) for each in ends]
    others = [row["cpus_used_by_others"] for row in rows]
    return {
        **rows[0],
        "runs": len(rows),
        "rounds": min(row["rounds"] for row in rows),
        "cpus_used_by_others": None if None in others else max(others),
        "variants": variants,
    }


def file_name(device: str) -> str:
    """The device's name as the stem of its result's files."""
    return re.sub(r"[^A-Za-z0-9]+", "-", device).strip("-")


def rows_of(result: Result, suite: str, direction: str | None = None) -> list[Row]:
    return [
        row for row in result["rows"] if row["suite"] == suite and direction in (None, row["pass"])
    ]


def values(rows: list[Row], key: str) -> list[Any]:
    """The different values of a column, in the order they come."""
    return list(dict.fromkeys(row[key] for row in rows))


def constraint_of(row: Row) -> str:
    """That of a row, which did not say so when there was one alone, and later in its name."""
    named = WEIGHT_NORM if row["case"].endswith(WEIGHT_NORM) else SPECTRAL_NORM
    constraint: str = row.get("constraint", named)
    return constraint


def ratio(row: Row, name: str) -> Ratio | None:
    """The time of a variant over that of the row's baseline; None where it was not measured."""
    if name not in row["variants"]:
        return None
    timing = row["variants"][name]
    low, high = timing["ratio_quartiles"]
    return Ratio(low, timing["ratio"], high)


def speedup(row: Row) -> Ratio | None:
    """How many times as fast as torch's parametrization the row's baseline, ours, is."""
    return ratio(row, NEW)


def mean_ratio(rows: list[Row], name: str) -> float | None:
    """The geometric mean over the rows; None unless the variant ran in each of them."""
    ratios = [ratio(row, name) for row in rows]
    if not ratios or None in ratios:
        return None
    return geometric_mean(each.middle for each in ratios if each)


def variant_names(rows: list[Row]) -> list[str]:
    """All variants of the rows, those that failed included, in the order they were built."""
    return list(dict.fromkeys(name for row in rows for name in (*row["variants"], *row["errors"])))
