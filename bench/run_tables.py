"""The Markdown of what `make gpu` did beside its rows: steps, tests, times of device and host."""

from __future__ import annotations

from bench.normalizations import FOREACH, NEW, OURS
from bench.result import Result, Row, values
from bench.steps import outcome
from bench.tables import table
from bench.variants import COPY

SHOWN_FAILURES = 20


def steps_table(result: Result) -> str:
    """What ran and what became of it, and what is missing."""
    if "steps" not in result:
        return ""
    lines = [
        [step["step"], outcome(step["status"]), f"{step['seconds']:.1f}"]
        for step in result["steps"]
    ]
    ran = table(["step", "outcome", "seconds"], lines) + "\n\n" if lines else ""
    missing = "".join(f"- {note}\n" for note in result["notes"])
    return f"""## Steps

{ran}{missing}"""


def tests_section(result: Result) -> str:
    tests = result.get("tests")
    if not tests:
        return ""
    failed = [f"- `{message}`" for message in tests["failed"][:SHOWN_FAILURES]]
    if len(tests["failed"]) > SHOWN_FAILURES:
        failed.append(f"- and {len(tests['failed']) - SHOWN_FAILURES} more")
    # pytest itself ends with 0 or 1 where it came to the end.
    ended = {step["step"]: step["status"] in (0, 1) for step in result["steps"]}
    so_far = "" if ended.get("tests") else " until the run was cut short"
    counts = f"{tests['tests']} tests{so_far}: {tests['failures']} failed, "
    counts += f"{tests['errors']} with errors, "
    return "\n".join(["## Tests\n", f"{counts}{tests['skipped']} skipped.\n", *failed, ""])


def overhead_table(result: Result) -> str:
    overhead = result.get("overhead")
    if not overhead:
        return ""
    lines = []
    for name, row in overhead["rows"].items():
        low, middle, high = (
            1e6 * x for x in (row["quartiles"][0], row["median"], row["quartiles"][1])
        )
        lines.append([name, f"{middle:.1f}", f"{low:.1f} to {high:.1f}"])
    return f"""## Where the time of a small weight's access goes

{overhead["layer"]}, float32. Each row adds a layer of Python to the one before it; on a GPU the \
launches are asynchronous, so that it is time of the host.

{table(["", "median µs", "quartiles"], lines)}
"""


def device_time_section(result: Result) -> str:
    """The device's own time of an access, without launches, Python and gaps between kernels."""
    times = result.get("device_time")
    if not times:
        return ""
    sections = [
        """## Time of the device

What a profiler read off the device, the weight not in its cache: the kernels' own time in \
microseconds, medians of 20 accesses in turns, then the number of launches. In brackets torch's \
time over ours. Of a model, ours is all weights at once.
"""
    ]
    for dtype in values(times, "dtype"):
        rows = [row for row in times if row["dtype"] == dtype]
        passes = {(row["case"], row["pass"]): row["variants"] for row in rows if row["variants"]}
        lines = []
        for case in values(rows, "case"):
            cells = [case]
            for direction in ("forward", "forward + backward"):
                variants = passes.get((case, direction), {})
                if direction == "forward":
                    cells.append(time_cell(variants.get(COPY)))
                ours, torchs = variants.get(FOREACH, variants.get(OURS)), variants.get(NEW)
                cells += [launches_cell(ours), compared_cell(torchs, ours)]
            lines.append(cells)
        header = ["case", COPY, "ours", NEW, "ours, with backward", f"{NEW}, with backward"]
        sections.append(f"### {dtype}\n\n{table(header, lines)}\n")
    return "\n".join(sections)


def time_cell(times: Row | None) -> str:
    return f"{times['median']:.1f}" if times else ""


def launches_cell(times: Row | None) -> str:
    return f"{time_cell(times)} / {times['launches']:g}" if times else ""


def compared_cell(times: Row | None, ours: Row | None) -> str:
    if not times or not ours:
        return launches_cell(times)
    return f"{launches_cell(times)} ({times['median'] / ours['median']:.2f})"
