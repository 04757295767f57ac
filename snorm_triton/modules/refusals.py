"""What cannot be done to a normalized module, or before it is one: each said in one sentence."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..ops.dispatch import is_sharded


def check_sharding(module: nn.Module, tensor: Tensor, where: str, backend: str) -> None:
    """Raise ValueError for a parameter ``tensor`` of ``module`` that is sharded as none may be."""
    if not is_sharded(tensor):
        return
    if getattr(module, "_is_fsdp_managed_module", False):
        raise ValueError(
            f"{where} is sharded by fully_shard already: normalize the model first, then call "
            "fully_shard"
        )
    from ..ops.modes.sharded import check

    check(tensor, backend)


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
