"""The host's time of all weights of a discriminator, with launches that do nothing.

The eleven weights are those of the residual discriminator of 32x32 images, a few channels wide, and
a forward reads each of them and computes nothing else. On a CPU ours launch kernels that do nothing
(`bench.stubbed`). torch's operations have no such seam: they run, on weights of at most 600
elements, where they take what it takes to call them. On a GPU torch's host would launch a kernel in
each of them, thirteen a weight forward and nine backward, which is not counted here. Where nothing
is launched, time is that of this thread on a processor: other processes do not count.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from time import perf_counter, thread_time
from typing import Any

import torch
from torch import Tensor, nn

from bench.device import synchronize
from bench.normalizations import (
    BY_CONSTRAINT,
    FOREACH,
    LEGACY,
    NEW,
    PER_LAYER,
    SPECTRAL_NORM,
    WEIGHT_NORM,
    layers_of,
    raw_weights,
)
from bench.rotation import Rotation, Run
from bench.stubbed import stubbed_launches
from bench.tables import table
from snorm_triton import apply_spectral_norm
from snorm_triton.models import SNResNetDiscriminator
from snorm_triton.ops import autograd

FORWARD, BACKWARD = "forward", "forward and backward"
REPLAY, EVALUATION = "replay", "evaluation, unchanged"
WIDTH = 8
Row = tuple[str, str, str]  # constraint, pass, normalization
REPLAYS = {
    PER_LAYER: partial(apply_spectral_norm, foreach=False, power_iter="update"),
    FOREACH: partial(apply_spectral_norm, foreach=True, power_iter="update"),
}


class Weights(nn.Module):
    """Returns the weights of a discriminator's layers, which are not called."""

    def __init__(self) -> None:
        super().__init__()
        discriminator = SNResNetDiscriminator(channels=WIDTH, head_bias=False, normalization=None)
        self.layers = nn.ModuleList(layers_of(discriminator))
        self.hooked: list[tuple[Any, nn.Module]] | None = None

    def forward(self) -> list[Tensor]:
        if self.hooked is None:  # of torch's legacy style alone
            layers = list(self.layers)
            self.hooked = [(hook, x) for x in layers for hook in x._forward_pre_hooks.values()]
        for hook, layer in self.hooked:
            hook(layer, ())
        weights: list[Tensor] = [layer.weight for layer in self.layers]
        return weights


def model_of(normalize: Callable[[nn.Module], object], device: torch.device) -> Weights:
    """Normalized, and in training."""
    model = Weights().to(device)
    normalize(model)
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    return model


class _Loss(torch.autograd.Function):
    """One node in place of all that a model computes with its weights."""

    @staticmethod
    def forward(ctx: Any, grads: list[Tensor], *weights: Tensor) -> Tensor:
        ctx.grads = grads
        return grads[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, *grad: Any) -> Any:
        return None, *ctx.grads


def backward_of(model: Weights) -> Run:
    """An access to each weight, and the gradients of what lies behind them."""
    originals = raw_weights(model)
    grads = [torch.randn_like(weight) for weight in model()]
    return lambda: torch.autograd.grad(_Loss.apply(grads, *model()), originals)


def replay_of(model: Weights) -> Run:
    """Accesses after one that has iterated, and whose graph still waits for its backward."""
    kept: list[tuple[object, int]] = []  # from the first run, when no model is made any more

    def run() -> None:
        if not kept:
            kept.append((model(), autograd.backwards))
        _, autograd.backwards = kept[0]  # others' were not of this model
        model()

    return run


@torch.no_grad()
def evaluate(model: Weights) -> None:
    model()


def runs_of(device: torch.device) -> dict[Row, Run]:
    runs: dict[Row, Run] = {}
    for constraint in (SPECTRAL_NORM, WEIGHT_NORM):
        normalizations = BY_CONSTRAINT[constraint]
        for name in (NEW, LEGACY, PER_LAYER, FOREACH):
            models = [model_of(normalizations[name], device) for _ in range(3)]
            runs[constraint, FORWARD, name] = models[0]
            runs[constraint, BACKWARD, name] = backward_of(models[1])
            runs[constraint, EVALUATION, name] = partial(evaluate, models[2].eval())
    for name, normalize in REPLAYS.items():
        runs[SPECTRAL_NORM, REPLAY, name] = replay_of(model_of(normalize, device))
    return runs


def times(device: torch.device, seconds: float, stubs: bool) -> list[dict[str, Any]]:
    """A row for each constraint, pass and normalization; torch's median over ours with it."""
    with ExitStack() as patches:
        if stubs:
            patches.enter_context(stubbed_launches())
        runs = {"/".join(row): run for row, run in runs_of(device).items()}
        rotation = Rotation(
            runs, partial(synchronize, device), thread_time if stubs else perf_counter
        )
        for _ in range(rotation.calibrate(seconds)):
            rotation()
    rows = []
    for constraint, passed, name in (key.split("/") for key in runs):
        # A replay takes the place of torch's forward, which iterates.
        of_torch = f"{constraint}/{FORWARD if passed == REPLAY else passed}/{NEW}"
        row = rotation.statistics(of_torch)[f"{constraint}/{passed}/{name}"]
        times_faster = sorted(1 / ratio for ratio in row["ratio_quartiles"])
        rows.append(
            {
                "constraint": constraint,
                "pass": passed,
                "normalization": name,
                "median": row["median"],
                "quartiles": row["quartiles"],
                "torch_over_it": 1 / row["ratio"],
                "torch_over_it_quartiles": times_faster,
            }
        )
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """All of them: microseconds, and how many times faster than torch's parametrization."""
    lines = []
    for row in rows:
        low, high = (1e6 * seconds for seconds in row["quartiles"])
        slow, fast = row["torch_over_it_quartiles"]
        lines.append(
            [
                f"{row['constraint']}, {row['pass']}",
                row["normalization"],
                f"{1e6 * row['median']:.0f}",
                f"{low:.0f} to {high:.0f}",
                f"{row['torch_over_it']:.2f}",
                f"{slow:.2f} to {fast:.2f}",
            ]
        )
    header = ["eleven weights", "", "median µs", "quartiles", f"{NEW} over it", "quartiles"]
    return table(header, lines)
