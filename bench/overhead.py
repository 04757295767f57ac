"""Where the time of a small weight's access goes: `python -m bench.overhead [--json FILE]`.

Each row adds one layer of Python to the row before it, so that the differences are what each costs.
On a GPU the launches are asynchronous, and the rows are time of the host as long as the weight is
small.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.conditions import conditions, tree
from bench.device import device_name, find_gpu, synchronize
from bench.normalizations import NEW, NORMALIZATIONS, OURS
from bench.rotation import Rotation
from snorm_triton.ops.calls import Call
from snorm_triton.ops.dispatch import backend_for
from snorm_triton.ops.matrix_view import in_matrix_layout
from snorm_triton.ops.modes.eager import normalize


def layers_of_an_access(layer: nn.Module) -> dict[str, Callable[[], object]]:
    """An access of our normalized ``layer``, from the operations outwards."""
    parametrizations = layer.parametrizations.weight
    parametrization, weight = parametrizations[0], parametrizations.original
    access = parametrization.access((weight,), [])
    dense, view = in_matrix_layout(weight.detach(), access.dim)
    call = Call(dense, view, access.u, access.v, access.step, weight.dtype)
    constant = access._replace(weight=dense)
    return {
        "the operations": partial(backend_for(weight).normalize, *call),
        "and dispatch, layout": lambda: normalize(constant),
        "and the autograd node": lambda: normalize(access),
        "and the state": lambda: parametrization.forward(weight),
        "and the list of parametrizations": lambda: parametrizations.forward(),
        "the access": lambda: layer.weight,
    }


def with_backward(layer: nn.Module) -> Callable[[], object]:
    original = layer.parametrizations.weight.original
    grad = torch.randn_like(original)
    return lambda: torch.autograd.grad(layer.weight, original, grad)


def times(channels: list[int], device: torch.device, seconds: float) -> dict[str, dict[str, Any]]:
    """The statistics of each row, in order."""
    ours, new = (nn.Conv2d(*channels, 3, device=device) for _ in range(2))
    NORMALIZATIONS[OURS](ours)
    NORMALIZATIONS[NEW](new)
    torch.optim.SGD(ours.parameters(), lr=0.1).step()  # an access of a module in training
    runs = {
        **layers_of_an_access(ours),
        "the access and its backward": with_backward(ours),
        f"{NEW}: the access": lambda: new.weight,
        f"{NEW}: the access and its backward": with_backward(new),
    }
    rotation = Rotation(runs, partial(synchronize, device))
    for _ in range(rotation.calibrate(seconds)):
        rotation()
    return rotation.statistics("the access")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", help="default: the GPU if there is one, else cpu")
    parser.add_argument("--channels", type=int, nargs=2, default=[3, 64], metavar=("IN", "OUT"))
    parser.add_argument("--seconds", type=float, default=10, help="to measure for")
    parser.add_argument("--json", type=Path, help="file to write the times to")
    arguments = parser.parse_args()
    device = (
        torch.device(arguments.device) if arguments.device else find_gpu() or torch.device("cpu")
    )
    rows = times(arguments.channels, device, arguments.seconds)
    layer = f"Conv2d {'-'.join(map(str, arguments.channels))} k3"
    print(f"{layer}, {device_name(device)}, torch {torch.__version__}")
    for name, row in rows.items():
        low, high = (1e6 * seconds for seconds in row["quartiles"])
        print(f"  {name:40}{1e6 * row['median']:8.1f} µs ({low:.1f} to {high:.1f})")
    if arguments.json:
        about = {"datetime": datetime.now().isoformat(), **conditions(device), **tree()}
        arguments.json.write_text(json.dumps({**about, "layer": layer, "rows": rows}) + "\n")


if __name__ == "__main__":
    main()
