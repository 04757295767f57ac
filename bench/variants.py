"""What is measured: one training access of a model's weights, however they are normalized."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from bench.cases import Case
from bench.normalizations import LEGACY, NEW, NORMALIZATIONS, layers_of, raw_weights

COPY, NEW_COMPILED = "copy", "torch new, compiled"
GRAPHED = "{}, CUDA graph"

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
    NORMALIZATIONS[normalization](model)
    leaves = raw_weights(model)
    read = torch.compile(model) if compiled else model
    if not setting.backward:
        return read
    grads = [torch.randn_like(weight) for weight in setting.weights()]
    # autograd.grad, not backward: no variant pays for adding to an existing .grad.
    return lambda: torch.autograd.grad(read(), leaves, grads)


def compiled_access(setting: Setting, normalization: str) -> Run:
    torch.compiler.reset()
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
    setting: Setting, ours: tuple[str, ...], compiled: bool
) -> dict[str, Callable[[], Run]]:
    """The variants by name, each to be built when its turn comes; the first of `ours` leads."""
    chosen: dict[str, Callable[[], Run]] = {COPY: partial(copy, setting)}
    for normalization in (*ours, NEW, LEGACY):
        chosen[normalization] = partial(access, setting, normalization)
    if compiled and setting.case.compiled:
        chosen[NEW_COMPILED] = partial(compiled_access, setting, NEW)
    if setting.device.type == "cuda":
        for normalization in (ours[0], NEW):
            chosen[GRAPHED.format(normalization)] = partial(graphed_access, setting, normalization)
    return chosen
