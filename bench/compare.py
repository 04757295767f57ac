"""A run beside the committed result of the same device: has ours become slower?

python -m bench.compare RUN.json     print the ratios of both; fail where ours became slower

Absolute times change with the clock, the driver and the neighbours. So what is compared is the
time of ours over that of a copy and over that of torch's parametrization, both of the same run.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from bench.normalizations import NEW
from bench.result import Ratio, Result, Row, file_name, load, ratio
from bench.tables import company, table
from bench.variants import COPY

RESULTS = Path(__file__).parent / "results"
YARDSTICKS = (COPY, NEW)
# What the ratio of two runs of the same code may differ by, beyond the quartiles of each run.
TOLERANCE = 0.1


@dataclass(frozen=True)
class Comparison:
    """The time of ours over each yardstick's, (then, now), and what the row allocates."""

    row: Row
    ratios: dict[str, tuple[Ratio, Ratio]]
    allocations: tuple[int, int]

    @property
    def verdict(self) -> str:
        then, now = self.allocations
        if now > then:
            return f"allocates {now} weights, not {then}"
        pairs = self.ratios.values()
        # Against both: when only one moved, it was the yardstick that changed.
        if all(now.low > then.high * (1 + TOLERANCE) for then, now in pairs):
            return "slower"
        if all(now.high * (1 + TOLERANCE) < then.low for then, now in pairs):
            return "faster"
        return ""

    @property
    def fails(self) -> bool:
        return self.verdict not in ("", "faster")


def recorded(device: str, folder: Path = RESULTS) -> Result:
    """The committed result of a device. FileNotFoundError where there is none."""
    path = folder / f"{file_name(device)}.json"
    if not path.exists():
        raise FileNotFoundError(
            f"no result of {device} is committed ({path} does not exist), so there is nothing to "
            "compare with; `make bench RESULTS=bench/results` makes one"
        )
    return load(path)


def identity(row: Row) -> tuple[str, ...]:
    return row["suite"], row["case"], row["dtype"], row["pass"], row["backend"]


def compare(then: Result, now: Result) -> list[Comparison]:
    """The layers that both results hold and that took the same backend."""
    before = {identity(row): row for row in then["rows"] if row["suite"] == "layer"}
    comparisons = []
    for row in now["rows"]:
        old = before.get(identity(row))
        if old is None:
            continue
        ours = row["baseline"]
        both = {name: (ratio(old, name), ratio(row, name)) for name in YARDSTICKS}
        ratios = {name: (a.inverse(), b.inverse()) for name, (a, b) in both.items() if a and b}
        counts = (old["memory"][ours]["allocations"], row["memory"][ours]["allocations"])
        comparisons.append(Comparison(row, ratios, counts))
    return comparisons


def show(each: Ratio) -> str:
    return f"{each.middle:.2f} ({each.low:.2f} to {each.high:.2f})"


def markdown(comparisons: list[Comparison]) -> str:
    header = ["layer", "dtype", "pass"]
    for name in YARDSTICKS:
        header += [f"ours / {name}, committed", "now"]
    lines = []
    for comparison in comparisons:
        row = comparison.row
        line = [row["case"], row["dtype"], row["pass"]]
        for name in YARDSTICKS:
            pair = comparison.ratios.get(name)
            line += [show(each) for each in pair] if pair else ["", ""]
        lines.append([*line, comparison.verdict])
    return table([*header, ""], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="what --benchmark-json wrote, or a saved result")
    parser.add_argument("--results", type=Path, default=RESULTS, help="default: bench/results")
    arguments = parser.parse_args()
    now = load(arguments.run)
    try:
        then = recorded(now["device"], arguments.results)
    except FileNotFoundError as error:
        sys.exit(str(error))
    comparisons = compare(then, now)
    if not comparisons:
        sys.exit("the run holds no layer that the committed result has")
    print(
        f"{now['device']}: torch {then['torch']}, triton {then['triton']}, "
        f"{then['datetime'][:10]}; now torch {now['torch']}, triton {now['triton']}\n"
    )
    print(markdown(comparisons), company(now), sep="\n\n")
    failed = [comparison for comparison in comparisons if comparison.fails]
    if failed:
        sys.exit(f"ours became worse in {len(failed)} of {len(comparisons)} rows")
    print(f"ours is not slower in any of {len(comparisons)} rows")


if __name__ == "__main__":
    main()
