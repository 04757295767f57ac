"""A model of a device's time, beside what was measured: `python -m bench.time_model`.

The launches are those that the launchers make, caught on tensors without memory. Of each the model
knows the bytes that it reads from memory, those that it takes again from cache, those that it
writes, and its chain: the loads and the sums over a program that wait for each other. From that,

    time = start + max(chain, reads / bandwidth) + writes / bandwidth

where few programs reach less than the device's bandwidth. torch's own is counted in launches and in
passes over the weight. Nothing of the host is in it, nor arithmetic, nor conflicts in shared
memory: where a kernel takes longer than its model, that is what to look for.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from statistics import geometric_mean
from typing import NamedTuple

import torch
from torch import nn

from bench.cases import LAYERS, MODELS
from bench.normalizations import NEW, OURS, SPECTRAL_NORM, layers_of
from bench.subjects import TRANSPOSED
from bench.work import Device, Work, caught_launches, time_of
from snorm_triton.kernels import backend
from snorm_triton.ops.calls import Call, GradientCall, Iterate, State
from snorm_triton.ops.matrix_view import in_matrix_layout

RESULTS = Path(__file__).parent / "results"
DTYPES = (torch.float32, torch.bfloat16)


DEVICES = {
    # Bandwidths as grad_dot, a copy and the second read of power_chunked reach them (tuning.md).
    "H200": Device("NVIDIA H200", 3.35e6, 4.0e6, 4.0e6),
    # In proportion to the bandwidths of their memories, 3.35 and 4.8 TB/s (data sheets).
    "H100": Device("NVIDIA H100", 2.34e6, 2.79e6, 4.0e6),
}


def ours(layers: list[nn.Module], backward: bool) -> list[Work]:
    """The launches of an access in training to all weights, with their gradients if asked for."""
    calls, gradients = [], []
    for layer in layers:
        weight = layer.weight.detach()
        dense, view = in_matrix_layout(weight, int(isinstance(layer, TRANSPOSED)))
        u, v = (torch.empty(size, device="meta") for size in (view.M, view.N))
        sigma = u.new_empty(())
        calls.append(Call(dense, view, u, v, Iterate(1, State(u, v, sigma)), weight.dtype))
        gradients.append(GradientCall(dense, dense, view, u, v, sigma))
    with caught_launches([call.view for call in calls]) as caught:
        backend.normalize_together(calls)
        if backward:
            backend.rescale_backward_together(gradients)
    return caught


def of_torch(layer: nn.Module, backward: bool, device: Device) -> float:
    """Microseconds of torch's parametrization: small kernels, and passes over the weight.

    Forward three products and the division; a weight that is not the matrix is copied for it.
    Backward the division's gradients by the weight and by sigma, the outer product of sigma's, and
    the sum of both: sixteen passes by their formulas.
    """
    size = layer.weight.nbytes
    copies = isinstance(layer, TRANSPOSED) or not layer.weight.is_contiguous()
    small = 11 + 9 * backward
    launches = small + 4 + copies + 9 * backward
    passes = 2 + 2 * copies + 16 * backward
    return (
        launches * (device.start + device.load)
        + small * device.sum
        + (3 * size / device.read + passes * size / device.copied)
    )


def measured(device: Device) -> dict[tuple[str, str, str], dict[str, float]]:
    """The device's time of each row of its committed result, if there is one."""
    path = RESULTS / f"{device.name.replace(' ', '-')}.json"
    if not path.exists():
        return {}
    return {
        (row["case"], row["dtype"], row["pass"]): {
            name.removesuffix(", foreach"): timing["median"]
            for name, timing in row["variants"].items()
        }
        for row in json.loads(path.read_text())["device_time"]
    }


class Row(NamedTuple):
    """A layer's times in microseconds, by the model and as measured."""

    case: str
    dtype: str
    direction: str
    ours: float
    torchs: float
    measured: dict[str, float]


def rows(device: Device) -> Iterator[Row]:
    """Of the layers and models of the benchmarks that a spectral norm is on."""
    found = measured(device)
    cases = [case for case in (*LAYERS, *MODELS) if case.constraint == SPECTRAL_NORM]
    for case, dtype, backward in product(cases, DTYPES, (False, True)):
        module = case.module(torch.device("meta"), dtype)
        layers = [module] if case in LAYERS else layers_of(module)
        name = str(dtype).removeprefix("torch.")
        direction = "forward + backward" if backward else "forward"
        modeled = sum(time_of(work, device) for work in ours(layers, backward))
        theirs = sum(of_torch(layer, backward, device) for layer in layers)
        seen = found.get((case.name, name, direction), {})
        yield Row(case.name, name, direction, modeled, theirs, seen)


def error(pairs: list[tuple[float, float]]) -> str:
    """How far the model is from what was measured."""
    ratios = [model / seen for model, seen in pairs]
    return (
        f"model over measured: {geometric_mean(ratios):.2f} in geometric mean,"
        f" {min(ratios):.2f} to {max(ratios):.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=DEVICES, default="H200")
    device = DEVICES[parser.parse_args().device]
    print(f"{device.name}, microseconds of the device; torch's is its parametrization")
    print(f"{'':66}{'ours':>8}{'measured':>10}{'torch':>9}{'measured':>10}")
    pairs: dict[str, list[tuple[float, float]]] = {OURS: [], NEW: []}
    for row in rows(device):
        cells = f"{row.case:43}{row.dtype:9}{row.direction:14.14}"
        for name, model in ((OURS, row.ours), (NEW, row.torchs)):
            seen = row.measured.get(name)
            cells += f"{model:9.1f}" + (f"{seen:10.1f}" if seen else " " * 10)
            if seen:
                pairs[name].append((model, seen))
        print(cells)
    for name, each in pairs.items():
        if each:
            print(f"{name}: {error(each)}")


if __name__ == "__main__":
    main()
