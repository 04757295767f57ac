"""What an access takes: of a small weight, where the host is all of it, and beside a copy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import median
from time import perf_counter
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.utils import parametrizations

from .. import spectral_norm

Run = Callable[[], object]
SMALL = (3, 64)
LARGE = (512, 512)


class Times(NamedTuple):
    """Medians in seconds, of runs in turns.

    ``access`` and ``torch_access`` are those of a small weight, ours and torch's; the others of a
    weight of ``weight_bytes``: normalized, with its gradient, and copied.
    """

    access: float
    torch_access: float
    weight_bytes: int
    forward: float
    both: float
    copy: float


def measure(device: torch.device, seconds: float = 1.0) -> Times:
    """Time accesses on ``device`` for about twice so long; a small one alone is not waited for."""
    small = _in_training(spectral_norm(nn.Conv2d(*SMALL, 3, device=device)))
    theirs = parametrizations.spectral_norm(nn.Conv2d(*SMALL, 3, device=device))
    host = {"ours": lambda: small.weight, "torch": lambda: theirs.weight}
    of_host = medians(host, device, seconds, waits=False)
    large = _in_training(spectral_norm(nn.Conv2d(*LARGE, 3, device=device)))
    raw = large.get_parameter("parametrizations.weight.original")
    grad = torch.randn_like(raw)
    runs = {
        "forward": lambda: large.weight,
        "both": lambda: torch.autograd.grad(large.weight, raw, grad),
        "copy": lambda: raw.detach().clone(),
    }
    found = medians(runs, device, seconds)
    return Times(of_host["ours"], of_host["torch"], raw.nbytes, **found)


def _in_training(layer: nn.Conv2d) -> nn.Conv2d:
    """After its first forward: until then an access looks for what initialization may write."""
    layer(torch.zeros(1, layer.in_channels, 3, 3, device=layer.weight.device))
    return layer


def medians(
    runs: Mapping[str, Run], device: torch.device, seconds: float, waits: bool = True
) -> dict[str, float]:
    """The median time of each, in turns, after three turns that do not count."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    end = float("inf")
    for turn in range(1000):
        if turn == 3:
            end = perf_counter() + seconds
            taken = {name: [] for name in runs}
        for name, run in runs.items():
            _wait(device)
            start = perf_counter()
            run()
            if waits:
                _wait(device)
            taken[name].append(perf_counter() - start)
        if perf_counter() > end and turn > 10:
            break
    return {name: median(times) for name, times in taken.items()}


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
