"""What cannot be done to a normalized module, or before it is one: each said in one sentence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..ops.convolution_geometry import CONVOLUTIONS, TRANSPOSED
from ..ops.dispatch import is_sharded

DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.complex64,
    torch.complex128,
)


def check_tensor(tensor: Tensor, where: str) -> None:
    """Raise ValueError for a parameter of a kind that has no spectral norm."""
    if tensor.layout != torch.strided:
        raise ValueError(f"{where} is sparse ({tensor.layout}); it must be dense")
    if tensor.dtype not in DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise ValueError(f"{where} is {tensor.dtype}; it must be one of {names}")
    if tensor.ndim == 0:
        raise ValueError(f"{where} is a scalar; it must have a dimension or more")


def check_sharding(module: nn.Module, tensor: Tensor, where: str, backend: str) -> None:
    """Raise ValueError for a parameter ``tensor`` of ``module`` that is sharded as none may be."""
    check_unsharded(module, tensor, where)
    if is_sharded(tensor):
        from ..ops.modes.sharded import check

        check(tensor, backend)


def check_unsharded(module: nn.Module, tensor: Tensor, where: str) -> None:
    """Raise ValueError for a parameter that FSDP2 has sharded, which would go on setting it."""
    if is_sharded(tensor) and getattr(module, "_is_fsdp_managed_module", False):
        raise ValueError(
            f"{where} is sharded by fully_shard already: normalize the model first, then call "
            "fully_shard"
        )


def check_convolution(
    module: nn.Module, name: str, tensor: Tensor, where: str, options: Any
) -> None:
    """Raise ValueError where ``operator="convolution"`` has none, or cannot be computed."""
    if not isinstance(module, CONVOLUTIONS + TRANSPOSED) or name != "weight":
        raise ValueError(
            f"operator='convolution' is of the weight of a Conv or ConvTranspose, not of {where}"
        )
    if options.backend == "triton":
        raise ValueError("backend='triton' cannot run: torch convolves for operator='convolution'")
    if is_sharded(tensor):
        raise ValueError(f"{where} is sharded, which operator='convolution' does not take")


def check_removable(parametrizations: nn.Module, where: str) -> None:
    """Raise ValueError where FSDP2 would go on setting the parameter of what is removed."""
    if getattr(parametrizations, "_is_fsdp_managed_module", False):
        raise ValueError(
            f"{where} is sharded by fully_shard: load its full state dict into a model that is "
            "not, and remove the spectral norm there"
        )


def refuse_parallelizing(cls: type[nn.Module]) -> None:
    """Let the class of one parametrized module refuse what ColwiseParallel tries on it."""
    base: Any = cls.__bases__[0]

    def register_parameter(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if name.startswith("parametrizations."):
            raise RuntimeError(
                "torch's parallelize_module cannot shard a normalized parameter: call "
                "snorm_triton.distributed.parallelize_module instead, or parallelize the model "
                "before normalizing it"
            )
        base.register_parameter(self, name, param)

    cls.register_parameter = register_parameter  # type: ignore[method-assign]


def no_parameter(module: nn.Module, name: str) -> ValueError:
    """What to raise where ``module`` has no parameter ``name``, with what it has instead."""
    names = [each for each, tensor in module._parameters.items() if tensor is not None]
    other = ""
    if any(child is not None for child in module._modules.values()):
        other = "; for those of its submodules: apply_spectral_norm, or recursive=True to remove"
    for hook in module._forward_pre_hooks.values():  # such as that of weight_norm
        if getattr(hook, "name", None) == name:
            other = f" (a {type(hook).__name__} hook computes {name!r}: remove that first)"
    return ValueError(
        f"name={name!r} is not a parameter of {type(module).__name__}; it has "
        f"{', '.join(names) or 'none'}{other}"
    )
