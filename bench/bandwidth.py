"""How much of a copy's bandwidth our kernels reach: bytes counted, over the time measured.

The bytes follow from the kernels alone, on any device. `make traffic TRAFFIC_ARGS=--save` counts
them in Triton's interpreter; what reads them here needs neither.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.normalizations import FOREACH, OURS
from bench.result import Result, Row
from bench.variants import COPY

if TYPE_CHECKING:
    from bench.accesses import Launch

COUNTS = Path(__file__).parent / "results" / "traffic.json"
LEADERS = {"layer": OURS, "model": FOREACH}  # whose launches are counted
Counts = dict[str, Any]


def case_of(
    suite: str, name: str, dtype: str, copy: int, operations: dict[str, list[Launch]]
) -> dict[str, Any]:
    """The bytes that a copy of a case moves, and that the launches of each operation must move."""
    moved = {key: sum(launch.must for launch in each) for key, each in operations.items()}
    return {"suite": suite, "case": name, "dtype": dtype, "copy": copy, "bytes": moved}


def save_counts(path: Path, kernels: str, cases: list[dict[str, Any]]) -> None:
    text = ",\n".join(json.dumps(case) for case in cases)
    path.write_text(f'{{"kernels": "{kernels}", "cases": [\n{text}\n]}}\n')


def load_counts(path: Path = COUNTS) -> Counts | None:
    return json.loads(path.read_text()) if path.exists() else None


def launched(row: Row) -> bool:
    """Whether the row's times are of kernels that are counted; on a CPU none runs."""
    return row["backend"] == "triton" and LEADERS.get(row["suite"]) == row["baseline"]


def bandwidth_reached(row: Row, counts: Counts) -> float | None:
    """The bytes that our launches must move in a second, over those that a copy moves."""
    if not launched(row) or row.get("kernels") != counts["kernels"]:
        return None
    identity = {key: row[key] for key in ("suite", "case", "dtype")}
    for case in counts["cases"]:
        if identity.items() <= case.items():
            moved = sum(case["bytes"][operation] for operation in row["pass"].split(" + "))
            return moved / case["copy"] * row["variants"][COPY]["ratio"]
    return None


def with_bandwidth(result: Result, counts: Counts | None) -> Result:
    """The result with the bandwidth that its rows reached, where the bytes were counted."""
    if counts is None:
        return result
    reached = [bandwidth_reached(row, counts) for row in result["rows"]]
    rows = [
        row if each is None else {**row, "bandwidth": each}
        for row, each in zip(result["rows"], reached, strict=True)
    ]
    return {**result, "rows": rows}
