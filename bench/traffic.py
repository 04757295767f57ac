"""Bytes that the kernels move for a weight, and the time that a memory-bound GPU needs for them.

python -m bench.traffic                               the layers and models of the benchmarks
python -m bench.traffic --shape 512 256 4 4 --dim 1   one weight
python -m bench.traffic --model SN-DCGAN              a model's weights, together
python -m bench.traffic --tensors --json FILE         each tensor too; all of it as JSON
python -m bench.traffic --save [FILE]                 for the report: in float32 and bfloat16

The real launchers run in Triton's interpreter, and every load and store of theirs is counted:
"must" is each byte that a launch touches, once; "does" is the 32-byte sectors it takes, each once a
program; "again" is what a program takes a second time, perhaps from cache. Sums over an operation's
launches are in copies, one read and one write of the weight. Over the bandwidth of a copy they are
the time: "must" where caches hold whatever a launch takes twice, all three where they hold nothing.
Not in it: the time of launches, and what one launch leaves in cache for the next.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import triton

from bench.accesses import Launch, Traffic, recorded_launches
from bench.bandwidth import COUNTS, case_of, save_counts
from bench.cases import LAYERS, MODELS
from bench.conditions import kernels_digest
from bench.normalizations import (
    BY_CONSTRAINT,
    FOREACH,
    HAVE_KERNELS,
    SPECTRAL_NORM,
    WEIGHT_NORM,
)
from bench.subjects import Model, Subject, Weight, copy_bytes, weight_of
from snorm_triton.functional import matrix_shape, spectral_normalize, state_dtype
from snorm_triton.ops.torch_row_scaling import norm_except
from snorm_triton.ops.weight_norm import normalized
from snorm_triton.parametrizations.base import Parametrization

ROOT = Path(__file__).resolve().parents[1]
SAVED_DTYPES = ("float32", "bfloat16")
DTYPES = ("float32", "bfloat16", "float16", "float64")
KINDS = ("must", "does", "again")
LONG = 6 * 2**20  # elements, which the interpreter takes seconds for


@lru_cache
def traffic_of(subject: Subject) -> dict[str, list[Launch]]:
    """What the launches of a training forward, an evaluation and a backward of it move.

    The sum of the launches' ``must`` over a measured time, over the bandwidth of a copy measured
    beside it, is the fraction of that bandwidth that the operation reaches. Takes about a second
    for a million elements, in a process of its own unless this one interprets kernels already.
    """
    if triton.knobs.runtime.interpret:
        if isinstance(subject, Model):
            return interpreted_traffic_together(subject)
        return interpreted_traffic(subject)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "traffic.json"
        run_interpreted([*as_arguments(subject), "--json", str(file)], stdout=subprocess.DEVNULL)
        (record,) = json.loads(file.read_text())["weights"]
    return {
        operation: [as_launch(launch) for launch in launches]
        for operation, launches in record["operations"].items()
    }


def interpreted_traffic(weight: Weight) -> dict[str, list[Launch]]:
    w = weight.tensor().requires_grad_()
    if weight.constraint == WEIGHT_NORM:
        g = norm_except(w.detach(), weight.dim).requires_grad_()
        with recorded_launches() as forward:
            scaled = normalized(w, g, weight.dim, w.dtype, "triton")
        with recorded_launches() as backward:
            scaled.backward(torch.randn_like(w))
        return {"forward": forward, "backward": backward}
    u, v = (torch.randn(n, dtype=state_dtype(w)) for n in matrix_shape(w, weight.dim))
    with recorded_launches() as forward:
        ours = spectral_normalize(w, u, v, dim=weight.dim, backend="triton")
    with recorded_launches() as evaluation, torch.no_grad():
        spectral_normalize(w, u, v, dim=weight.dim, n_power_iterations=0, backend="triton")
    grad = torch.randn_like(w)
    with recorded_launches() as backward:
        ours.weight_sn.backward(grad)
    return {"forward": forward, "evaluation": evaluation, "backward": backward}


def interpreted_traffic_together(model: Model) -> dict[str, list[Launch]]:
    weights = model.weights()
    BY_CONSTRAINT[model.case.constraint][FOREACH](weights)
    for module in weights.modules():  # now: what a registration computes is not counted
        if isinstance(module, Parametrization):
            module.options = replace(module.options, backend="triton")
    with recorded_launches() as forward:
        ours = weights()
    with recorded_launches() as backward:
        torch.autograd.backward(ours, [torch.randn_like(weight) for weight in ours])
    return {"forward": forward, "backward": backward}


def run_interpreted(arguments: list[str], stdout: int | None = None) -> None:
    """This module in a process where Triton interprets: it reads the variable when imported."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path}
    command = [sys.executable, "-m", "bench.traffic", *arguments]
    subprocess.run(command, env=environment, stdout=stdout, check=True)


def as_arguments(subject: Subject) -> list[str]:
    if isinstance(subject, Model):
        return ["--model", subject.model, "--dtype", subject.dtype]
    arguments = ["--shape", *map(str, subject.shape), "--dim", str(subject.dim)]
    arguments += ["--dtype", subject.dtype, "--constraint", subject.constraint]
    return [*arguments, *["--channels-last"] * subject.channels_last]


def as_launch(record: dict[str, Any]) -> Launch:
    return Launch(**record | {"traffic": [Traffic(**traffic) for traffic in record["traffic"]]})


def table(
    subject: Subject, operation: str, launches: list[Launch], arguments: argparse.Namespace
) -> Iterator[str]:
    """An operation's launches in MB, their sum in copies and, at a given bandwidth, its time."""
    titles = ("programs", "must MB", "does MB", "again MB", "does/must", "again/does")
    yield f"  {operation:40}" + "".join(f"{title:>11}" for title in titles)
    for launch in launches:
        yield line(f"    {launch.kernel}", launch, str(launch.programs))
        for traffic in launch.traffic if arguments.tensors else ():
            yield line(f"      {traffic.direction} {traffic.tensor}", traffic)
    must, does, again = (sum(getattr(x, kind) for x in launches) for kind in KINDS)
    copies = [x / copy_bytes(subject) for x in (must, does, again)]
    yield f"    {'in copies':49}" + "".join(f"{x:11.3f}" for x in copies)
    if arguments.gbps:
        low, high = (1e-3 * x / arguments.gbps for x in (must, does + again))
        yield f"    {low:.1f} to {high:.1f} µs at {arguments.gbps:g} GB/s"


def line(name: str, moved: Launch | Traffic, programs: str = "") -> str:
    megabytes = "".join(f"{getattr(moved, kind) / 1e6:11.3f}" for kind in KINDS)
    does_over_must = moved.does / moved.must if moved.must else 0.0
    again_over_does = moved.again / moved.does if moved.does else 0.0
    return f"{name:42}{programs:>11}{megabytes}{does_over_must:11.2f}{again_over_does:11.2f}"


def main() -> int:
    arguments = parse(sys.argv[1:])
    if not triton.knobs.runtime.interpret:
        run_interpreted(sys.argv[1:])
        return 0
    records, cases = [], []
    for name, subject in subjects(arguments):
        operations = traffic_of(subject)
        print(f"{name}: {subject}, a copy moves {copy_bytes(subject) / 1e6:.3f} MB")
        for operation, launches in operations.items():
            print(*table(subject, operation, launches, arguments), sep="\n", flush=True)
        moved = {key: [asdict(launch) for launch in value] for key, value in operations.items()}
        records.append({"name": name, **asdict(subject), "operations": moved})
        suite = "model" if isinstance(subject, Model) else "layer"
        cases.append(case_of(suite, name, subject.dtype, copy_bytes(subject), operations))
        if arguments.save:  # each time: what takes long may be ended at any time
            save_counts(arguments.save, kernels_digest(), cases)
    if arguments.json:
        record = {"triton": triton.__version__, "torch": torch.__version__, "weights": records}
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0


def subjects(arguments: argparse.Namespace) -> list[tuple[str, Subject]]:
    """With names: the one that was asked for, or those of the benchmarks."""
    dtype = arguments.dtype
    if arguments.model:
        return [(arguments.model, Model(arguments.model, dtype))]
    if arguments.shape:
        shape = tuple(arguments.shape)
        layout = arguments.channels_last
        return [("weight", Weight(shape, arguments.dim, layout, dtype, arguments.constraint))]
    every: list[tuple[str, Subject]] = []
    for each in SAVED_DTYPES if arguments.save else (dtype,):
        layers = [case for case in LAYERS if case.constraint in HAVE_KERNELS]
        every += [(case.name, weight_of(case, each)) for case in layers]
        every += [(case.name, Model(case.name, each)) for case in MODELS]
    if not arguments.all_cases:
        return [(name, subject) for name, subject in every if subject.elements <= LONG]
    return sorted(every, key=lambda named: named[1].elements) if arguments.save else every


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=int, nargs="+", help="of one weight; default: the layers")
    parser.add_argument("--model", choices=[case.name for case in MODELS])
    parser.add_argument("--dim", type=int, default=0, help="its dimension of the outputs")
    parser.add_argument("--constraint", choices=HAVE_KERNELS, default=SPECTRAL_NORM)
    parser.add_argument("--channels-last", action="store_true", help="its layout")
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0])
    parser.add_argument("--all-cases", action="store_true", help="large ones too")
    parser.add_argument("--tensors", action="store_true", help="a line for each tensor of a launch")
    parser.add_argument("--gbps", type=float, help="bandwidth of a copy in GB/s: gives times too")
    parser.add_argument("--json", type=Path, help="file to write the counts to")
    parser.add_argument("--save", type=Path, nargs="?", const=COUNTS, help="for the report")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
