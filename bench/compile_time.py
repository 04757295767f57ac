"""What torch.compile takes for a model, normalized or not: `python -m bench.compile_time`.

Twenty convolutions, forward and backward, by inductor with its caches off. In one process after a
first compilation that does not count, the variants in turns and in a new order each round. Beside
the time on the clock stands that of the processor, the C++ compiler's included, which other
processes disturb less.
"""

from __future__ import annotations

import argparse
import os
from random import Random
from statistics import median
from time import perf_counter

import torch
import torch._inductor.config
from torch import nn
from tqdm import tqdm

from bench.device import device_name, find_gpu, synchronize
from bench.normalizations import FOREACH, NEW, NORMALIZATIONS, PER_LAYER

NONE = "no normalization"
VARIANTS = (NONE, NEW, PER_LAYER, FOREACH)


def model_of(layers: int, normalization: str, device: torch.device) -> nn.Module:
    blocks = [nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()) for _ in range(layers)]
    model = nn.Sequential(*blocks).to(device)
    if normalization != NONE:
        NORMALIZATIONS[normalization](model)
    return model


def processor_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def compile_once(layers: int, normalization: str, device: torch.device) -> tuple[float, float]:
    """Seconds on the clock and of the processor until the first gradients are there."""
    torch.compiler.reset()
    x = torch.randn(2, 8, 8, 8, device=device)
    compiled = torch.compile(model_of(layers, normalization, device), fullgraph=True)
    start, used = perf_counter(), processor_seconds()
    compiled(x).sum().backward()
    synchronize(device)
    return perf_counter() - start, processor_seconds() - used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", help="default: the GPU if there is one, else cpu")
    parser.add_argument("--layers", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    device = (
        torch.device(arguments.device) if arguments.device else find_gpu() or torch.device("cpu")
    )
    torch._inductor.config.force_disable_caches = True
    compile_once(2, NONE, device)
    seconds: dict[str, list[tuple[float, float]]] = {variant: [] for variant in VARIANTS}
    order = Random(0)
    for _ in tqdm(range(arguments.rounds), unit="round"):
        for variant in order.sample(VARIANTS, len(VARIANTS)):
            seconds[variant].append(compile_once(arguments.layers, variant, device))
    print(f"{arguments.layers} layers, {device_name(device)}, torch {torch.__version__}")
    print(f"  {'':20}{'clock':>16}{'processor':>16}")
    base = [median(column) for column in zip(*seconds[NONE], strict=True)]
    for variant, rounds in seconds.items():
        medians = [median(column) for column in zip(*rounds, strict=True)]
        cells = [
            f"{each:7.2f} s {each / of_none:4.2f}x"
            for each, of_none in zip(medians, base, strict=True)
        ]
        print(f"  {variant:20}{cells[0]:>16}{cells[1]:>16}")


if __name__ == "__main__":
    main()
