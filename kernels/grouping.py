"""Which of many calls share their launches."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

from torch import Tensor

from ..ops.rescaling import Rescaling

C = TypeVar("C", bound=tuple[Any, ...])
R = TypeVar("R")


def grouped(
    calls: Sequence[C],
    kind: Callable[[C], Hashable],
    together: Callable[[Sequence[C]], Sequence[R]],
    alone: Callable[..., R],
) -> list[R]:
    """The results of ``calls`` in their order: those of a kind together, those of None alone."""
    if len(calls) == 1:
        return [alone(*calls[0])]
    alike: dict[Hashable, list[int]] = {}
    for i, call in enumerate(calls):
        alike.setdefault(kind(call), []).append(i)
    results: dict[int, R] = {}
    for each, members in alike.items():
        chosen = [calls[i] for i in members]
        is_one_launch = each is not None and len(members) > 1
        of_kind = together(chosen) if is_one_launch else [alone(*call) for call in chosen]
        results.update(zip(members, of_kind, strict=True))
    return [results[i] for i in range(len(calls))]


def numbers_of(rescaling: Rescaling) -> dict[str, Any]:
    """What is one for all weights of a launch that rescales them."""
    learns = rescaling.learned is not None
    return {"BOUND": rescaling.bound, "SCALE": rescaling.scale, "LEARNS": learns}


def learns_alike(weight: Tensor, rescaling: Rescaling) -> bool:
    """Whether kernels find the learned scale, which they take to be of the weight's dtype."""
    return rescaling.learned is None or rescaling.learned.dtype == weight.dtype


def fits_table(*tensors: Tensor) -> bool:
    """Whether kernels find them through a table: they take it for granted that 16 bytes align."""
    return all(x.data_ptr() % 16 == 0 and x.numel() < 2**31 for x in tensors)
