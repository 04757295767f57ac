"""What is measured: one training access of a model's weights, however they are normalized."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from bench.cases import Case
from bench.normalizations import (
    BY_CONSTRAINT,
    LEGACY,
    NEW,
    NEWTON_SCHULZ,
    layers_of,
    raw_weights,
    those_of,
)

COPY = "copy"
COMPILES, GRAPHED = "{}, compiled", "{}, CUDA graph"
NEW_COMPILED = COMPILES.format(NEW)
# Which of them a run measures: accesses in eager mode, or beside ours in eager mode what a compiler
# or a graph makes of them, or all in one row, where only torch's is compiled.
EAGER, COMPILED, ALL = CHOICES = ("eager", "compiled", "all")

Run = Callable[[], object]


class WeightsOf(nn.Module):
    """A model whose forward reads the weight of each layer, and does nothing else."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers_of(model))

    def forward(self) -> list[Tensor]:
        return [layer.weight for layer in self.layers]


class LegacyWeightsOf(WeightsOf):
    """The same of layers whose weight a pre-forward hook computes."""

    def forward(self) -> list[Tensor]:
        weights = []
        for layer in self.layers:
            for hook in layer._forward_pre_hooks.values():
                hook(layer, ())
            # Taken off the layer, so that it lives no longer than in the other variants.
            weights.append(vars(layer).pop("weight"))
        return weights


@dataclass(frozen=True)
class Setting:
    case: Case
    device: torch.device
    dtype: torch.dtype
    backward: bool

    def module(self) -> nn.Module:
        return self.case.module(self.device, self.dtype)

    def weights(self) -> list[Tensor]:
        return [weight.detach() for weight in WeightsOf(self.module())()]


def copy(setting: Setting) -> Run:
    """Each weight into a buffer that exists already: the yardstick, forward and backward."""
    weights = setting.weights()
    buffers = [torch.empty_like(weight) for weight in weights]
    if len(weights) == 1:
        return partial(buffers[0].copy_, weights[0])
    return partial(torch._foreach_copy_, buffers, weights)


def access(setting: Setting, normalization: str, compiled: bool = False) -> Run:
    """One access of every weight, or one access and its backward."""
    model = (LegacyWeightsOf if normalization == LEGACY else WeightsOf)(setting.module())
    BY_CONSTRAINT[setting.case.constraint][normalization](model)
    leaves = raw_weights(model)
    read = torch.compile(model) if compiled else model
    if not setting.backward:
        return read
    grads = [torch.randn_like(weight) for weight in setting.weights()]
    # autograd.grad, not backward: no variant pays for adding to an existing .grad.
    return lambda: torch.autograd.grad(read(), leaves, grads)


def compiled_access(setting: Setting, normalization: str) -> Run:
    torch.compiler.reset()  # what was compiled for other rows counts towards a limit
    return access(setting, normalization, compiled=True)


def graphed_access(setting: Setting, normalization: str) -> Run:
    """An access captured in a CUDA graph: what it costs with no launch cost left."""
    run = access(setting, normalization)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = run()

    def replay(kept: object = outputs) -> None:
        graph.replay()

    return replay


def builders(
    setting: Setting, ours: tuple[str, ...], variants: str, compiles: bool = True
) -> dict[str, Callable[[], Run]]:
    """The variants by name, each to be built when its turn comes; the first of `ours` leads."""
    others = those_of(setting.case.constraint, NEWTON_SCHULZ, NEW, LEGACY)
    eager = ours[:1] if variants == COMPILED else (*ours, *others)
    chosen: dict[str, Callable[[], Run]] = {COPY: partial(copy, setting)}
    for normalization in eager:
        chosen[normalization] = partial(access, setting, normalization)
    if variants == EAGER:
        return chosen
    if compiles and setting.case.compiled:
        chosen[NEW_COMPILED] = partial(compiled_access, setting, NEW)
        if variants == COMPILED:  # after torch's, so that no reset takes away what it compiled
            chosen[COMPILES.format(ours[0])] = partial(access, setting, ours[0], compiled=True)
    if setting.device.type == "cuda":
        for normalization in those_of(setting.case.constraint, ours[0], NEW):
            chosen[GRAPHED.format(normalization)] = partial(graphed_access, setting, normalization)
    return chosen
