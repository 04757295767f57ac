"""u, v and sigma of a weight as buffers: drawn, warmed up, moved, loaded and copied."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import recomputation
from .dispatch import is_sharded
from .functional import matrix_shape, spectral_normalize, state_dtype

WARM_UP_ITERATIONS = 15


class SingularVectors(nn.Module):
    r"""The first singular vectors of a weight, of which ``dim`` are the rows, and its sigma.

    Under torch's names, so that state dicts are interchangeable: ``_u`` of shape (M,) and ``_v`` of
    shape (N,), for a weight read as a matrix of shape (M, N) with M the size of ``dim``. A 1-D
    weight has neither. The last sigma is a buffer of shape () that no state dict holds.

    Args:
        weight: the weight as it is now, at least 1-D, floating or complex.
        dim: the dimension of the outputs.
        eps: lower bound of \|u\| and \|v\| where they are drawn.
        stable_fp32: keep them at least float32 when the module becomes half or bfloat16.
        backend: see :func:`snorm_triton.dispatch.select`.
        vectors: u and v of any dtype; None leaves them to :meth:`reset_parameters`.
    """

    _u: Tensor
    _v: Tensor
    _sigma: Tensor
    _is_cold = False  # whether u and v are as drawn
    _evaluated: tuple[Tensor, int] | None = (
        None  # sigma of an evaluation; the version of _sigma then
    )
    # What belongs to accesses of this very module, not to a copy of it.
    _transient: tuple[str, ...] = ("owner", "_evaluated")

    def __init__(
        self,
        weight: Tensor,
        dim: int,
        eps: float,
        stable_fp32: bool,
        backend: str,
        vectors: tuple[Tensor, Tensor] | None,
    ) -> None:
        super().__init__()
        self.dim = dim % weight.ndim
        self.eps = eps
        self.stable_fp32 = stable_fp32
        self.backend = backend
        self.owner = object()  # of what checkpoints keep
        dtype = state_dtype(weight)
        if weight.ndim > 1:
            sizes = matrix_shape(weight, self.dim)
            u, v = vectors or [
                torch.empty(size, dtype=dtype, device=weight.device) for size in sizes
            ]
            self.register_buffer("_u", u.to(dtype).contiguous())
            self.register_buffer("_v", v.to(dtype).contiguous())
            self._own()
        sigma = torch.full((), torch.nan, dtype=dtype.to_real(), device=weight.device)
        self.register_buffer("_sigma", sigma, persistent=False)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw u and v anew, in place; the next access iterates on them as registration does.

        Under torch's name for it, so that what initializes a model after ``to_empty`` finds it. One
        that leaves the meta device is reset without being asked.
        """
        if "_u" in self._buffers:
            for vector in (self._u, self._v):
                wide = torch.empty_like(vector, dtype=state_dtype(vector)).normal_(0, 1)
                vector.copy_(F.normalize(wide, dim=0, eps=self.eps))
        self._sigma.fill_(torch.nan)
        self._replaced()
        self._is_cold = True

    @torch.no_grad()
    def refresh(self, weight: Tensor, n_power_iterations: int = WARM_UP_ITERATIONS) -> None:
        """Iterate on u and v for ``weight`` as it is now, whatever the mode, in place.

        From u and v as they are, which may be averages; drawn anew where they are not finite or
        their lengths are neither that of a unit vector nor that of an average of such.
        """
        if weight.ndim > 1 and not self._is_usable():
            self.reset_parameters()
        self._warm_up(weight, n_power_iterations)

    @property
    def sigma(self) -> Tensor:
        """Sigma as of the last access, shape (), detached; 0 for a zero weight.

        NaN from when a checkpoint is loaded until the next access. An evaluation in compiled code
        does not count, nor one before the module was moved or converted.
        """
        sigma = self._sigma
        if self._evaluated is not None and self._evaluated[1] == version(sigma):
            sigma = self._evaluated[0].to(sigma.device)
        sigma = sigma.detach()
        return sigma.abs() if sigma.is_complex() else sigma.clone()

    def _replaced(self) -> None:
        """u and v are others than an access has left."""

    @torch.no_grad()
    def _warm_up(self, weight: Tensor, n_power_iterations: int = WARM_UP_ITERATIONS) -> None:
        if weight.is_meta:
            return
        if weight.ndim == 1:
            self._sigma.copy_(torch.linalg.vector_norm(weight, dtype=state_dtype(weight)))
        else:
            dtype = state_dtype(weight)
            if is_sharded(weight):
                from .sharded import broadcast

                broadcast(cast(Any, weight).device_mesh, self._u, self._v)
            _, u, v, sigma = spectral_normalize(
                weight,
                F.normalize(self._u.to(dtype), dim=0, eps=self.eps),
                F.normalize(self._v.to(dtype), dim=0, eps=self.eps),
                dim=self.dim,
                n_power_iterations=n_power_iterations,
                backend=self.backend,
            )
            self._u.copy_(u)
            self._v.copy_(v)
            self._sigma.copy_(sigma.abs())
        self._is_cold = False

    def _is_usable(self) -> bool:
        """Whether u and v have the lengths of unit vectors, or of averages of such; reads them."""
        lengths = (torch.linalg.vector_norm(x.to(state_dtype(x))) for x in (self._u, self._v))
        return all(0.01 < length.abs() < 1.01 for length in lengths)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in self._transient}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.owner = object()
        self._own()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        before, was_meta = dict(self._buffers), self._sigma.is_meta
        super()._apply(fn, recurse)
        self._evaluated = None
        self._widen(before)
        if was_meta and not self._sigma.is_meta:
            self.reset_parameters()
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._evaluated = None
        self._widen(dict(self._buffers))
        if (u := self._buffers.get("_u")) is not None:
            for name, buffer in self._buffers.items():
                # As where a state dict is assigned to a module on the meta device: it holds no
                # others than u and v.
                if buffer is not None and buffer.device != u.device:
                    self._buffers[name] = torch.empty_like(buffer, device=u.device)
        with torch.no_grad():
            self._sigma.fill_(torch.nan)
        self._replaced()
        if prefix + "_u" in state_dict and prefix + "_v" in state_dict:
            self._is_cold = False

    def _widen(self, sources: dict[str, Tensor | None]) -> None:
        """Where a buffer has become half precision, take it from ``sources`` in float32 instead.

        Contiguous in any case: a state dict that is assigned may hold columns of a matrix.
        """
        if self._sigma.is_complex():
            self._sigma = self._sigma.real.contiguous()
        for name, buffer in self._buffers.items():
            source = sources[name]
            if buffer is None or source is None:
                continue
            dtype = torch.promote_types(buffer.dtype, torch.float32)
            if self.stable_fp32 and dtype != buffer.dtype:
                buffer = source.to(buffer.device, dtype)
            self._buffers[name] = buffer.contiguous()
        self._own()

    def _own(self) -> None:
        if (u := self._buffers.get("_u")) is not None:
            recomputation.own(u, self.owner)


def version(tensor: Tensor) -> int:
    """Of its memory, by which changes in place are told; one made in inference mode has none."""
    return 0 if tensor.is_inference() else tensor._version
