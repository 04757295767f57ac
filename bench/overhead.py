"""Where the time of a small weight's access goes: `python -m bench.overhead [--json FILE]`.

Each row adds one layer of Python to the row before it, so that the differences are what each costs.
Below, the accesses to all weights of a discriminator (`bench.model_overhead`). On a GPU the
launches are asynchronous, and the rows are time of the host as long as the weights are small; on a
CPU the kernels are launched by a stand-in that does nothing, unless `--no-stubs`. `--save` keeps
both tables in bench/results/.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from contextlib import nullcontext
from datetime import datetime
from functools import partial
from pathlib import Path
from time import perf_counter, thread_time
from typing import Any

import torch
from torch import nn

from bench import model_overhead
from bench.conditions import ROOT, conditions, tree
from bench.device import device_name, find_gpu, synchronize
from bench.model_overhead import markdown
from bench.normalizations import NEW, NORMALIZATIONS, OURS
from bench.rotation import Rotation
from bench.stubbed import stubbed_launches
from bench.tables import table
from snorm_triton.ops.calls import Call
from snorm_triton.ops.dispatch import backend_for
from snorm_triton.ops.matrix_view import in_matrix_layout
from snorm_triton.ops.modes.eager import normalize

RESULT = ROOT / "bench" / "results" / "host-time"


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


def shown(layer: str, rows: dict[str, dict[str, Any]], models: list[dict[str, Any]]) -> str:
    lines = [
        [
            name,
            f"{1e6 * row['median']:.1f}",
            f"{1e6 * row['quartiles'][0]:.1f} to {1e6 * row['quartiles'][1]:.1f}",
        ]
        for name, row in rows.items()
    ]
    return f"{table([layer, 'median µs', 'quartiles'], lines)}\n\n{markdown(models)}\n"


def times(
    channels: list[int], device: torch.device, seconds: float, stubs: bool
) -> dict[str, dict[str, Any]]:
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
    clock = thread_time if stubs else perf_counter
    rotation = Rotation(runs, partial(synchronize, device), clock)
    for _ in range(rotation.calibrate(seconds)):
        rotation()
    return rotation.statistics("the access")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", help="default: the GPU if there is one, else cpu")
    parser.add_argument("--channels", type=int, nargs=2, default=[3, 64], metavar=("IN", "OUT"))
    parser.add_argument("--seconds", type=float, default=10, help="to measure for")
    parser.add_argument("--json", type=Path, help="file to write the times to")
    parser.add_argument("--no-stubs", action="store_true", help="launch kernels on a CPU, too")
    parser.add_argument("--save", action="store_true", help=f"write {RESULT.name}.json and .md")
    arguments = parser.parse_args()
    device = (
        torch.device(arguments.device) if arguments.device else find_gpu() or torch.device("cpu")
    )
    stubs = device.type == "cpu" and not arguments.no_stubs
    with stubbed_launches() if stubs else nullcontext():
        rows = times(arguments.channels, device, arguments.seconds, stubs)
    models = model_overhead.times(device, arguments.seconds, stubs)
    layer = f"Conv2d {'-'.join(map(str, arguments.channels))} k3"
    about = {"datetime": datetime.now().isoformat(), **conditions(device), **tree()}
    how = "launches that do nothing" if stubs else "launches as they are"
    title = f"{device_name(device)}, torch {torch.__version__}, {how}"
    tables = shown(layer, rows, models)
    print(f"{title}\n\n{tables}")
    written = json.dumps({**about, "layer": layer, "stubs": stubs, "rows": rows, "models": models})
    if arguments.json:
        arguments.json.write_text(written + "\n")
    if arguments.save:
        RESULT.with_suffix(".json").write_text(written + "\n")
        heading = f"# The host's time of accesses\n\n{title}, commit {about['commit'][:12]}."
        RESULT.with_suffix(".md").write_text(f"{heading}\n\n{tables}")


if __name__ == "__main__":
    main()
