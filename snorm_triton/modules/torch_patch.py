"""torch's own spectral and weight norms computed by us, for code that one cannot change."""

from __future__ import annotations

from contextlib import nullcontext
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from ..functional import state_dtype
from ..ops import modes, recomputation, weight_norm
from ..ops.calls import Access, Iterate, Replay, State
from ..ops.matrix_view import MatrixView
from ..ops.modes.composite import without_autocast
from ..ops.power_iteration import estimate
from ..ops.state import overwrite
from ..ops.torch_any_device import Matrix, in_dtype_of
from ..ops.weight_norm import WeightNormAccess
from ..parametrizations.iteration import choose
from ..parametrizations.options import SpectralNormOptions
from ..torch_internals import functorch
from ..torch_internals.checkpoints import unseen
from ..torch_internals.parametrize import (
    LegacySpectralNorm,
    LegacyWeightNorm,
    TorchSpectralNorm,
    TorchWeightNorm,
)

_lock = Lock()
_active: set[TorchPatch] = set()


class TorchPatch:
    """What :func:`patch_torch` returns: undone by :meth:`undo`, or at the end of a ``with``."""

    def __init__(self) -> None:
        with _lock:
            _active.add(self)
            if len(_active) == 1:
                for place in _PLACES:
                    place.install()

    def undo(self) -> None:
        """Let torch compute again, once every other call is undone too; in any order."""
        with _lock:
            was_active = self in _active
            _active.discard(self)
            if was_active and not _active:
                for place in _PLACES:
                    place.uninstall()

    def __enter__(self) -> TorchPatch:
        return self

    def __exit__(self, *error: object) -> None:
        self.undo()


def patch_torch() -> TorchPatch:
    """Compute torch's own norms with our kernels: one line, for code that stays as it is.

    The hooks :func:`torch.nn.utils.spectral_norm` and :func:`torch.nn.utils.weight_norm`, and
    the parametrizations :func:`torch.nn.utils.parametrizations.spectral_norm` and
    :func:`torch.nn.utils.parametrizations.weight_norm`, of modules that there are and that come,
    on any device. All else about the modules stays torch's: names, keys, hooks, buffers, removal.
    Zero weights are divided by 1, u and v outlast a weight that is not finite, the recomputations
    of activation checkpoints take what their forwards took, and :func:`snorm_triton.sigmas` lists
    the last sigma. A subclass that computes by methods of its own is left alone, and so are 1-D
    parameters.

    The numbers are torch's: the hook's power iteration takes v first, which here is two products of
    its own before the weight is divided. In code that torch.compile compiles, spectral norms are
    torch's own: its operations, which the compiler fuses.

    Returns:
        A context manager; or call its ``undo()``.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from snorm_triton import patch_torch, sigmas
        >>> layer = torch.nn.utils.spectral_norm(nn.Linear(20, 40))
        >>> with patch_torch():
        ...     y = layer(torch.randn(3, 20))
        >>> list(sigmas(layer))
        ['weight']
    """
    return TorchPatch()


class _Place:
    """A method of torch's that is replaced, where the class overrides none that it calls."""

    def __init__(self, owner: Any, name: str, calls: tuple[str, ...], replacement: Any) -> None:
        self.owner = owner
        self.name = name
        self.iterates = bool(calls)  # a spectral norm, then
        self.original = vars(owner).get(name)
        self.calls = {call: getattr(owner, call, None) for call in calls}
        self.replacement = replacement

    def install(self) -> None:
        if self.original is not None:
            setattr(self.owner, self.name, self.replacement)

    def uninstall(self) -> None:
        # What has been put over ours since then stays, and comes through ours to torch's.
        if vars(self.owner).get(self.name) is self.replacement:
            setattr(self.owner, self.name, self.original)

    def takes(self, norm: Any, weight: Tensor) -> bool:
        is_torchs = all(getattr(type(norm), call, None) is was for call, was in self.calls.items())
        is_plain = weight.ndim > 1 and weight.layout == torch.strided
        # A compiler makes kernels of torch's operations by itself, and of their writes to u and v.
        is_left = self.iterates and torch.compiler.is_compiling()
        is_left = is_left or (self is _HOOK and weight.is_complex())
        return bool(_active) and is_torchs and is_plain and not is_left


def _compute_weight(self: Any, module: nn.Module, do_power_iteration: bool) -> Tensor:
    weight = getattr(module, self.name + "_orig")
    if not _HOOK.takes(self, weight):
        return _HOOK.original(self, module, do_power_iteration)  # type: ignore[no-any-return]
    u, v = getattr(module, self.name + "_u"), getattr(module, self.name + "_v")
    return _normalized(self, weight, u, v, do_power_iteration, v_first=True)


def _forward(self: Any, weight: Tensor) -> Tensor:
    if not _PARAMETRIZATION.takes(self, weight):
        return _PARAMETRIZATION.original(self, weight)  # type: ignore[no-any-return]
    return _normalized(self, weight, self._u, self._v, self.training, v_first=False)


def _compute_scaled_weight(self: Any, module: nn.Module) -> Tensor:
    g, v = getattr(module, self.name + "_g"), getattr(module, self.name + "_v")
    if not _WEIGHT_NORM_HOOK.takes(self, v):
        return _WEIGHT_NORM_HOOK.original(self, module)  # type: ignore[no-any-return]
    return _scaled(self, g, v)


def _forward_of_both(self: Any, g: Tensor, v: Tensor) -> Tensor:
    if not _WEIGHT_NORM.takes(self, v):
        return _WEIGHT_NORM.original(self, g, v)  # type: ignore[no-any-return]
    return _scaled(self, g, v)


def _scaled(norm: Any, g: Tensor, v: Tensor) -> Tensor:
    rows = None if norm.dim == -1 else norm.dim % v.ndim
    return weight_norm.normalize(WeightNormAccess(v, g, rows, v.dtype))


class _Norm:
    """What decides about an access, as a parametrization of ours has it."""

    def __init__(self, norm: Any, iterates: bool) -> None:
        self.options = SpectralNormOptions(norm.n_power_iterations, norm.eps, norm.dim)
        self.iterates = iterates
        self.owner = norm
        self._buffers: dict[str, Tensor] = {}


def _normalized(
    norm: Any, weight: Tensor, u: Tensor, v: Tensor, iterates: bool, v_first: bool
) -> Tensor:
    checkpoints = recomputation.around_access()
    with unseen() if checkpoints else nullcontext():
        return _compute(norm, weight, (u, v), iterates, checkpoints, v_first)


def _compute(
    norm: Any,
    weight: Tensor,
    vectors: tuple[Tensor, Tensor],
    iterates: bool,
    checkpoints: recomputation.Checkpoints | None,
    v_first: bool,
) -> Tensor:
    u, v = vectors
    dtype, last = state_dtype(weight), getattr(norm, "sigma", None)
    if not isinstance(last, Tensor):
        last = u.new_ones((), dtype=dtype.to_real())
    live = State(u.detach().to(dtype), v.detach().to(dtype), last)
    taken, step = choose(_Norm(norm, iterates), weight, live, checkpoints)
    state = State(*taken)
    is_new, dim = isinstance(step, Iterate), norm.dim % weight.ndim
    if isinstance(step, Iterate):
        step = Iterate(step.n)  # its results are copied below, into buffers of any dtype
        if v_first:
            state = _iterate_v_first(weight, state, dim, step)
            step = Replay(state.sigma)
    access = Access(weight, state.u, state.v, dim, step, weight.dtype)
    normalized = modes.current(weight).normalize(access)
    if is_new:
        overwrite([u, v], [normalized.u, normalized.v])
    if not torch.compiler.is_compiling() and not functorch.active():
        sigma = normalized.sigma.detach()
        norm.__dict__["sigma"] = sigma.abs() if sigma.is_complex() else sigma
    if checkpoints:
        recomputation.keep(checkpoints, norm, normalized.state)
    return normalized.weight_sn


class _Transposed:
    """W^T of a real matrix W."""

    def __init__(self, matrix: Matrix) -> None:
        self.matvec = matrix.adjoint
        self.adjoint = matrix.matvec
        self.inner = matrix.inner


@torch.no_grad()
def _iterate_v_first(weight: Tensor, state: State, dim: int, step: Iterate) -> State:
    """As the hook: ``v = W^T u``, then ``u = W v``."""
    wide = in_dtype_of(weight.detach(), state.u).movedim(dim, 0).flatten(1).contiguous()
    transposed = _Transposed(Matrix(wide, MatrixView(1, *wide.shape)))
    v, u, sigma = without_autocast(weight.device.type, estimate, transposed, state.v, state.u, step)
    return State(u, v, sigma)


_HOOK = _Place(LegacySpectralNorm, "compute_weight", ("reshape_weight_to_matrix",), _compute_weight)
_PARAMETRIZATION = _Place(
    TorchSpectralNorm, "forward", ("_reshape_weight_to_matrix", "_power_method"), _forward
)
_WEIGHT_NORM_HOOK = _Place(LegacyWeightNorm, "compute_weight", (), _compute_scaled_weight)
_WEIGHT_NORM = _Place(TorchWeightNorm, "forward", (), _forward_of_both)
_PLACES = (_HOOK, _PARAMETRIZATION, _WEIGHT_NORM_HOOK, _WEIGHT_NORM)
