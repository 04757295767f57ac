"""What `make gpu` saved, however far it came: a result, and notes of what is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from bench.cases import LAYERS, MODELS
from bench.result import HEAD, Result, Row
from bench.result import load as load_file
from bench.steps import DEVICE_TIME, OVERHEAD, ROWS, STEPS, TESTS

TREE = ("commit", "uncommitted_changes")
# Only what agrees in these belongs to one result.
CONDITIONS = (*HEAD, *TREE, "kernels")


def load(path: Path) -> Result:
    """From a folder of `make gpu` or one of its .jsonl files, or as :func:`bench.result.load`."""
    if path.is_dir():
        return read(path)
    return read(path.parent) if path.suffix == ".jsonl" else load_file(path)


def read(folder: Path) -> Result:
    """ValueError where it holds neither a row nor a step."""
    notes: list[str] = []
    rows, steps = (lines(folder / name, notes) for name in (ROWS, STEPS))
    if not rows and not steps:
        raise ValueError(f"{folder} holds no row of {ROWS} and no step of {STEPS}")
    last = max([*rows, *steps], key=lambda entry: entry["datetime"])
    rows = latest(alike(rows, last, ROWS, notes), ("suite", "case", "dtype", "pass"))
    steps = latest(alike(steps, last, STEPS, notes), ("step",))
    tests, host = tests_of(folder / TESTS, notes), overhead_of(folder / OVERHEAD, notes)
    if host and not alike([host], last, OVERHEAD, notes):
        host = None
    times = alike(lines(folder / DEVICE_TIME, notes), last, DEVICE_TIME, notes)
    times = latest(times, ("suite", "case", "dtype", "pass"))
    return {
        "datetime": last["datetime"],
        **{key: last[key] for key in (*TREE, *HEAD)},
        "rows": [without_head(row) for row in in_order(rows)],
        "steps": [{key: step[key] for key in ("step", "status", "seconds")} for step in steps],
        "tests": tests,
        "overhead": host,
        "device_time": [without_head(row) for row in times],
        "notes": notes,
    }


def without_head(row: Row) -> Row:
    """What it says beyond the result's head."""
    return {key: value for key, value in row.items() if key not in (*HEAD, *TREE)}


def lines(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    """Those that are whole: a process that was killed may leave half of one."""
    if not path.exists():
        notes.append(f"{path.name} is not there")
        return []
    whole = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            whole.append(json.loads(line))
        except ValueError:
            notes.append(f"{path.name}: line {number} is cut off")
    return whole


def alike(
    entries: list[dict[str, Any]], last: dict[str, Any], name: str, notes: list[str]
) -> list[dict[str, Any]]:
    """Those of the device, the versions and the tree of the last one."""
    same = [entry for entry in entries if all(entry[key] == last[key] for key in CONDITIONS)]
    if len(same) < len(entries):
        others = len(entries) - len(same)
        notes.append(f"{name}: {others} of another device, version or tree left out")
    return same


def latest(entries: list[dict[str, Any]], identity: tuple[str, ...]) -> list[dict[str, Any]]:
    """Of what was done several times the last, where the first stood."""
    found = {tuple(entry[key] for key in identity): entry for entry in entries}
    return list(found.values())


def in_order(rows: list[Row]) -> list[Row]:
    """Of the tables, which is not that in which they were measured."""
    names = [case.name for case in (*LAYERS, *MODELS)]
    place = {name: number for number, name in enumerate(names)}
    return sorted(rows, key=lambda row: place.get(row["case"], len(names)))


def tests_of(path: Path, notes: list[str]) -> dict[str, Any] | None:
    """Counts, and the first line of what each failed test raised."""
    try:
        suites = list(ElementTree.parse(path).getroot().iter("testsuite"))
    except (OSError, ElementTree.ParseError):
        notes.append(f"{path.name} is {'cut off' if path.exists() else 'not there'}")
        return None
    counts = {
        key: sum(int(suite.get(key, 0)) for suite in suites)
        for key in ("tests", "failures", "errors", "skipped")
    }
    failed = [
        (f"{case.get('classname')}::{case.get('name')}".removeprefix("::"), outcome)
        for suite in suites
        for case in suite.iter("testcase")
        for outcome in [*case.iter("failure"), *case.iter("error")]
    ]
    messages = [f"{name}: {each.get('message', '')}".splitlines()[0][:300] for name, each in failed]
    return {**counts, "failed": messages}


def overhead_of(path: Path, notes: list[str]) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        notes.append(f"{path.name} is {'cut off' if path.exists() else 'not there'}")
        return None
