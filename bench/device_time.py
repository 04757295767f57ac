"""The device's time of an access, kernel by kernel: `python -m bench.device_time [--jsonl FILE]`.

What a profiler reads off the device: no launch, no Python, no gap between kernels is in it. The
weight is not in the cache, as in training, where activations pass between two accesses.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from bench.cases import LAYERS, MODELS, Case
from bench.conditions import conditions, tree
from bench.device import device_name, find_gpu
from bench.measure import build
from bench.normalizations import FOREACH, NEW, OURS, PER_LAYER, those_of
from bench.variants import COPY, Run, Setting, access, copy

CACHE_BYTES = 512 << 20  # more than any cache holds
EVICTS = "bitwise_not"  # the kernel that fills the cache, and that no access launches
WARM_UPS, ACCESSES = 5, 20
NAME = 60  # characters of a kernel's; those of templates that begin alike are one


def builders(setting: Setting, is_model: bool) -> dict[str, Callable[[], Run]]:
    """A copy of the weights moves what no normalization can do without; it has no backward."""
    ours = (FOREACH, PER_LAYER) if is_model else (OURS,)
    names = those_of(setting.case.constraint, *ours, NEW)
    accesses = {name: partial(access, setting, name) for name in names}
    return accesses if setting.backward else {COPY: partial(copy, setting), **accesses}


def device_times(runs: Mapping[str, Run], device: torch.device) -> dict[str, dict[str, Any]]:
    """Microseconds of an access by each: of all its kernels, and of each by name."""
    cache = torch.zeros(CACHE_BYTES // 4, dtype=torch.int32, device=device)
    turns = [name for _ in range(ACCESSES) for name in runs]
    for _ in range(WARM_UPS):
        for run in runs.values():
            run()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for name in turns:
            cache.bitwise_not_()
            runs[name]()
        torch.cuda.synchronize()
    accesses: list[list[Any]] = []
    for event in sorted(profiler.events(), key=lambda event: event.time_range.start):
        if event.device_type == DeviceType.CUDA:
            if EVICTS in event.name:
                accesses.append([])
            else:
                accesses[-1].append(event)
    if len(accesses) != len(turns):
        raise RuntimeError(f"the profiler saw {len(accesses)} of {len(turns)} accesses")
    taken = list(zip(turns, accesses, strict=True))
    return {name: summary([each for turn, each in taken if turn == name]) for name in runs}


def summary(accesses: list[list[Any]]) -> dict[str, Any]:
    """Of the kernels of each access: their time together, and that of each by name."""
    totals = [sum(event.time_range.elapsed_us() for event in access) for access in accesses]
    by_name: dict[str, list[float]] = defaultdict(list)
    for event in chain.from_iterable(accesses):
        by_name[event.name[:NAME]].append(event.time_range.elapsed_us())
    quarter, _, three_quarters = quantiles(totals, n=4)
    return {
        "median": median(totals),
        "quartiles": [quarter, three_quarters],
        "launches": sum(map(len, by_name.values())) / len(accesses),
        "kernels": {
            name: {"median": median(each), "launches": len(each) / len(accesses)}
            for name, each in by_name.items()
        },
    }


def row_of(setting: Setting, is_model: bool) -> dict[str, Any]:
    runs, errors = build(builders(setting, is_model), setting.device)
    return {
        "suite": "model" if is_model else "layer",
        "case": setting.case.name,
        "dtype": str(setting.dtype).removeprefix("torch."),
        "pass": "forward + backward" if setting.backward else "forward",
        "bytes": sum(weight.nbytes for weight in setting.weights()),
        "variants": device_times(runs, setting.device),
        "errors": errors,
    }


def print_row(row: dict[str, Any]) -> None:
    print(f"{row['case']}, {row['dtype']}, {row['pass']}")
    for name, times in row["variants"].items():
        kernels = ", ".join(
            f"{kernel[:24]} {each['median']:.1f}" for kernel, each in times["kernels"].items()
        )
        print(f"  {name:16}{times['median']:8.1f} µs, {times['launches']:g} launches: {kernels}")


def chosen(select: str) -> list[tuple[Case, bool]]:
    cases = [*((case, False) for case in LAYERS), *((case, True) for case in MODELS)]
    return [(case, is_model) for case, is_model in cases if select in case.name]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--select", default="", help="part of the names of layers and models")
    parser.add_argument("--jsonl", type=Path, help="append each row to this file")
    arguments = parser.parse_args()
    device = find_gpu()
    if device is None or device.type != "cuda":
        parser.exit(1, "the device's time needs a GPU that torch's profiler can read\n")
    about = {**conditions(device), **tree()}
    print(f"{device_name(device)}, torch {torch.__version__}")
    for case, is_model in chosen(arguments.select):
        for name in arguments.dtype:
            for backward in (False, True):
                setting = Setting(case, device, getattr(torch, name), backward)
                row = row_of(setting, is_model)
                print_row(row)
                if arguments.jsonl:
                    with arguments.jsonl.open("a") as file:
                        file.write(json.dumps({**about, **row}) + "\n")


if __name__ == "__main__":
    main()
