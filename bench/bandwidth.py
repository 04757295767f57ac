"""How much of a copy's bandwidth our kernels reach: bytes counted, over the time measured."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from bench.cases import LAYERS, MODELS
from bench.normalizations import FOREACH, OURS
from bench.result import Result, Row
from bench.variants import COPY

if TYPE_CHECKING:
    from bench.traffic import Subject


def subject_of(row: Row) -> Subject | None:
    """What the kernels were given in the row; None where no kernel ran, as on a CPU."""
    if row["backend"] != "triton":
        return None
    from bench.traffic import Model, weight_of

    layers = {case.name: case for case in LAYERS}
    if row["suite"] == "layer" and row["baseline"] == OURS and row["case"] in layers:
        return weight_of(layers[row["case"]], row["dtype"])
    models = {case.name for case in MODELS}
    if row["suite"] == "model" and row["baseline"] == FOREACH and row["case"] in models:
        return Model(row["case"], row["dtype"])
    return None


def count_ahead(result: Result) -> None:
    """Count what every row needs, each in a process of its own."""
    subjects = {subject_of(row) for row in result["rows"]} - {None}
    if subjects:
        from bench.traffic import traffic_of

        with ThreadPoolExecutor() as pool:
            list(pool.map(traffic_of, subjects))


def bandwidth_reached(row: Row) -> float | None:
    """The bytes that our launches must move in a second, over those that a copy moves."""
    subject = subject_of(row)
    if subject is None:
        return None
    from bench.traffic import copy_bytes, traffic_of

    launches = traffic_of(subject)
    moved = sum(launch.must for name in row["pass"].split(" + ") for launch in launches[name])
    return moved / copy_bytes(subject) * row["variants"][COPY]["ratio"]
