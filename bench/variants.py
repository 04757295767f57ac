"""What is measured: one training access of a normalised weight, however it is normalised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm as torch_new

import snorm_triton
from bench.cases import Case

OURS, COPY, NEW, LEGACY = "ours", "copy", "torch new", "torch legacy"
OURS_GRAPH, NEW_GRAPH = "ours, CUDA graph", "torch new, CUDA graph"
NEW_COMPILED = "torch new, compiled"

Run = Callable[[], object]


@dataclass(frozen=True)
class Setting:
    case: Case
    device: torch.device
    dtype: torch.dtype
    backward: bool

    def module(self) -> nn.Module:
        return self.case.module(self.device, self.dtype)

    def grad_output(self) -> Tensor:
        weight = self.module().get_parameter("weight").detach()
        return torch.randn_like(weight)

    def run(self, access: Callable[[], Tensor], leaf: Tensor) -> Run:
        """One access, or one access and its backward, of a weight that hangs on `leaf`."""
        if not self.backward:
            return access
        grad_output = self.grad_output()
        # autograd.grad, not backward: no variant pays for adding to an existing .grad.
        return lambda: torch.autograd.grad(access(), leaf, grad_output)


class WeightOf(nn.Module):
    """A model that returns its layer's weight: torch.compile compiles modules."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self) -> Tensor:
        return self.layer.weight


def copy(setting: Setting) -> Run:
    weight = setting.module().get_parameter("weight").detach()
    buffer = torch.empty_like(weight)
    return lambda: buffer.copy_(weight)


def parametrized(setting: Setting, module: nn.Module, compiled: bool = False) -> Run:
    leaf = module.get_parameter("parametrizations.weight.original")
    weight_of = WeightOf(module)
    return setting.run(torch.compile(weight_of) if compiled else weight_of, leaf)


def ours(setting: Setting) -> Run:
    return parametrized(setting, snorm_triton.spectral_norm(setting.module()))


def new(setting: Setting) -> Run:
    return parametrized(setting, torch_new(setting.module()))


def new_compiled(setting: Setting) -> Run:
    torch.compiler.reset()
    return parametrized(setting, torch_new(setting.module()), compiled=True)


def legacy(setting: Setting) -> Run:
    module = torch.nn.utils.spectral_norm(setting.module())
    (hook,) = module._forward_pre_hooks.values()

    def access() -> Tensor:
        hook(module, ())
        return module.weight

    return setting.run(access, module.weight_orig)


def graphed(run: Run) -> Run:
    """`run` captured in a CUDA graph: what it costs with no launch cost left."""
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


def builders(setting: Setting) -> dict[str, Callable[[], Run]]:
    chosen: dict[str, Callable[[], Run]] = {
        COPY: lambda: copy(setting),
        OURS: lambda: ours(setting),
        NEW: lambda: new(setting),
        LEGACY: lambda: legacy(setting),
    }
    if setting.device.type == "cuda":
        chosen[OURS_GRAPH] = lambda: graphed(ours(setting))
        chosen[NEW_GRAPH] = lambda: graphed(new(setting))
    if setting.device.type != "cpu" and setting.case.compiled:
        chosen[NEW_COMPILED] = lambda: new_compiled(setting)
    return chosen
