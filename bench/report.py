"""A pytest-benchmark JSON of bench_weight_access.py as Markdown tables.

python -m bench.report RUN.json                      print them
python -m bench.report RUN.json --results FOLDER     also write <device name>.md and .json there
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

Row = dict[str, Any]
OURS, COPY = "ours", "copy"
HEAD = (
    "device",
    "processors",
    "snorm_triton",
    "torch",
    "triton",
    "python",
    "SNORM_TRITON_BACKEND",
)


def condense(run: dict[str, Any]) -> dict[str, Any]:
    """What the tables need: no per-round timings, and nothing of the machine but the device."""
    rows = [benchmark["extra_info"] for benchmark in run["benchmarks"]]
    if not rows:
        sys.exit("the run holds no benchmark")
    commit = run.get("commit_info", {})
    return {
        "datetime": run["datetime"],
        "commit": commit.get("id") or "unknown",
        "uncommitted_changes": bool(commit.get("dirty")),
        **{key: rows[0][key] for key in HEAD},
        "rows": [{key: row[key] for key in row if key not in HEAD} for row in rows],
    }


def duration(seconds: float) -> str:
    for scale, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"


def head(report: dict[str, Any]) -> str:
    backend = report["SNORM_TRITON_BACKEND"] or "not set"
    commit = report["commit"][:12] + (" with changes" if report["uncommitted_changes"] else "")
    rounds = [row["rounds"] for row in report["rows"]]
    return f"""# One training access of a normalised weight

{report["device"]}; snorm_triton {report["snorm_triton"]} ({commit}), torch {report["torch"]}, \
triton {report["triton"]}, Python {report["python"]}; SNORM_TRITON_BACKEND {backend}; \
{report["datetime"][:10]}.

All variants of a row were timed in one run, in turns and in a new order each round \
({min(rounds)} to {max(rounds)} rounds), after a warm-up. A time is the host's, with the device \
synchronised before and after a block of accesses of one weight (so a small weight stays in \
cache), divided by their number; medians over the rounds. In brackets the time over that of ours: \
the ratio of the medians, then the quartiles of the ratios round by round. `copy` copies the \
weight into an existing buffer, in both tables; beside ours stands its time in such copies.
"""


def company(report: dict[str, Any]) -> str:
    """How busy others kept the processors meanwhile: threads that wait for one skew every time."""
    used = [row["cpus_used_by_others"] for row in report["rows"]]
    if None in used:
        return ""
    processors = report["processors"]
    line = f"Other processes used up to {max(0.0, *used):.1f} of {processors} processors meanwhile."
    if max(used) > 0.2 * processors:
        line += " **The machine was too busy for these times to mean anything: measure again.**"
    return line + "\n"


def cell(row: Row, name: str) -> str:
    if name in row["errors"]:
        return "failed (below)"
    if name not in row["variants"]:
        return ""
    timing = row["variants"][name]
    if name == OURS:
        return f"**{duration(timing['median'])}** ({1 / row['variants'][COPY]['ratio']:.2f} copies)"
    low, high = timing["ratio_quartiles"]
    return f"{duration(timing['median'])} ({timing['ratio']:.2f}; {low:.2f} to {high:.2f})"


def table(rows: list[Row]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in (*row["variants"], *row["errors"])))
    lines = [["layer", "dtype", "backend", *names], ["---"] * (3 + len(names))]
    for row in rows:
        cells = [cell(row, name) for name in names]
        lines.append([row["case"], row["dtype"], row["backend"], *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def failures(rows: list[Row]) -> list[str]:
    return [
        f"- {name}, {row['case']}, {row['dtype']}, {row['pass']}: `{' '.join(error.split())}`"
        for row in rows
        for name, error in row["errors"].items()
    ]


def markdown(report: dict[str, Any]) -> str:
    sections = [head(report), company(report)]
    for direction in dict.fromkeys(row["pass"] for row in report["rows"]):
        rows = [row for row in report["rows"] if row["pass"] == direction]
        sections.append(f"## {direction.capitalize()}\n\n{table(rows)}\n")
    failed = failures(report["rows"])
    if failed:
        sections.append("## Variants that failed\n\n" + "\n".join(failed) + "\n")
    return "\n".join(sections)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="what --benchmark-json wrote")
    parser.add_argument(
        "--results", type=Path, help="folder to write <device name>.json and .md to"
    )
    arguments = parser.parse_args()
    report = condense(json.loads(arguments.run.read_text()))
    text = markdown(report)
    print(text)
    if arguments.results:
        name = re.sub(r"[^A-Za-z0-9]+", "-", report["device"]).strip("-")
        arguments.results.mkdir(parents=True, exist_ok=True)
        (arguments.results / f"{name}.md").write_text(text)
        (arguments.results / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
        print(f"written to {arguments.results / name}.json and .md")


if __name__ == "__main__":
    main()
