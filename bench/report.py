"""A run of the benchmarks as Markdown tables and a chart, from what it saved alone.

python -m bench.report RUN.json                      print the tables
python -m bench.report RUN.json RUN.json             of several runs the medians
python -m bench.report FOLDER                        of `make gpu`, with steps and tests
python -m bench.report RUN.json --results FOLDER     also write <device name>.json, .md, .png there
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from bench.bandwidth import launched, load_counts, with_bandwidth
from bench.chart import draw
from bench.normalizations import LEGACY, NEW
from bench.result import (
    COMPILED_SUITES,
    SUITES,
    Result,
    Row,
    constraint_of,
    file_name,
    mean_ratio,
    pool,
    rows_of,
)
from bench.run_tables import device_time_section, overhead_table, steps_table, tests_section
from bench.saved import load
from bench.tables import access_tables, company, table, training_table
from bench.variants import COPY, NEW_COMPILED


def head(result: Result) -> str:
    backend = result["SNORM_TRITON_BACKEND"] or "not set"
    commit = result["commit"][:12] + (" with changes" if result["uncommitted_changes"] else "")
    return f"""# Spectral normalization, measured

{result["device"]}; snorm_triton {result["snorm_triton"]} ({commit}), torch {result["torch"]}, \
triton {result["triton"]}, Python {result["python"]}; SNORM_TRITON_BACKEND {backend}; \
{result["datetime"][:10]}.
"""


def method(result: Result) -> str:
    """How the rows were measured, and what stands in their cells."""
    if not result["rows"]:
        return ""
    rounds = [row["rounds"] for row in result["rows"]]
    runs = {row.get("runs", 1) for row in result["rows"]}
    several = reached = uncounted = ""
    if runs != {1}:
        span = " to ".join(str(each) for each in sorted({min(runs), max(runs)}))
        several = f" All that in {span} runs, each a process of its own, and medians over them."
    if any("bandwidth" in row for row in result["rows"]):
        reached = ", and how much of their bandwidth the bytes that our kernels must move make"
    elif any(map(launched, result["rows"])):
        uncounted = " The bytes that these kernels move were not counted."
    return f"""All variants of a row were timed in one run, in turns and in a new order each round \
({min(rounds)} to {max(rounds)} rounds), after a warm-up. A time is the host's, with the device \
synchronised before and after a block of accesses of the same weights (so a small weight stays in \
cache), divided by their number; medians over the rounds. In brackets the time over that of ours: \
the ratio of the medians, then the quartiles of the ratios round by round.{several} `{COPY}` \
copies the weights into existing buffers, in every table; beside ours stands its time in such \
copies{reached}.{uncounted} Compiling takes seconds a layer: `{NEW_COMPILED}` is measured in some \
rows only. An empty cell was not measured.
"""


def means(result: Result) -> str:
    """Geometric means over the layers and over the models: each constraint, dtype and pass."""
    lines = []
    for suite, title in SUITES.items():
        alike: dict[tuple[str, ...], list[Row]] = {}
        for row in rows_of(result, suite):
            kind = constraint_of(row), row["dtype"], row["pass"]
            alike.setdefault(kind, []).append(row)
        for (constraint, dtype, direction), rows in alike.items():
            each = [mean_ratio(rows, name) for name in (NEW, LEGACY, COPY)]
            cells = ["" if mean is None else f"{mean:.2f}" for mean in each]
            lines.append([f"{title}, {constraint}, {direction}", dtype, str(len(rows)), *cells])
    if not lines:
        return ""
    header = ["", "dtype", "rows", *(f"{name} / ours" for name in (NEW, LEGACY, COPY))]
    return f"""## Geometric means

Over the rows of the tables below. Of a model, ours is the default of the device: all weights at \
once on a GPU, each layer by itself on a CPU.

{table(header, lines)}
"""


def failures(result: Result) -> str:
    lines = [
        f"- {name}, {row['case']}, {row['dtype']}, {row['pass']}: `{' '.join(error.split())}`"
        for row in result["rows"]
        for name, error in row["errors"].items()
    ]
    return "\n".join(["## Variants that failed\n", *lines, ""]) if lines else ""


def markdown(result: Result) -> str:
    sections = [head(result), steps_table(result), tests_section(result), method(result)]
    sections += [company(result), means(result)]
    sections.append(device_time_section(result))
    for suite in SUITES:
        sections += access_tables(result, suite)
    sections += [training_table(result), overhead_table(result)]
    for suite in COMPILED_SUITES:
        sections += access_tables(result, suite)
    sections.append(failures(result))
    return "\n".join(section for section in sections if section)


def save(result: Result, folder: Path) -> list[Path]:
    """Write <device name>.json, .md and .png; no picture of training steps alone."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = file_name(result["device"])
    written = [folder / f"{stem}.json", folder / f"{stem}.md"]
    written[0].write_text(json.dumps(result, indent=1) + "\n")
    written[1].write_text(markdown(result))
    if any(row["suite"] in SUITES for row in result["rows"]):
        written.append(folder / f"{stem}.png")
        draw(result, written[-1])
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "runs",
        type=Path,
        nargs="+",
        help="a folder of `make gpu`, what --benchmark-json wrote, or a saved result",
    )
    parser.add_argument("--results", type=Path, help="folder to write the result to")
    arguments = parser.parse_args()
    try:
        results = [load(run) for run in arguments.runs]
        result = results[0] if len(results) == 1 else pool(results)
    except (OSError, ValueError) as error:
        sys.exit(f"there is nothing to report: {error}")
    result = with_bandwidth(result, load_counts())
    print(markdown(result))
    if arguments.results:
        print("written:", *save(result, arguments.results))


if __name__ == "__main__":
    main()
