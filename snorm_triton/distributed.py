"""Normalized models on many devices. docs/distributed.md says what works with what."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ParallelStyle
from torch.distributed.tensor.parallel import parallelize_module as torch_parallelize_module

from .modules.spectral_norm import SpectralNormWrapper
from .ops.modes.sharded import check
from .ops.modes.shards import broadcast
from .parametrizations.spectral_norm import SpectralNormParametrization

M = TypeVar("M", bound=nn.Module)

__all__ = ["parallelize_module"]


def __dir__() -> list[str]:
    return __all__


def parallelize_module(
    model: M,
    mesh: DeviceMesh | None = None,
    plan: ParallelStyle | dict[str, ParallelStyle] | None = None,
    *,
    src_data_rank: int | None = 0,
) -> M:
    """:func:`torch.distributed.tensor.parallel.parallelize_module` of a model normalized already.

    Takes the normalization off, calls torch's, and puts it back: with the options, u, v and sigma
    it had, which are those of rank ``src_data_rank`` of the mesh, as the weights are. A model that
    is parallelized first and normalized then needs no more than torch's. Every rank must call it.

    Args:
        model: what :func:`snorm_triton.spectral_norm` or :func:`apply_spectral_norm` was given.
        mesh: one-dimensional, as torch's ``device_mesh``.
        plan: as torch's ``parallelize_plan``.
        src_data_rank: whose weights, u and v are distributed; None has each rank take its own.

    Returns:
        The same model, its sharded weights DTensors.

    Raises:
        ValueError: FSDP2 has sharded the model already, or a parameter cannot be normalized where
            the plan has placed it. What torch raises goes through. The model is normalized in any
            case.
    """
    taken: list[tuple[SpectralNormWrapper, list[SpectralNormParametrization]]] = []
    try:
        for wrapper in list(_normalized(model)):
            parametrizations = wrapper.parametrizations
            wrapper.remove(leave_parametrized=False)
            taken.append((wrapper, parametrizations))
        torch_parallelize_module(model, mesh, plan, src_data_rank=src_data_rank)
        for wrapper, parametrizations in taken:
            weight = wrapper.original
            if not isinstance(weight, DTensor):
                continue
            for each in parametrizations:
                check(weight, each.options.backend)
                if src_data_rank is not None:
                    broadcast(weight.device_mesh, *each.buffers(), source=src_data_rank)
    finally:
        for wrapper, parametrizations in taken:
            wrapper.put_back(parametrizations)
    return model


def _normalized(model: nn.Module) -> Iterator[SpectralNormWrapper]:
    """The parameters that have no parametrization but ours: others may not take a DTensor."""
    for module in model.modules():
        found: Any = getattr(module, "parametrizations", {})
        for name, parametrizations in found.items():
            if all(isinstance(each, SpectralNormParametrization) for each in parametrizations):
                yield SpectralNormWrapper(module, name)
