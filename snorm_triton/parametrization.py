"""The parametrization that normalizes a weight at each access and keeps u, v and sigma."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.utils.parametrize import ParametrizationList

from . import recomputation, transforms, updates
from .checks import check_dim, check_numbers, check_policy, check_vectors
from .dispatch import is_sharded, select
from .functional import l2_normalize, normalize, state_dtype
from .normalization import Request, SpectralNormalized
from .recomputation import State
from .singular_vectors import WARM_UP_ITERATIONS, SingularVectors, version


class Prepared(Protocol):
    """A weight normalized ahead of its access, where a model's are normalized together."""

    @property
    def state(self) -> State | None:
        """What it was divided by; None where torch.compile traces it."""

    def serves(self, weight: Tensor, parametrization: SpectralNormParametrization) -> bool:
        """Whether an access to ``weight`` here and now gets what was prepared."""

    def hand_over(self) -> Tensor:
        """The normalized weight, safe to use on the current stream."""


class SpectralNormParametrization(SingularVectors):
    r"""``forward(W) = W / sigma(W)``, for ``torch.nn.utils.parametrize.register_parametrization``.

    Holds the singular vectors as buffers under torch's names, so that state dicts are
    interchangeable: ``_u`` of shape (M,) and ``_v`` of shape (N,), for a weight read as a matrix of
    shape (M, N) with M the size of ``dim``. A 1-D weight has neither: it is divided by its L2 norm.
    The last sigma is a buffer of shape () that no state dict holds.

    Starts from random vectors, drawn as torch draws them, and 15 power iterations, so it can be
    used in evaluation before any training. In training each access iterates, or with
    ``power_iter="update"`` the first one after a step of an optimizer or another change of the
    weight, and later ones replay its u, v and sigma. In evaluation none does, and nothing is
    written. The buffers are updated in place: replicas that share their
    storage see it, and their addresses stay. What backward needs is never the live buffer.

    Under ``torch.func`` and forward-mode differentiation it computes in torch's own operations,
    whatever the backend, and writes a buffer unless the samples of a ``vmap`` share it and differ.

    Args:
        weight: the weight as it is now, at least 1-D, floating or complex.
        n_power_iterations: iterations per access in training.
        dim: the dimension of the outputs.
        eps: lower bound of \|u\|, \|v\| in evaluation, and of the norm of a 1-D weight.
        stable_fp32: keep u, v and sigma at least float32 when the module becomes half or bfloat16.
        power_iter_on_eval: iterate in evaluation too.
        power_iter: ``"access"`` or ``"update"``.
        autocast_output: under autocast, return a float32 weight in autocast's dtype.
        backend: see :func:`snorm_triton.dispatch.select`.
        vectors: u and v to go on from, as they are, in place of random ones and iterations; sigma
            is then NaN until the first access. A 1-D weight has none.

    Raises:
        IndexError: ``dim`` is out of range.
        ValueError: ``n_power_iterations`` or ``eps`` is not positive, ``power_iter`` is unknown,
            ``backend`` cannot run, or ``vectors`` are not of shapes (M,) and (N,).
    """

    _due: Tensor  # of policy "update": whether the next access of compiled code iterates
    _transient = (*SingularVectors._transient, "prepared", "_updated_for")
    prepared: Prepared | None = None
    follows_steps_alone = False  # where the weight is a new temporary at each access

    def __init__(
        self,
        weight: Tensor,
        n_power_iterations: int = 1,
        dim: int = 0,
        eps: float = 1e-12,
        *,
        stable_fp32: bool = True,
        power_iter_on_eval: bool = False,
        power_iter: str = "access",
        autocast_output: bool = False,
        backend: str = "auto",
        vectors: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        check_dim(dim, weight.shape)
        check_numbers(n_power_iterations, eps)
        check_policy(power_iter)
        select(weight, backend)
        if vectors is not None and weight.ndim > 1:
            check_vectors(vectors, weight, dim)
        super().__init__(weight, dim, eps, stable_fp32, backend, vectors)
        self.n_power_iterations = n_power_iterations
        self.power_iter_on_eval = power_iter_on_eval
        self.power_iter = power_iter
        self.autocast_output = autocast_output
        if power_iter == "update":
            self.register_buffer("_due", torch.ones_like(self._sigma), persistent=False)
            self._follow_updates()
        if vectors is None or weight.ndim == 1:
            self.reset_parameters()
            self._warm_up(weight)
        if not stable_fp32:
            self._apply(lambda state: state.to(weight.dtype))

    def _warm_up(self, weight: Tensor, n_power_iterations: int = WARM_UP_ITERATIONS) -> None:
        super()._warm_up(weight, n_power_iterations)
        self.prepared = None

    def _follow_updates(self) -> None:
        self._updated_for: tuple[object, ...] | None = None  # what the last iteration was of
        updates.follow(self)

    def _replaced(self) -> None:
        if self.power_iter == "update":
            self._updated_for = None
            with torch.no_grad():
                self._due.fill_(1)

    @property
    def due(self) -> Tensor:
        """Raised by every step of an optimizer, shape (): compiled code sees no Python number."""
        return self._due

    def _now(self, weight: Tensor) -> tuple[object, ...]:
        """What an iteration now would be of: it is due where that has changed."""
        if self.follows_steps_alone or "_is_fsdp_managed_module" in self.__dict__:
            return (updates.steps,)
        if transforms.active():
            weight = transforms.plain(weight)
        return (
            updates.steps,
            version(weight),
            _memory(weight),
            _memory(self._u),  # functional_call may bring another
        )

    def _is_due(self, weight: Tensor) -> bool:
        """Whether the weight may have changed since the last iteration."""
        now, last = self._now(weight), self._updated_for
        if last is not None and last[0] != updates.steps and self._due.device.type == "cpu":
            # Compiled code has iterated since that step, if its flag is down.
            return bool(self._due.item())
        return now != last

    def _has_iterated(self, weight: Tensor) -> None:
        self._updated_for = self._now(weight)
        if transforms.active():
            transforms.write((self._due,), (torch.zeros_like(self._due),))
        else:
            with torch.no_grad():
                self._due.zero_()

    def forward(self, weight: Tensor) -> Tensor:
        """``weight / sigma``, of the weight's shape, dtype and memory layout."""
        if weight.ndim == 1:
            weight_sn, sigma = l2_normalize(weight, self.eps)
            if self._sigma.device != weight.device:
                # Its state dict was assigned to a module on the meta device, and has no sigma.
                self._sigma = torch.empty_like(self._sigma, device=weight.device)
            if transforms.active():
                transforms.write((self._sigma,), (sigma,))
            else:
                with torch.no_grad():
                    self._sigma.copy_(sigma)
            return weight_sn
        prepared = self.prepared
        if prepared is not None and prepared.serves(weight, self):
            return self._serve(prepared, weight)
        is_compiling = torch.compiler.is_compiling()
        may_be_replay = not is_compiling and recomputation.is_possible()
        if may_be_replay:  # in two branches: the usual one enters no context
            with recomputation.unseen():
                request = self.request(weight, is_compiling, may_be_replay)
                normalized = normalize(request)
        else:
            request = self.request(weight, is_compiling, may_be_replay)
            normalized = normalize(request)
        if not is_compiling:
            self.took(request, normalized, may_be_replay)
        return normalized.weight_sn

    def _serve(self, prepared: Prepared, weight: Tensor) -> Tensor:
        """What an access to ``weight`` gets of it."""
        state, weight_sn = prepared.state, prepared.hand_over()
        if state is None:
            return weight_sn
        if not torch.is_grad_enabled() or recomputation.is_possible():
            around = recomputation.around()
            recomputation.replay(around, self.owner)  # what was kept here: it is in `prepared`
            recomputation.keep(around, self.owner, state)
        if transforms.active():  # to which its graph is unknown
            dtype = self.output_dtype(weight)
            request = Request(weight, state.u, state.v, self.dim, 0, self.eps, dtype, self.backend)
            return normalize(request).weight_sn
        return weight_sn if torch.is_grad_enabled() else weight_sn.detach()

    def took(self, request: Request, normalized: SpectralNormalized, may_be_replay: bool) -> None:
        """Note what an access took, once it is computed in eager mode."""
        if request.n_power_iterations > 0:
            if self.power_iter == "update":
                self._has_iterated(request.weight)
        elif request.sigma is None and not transforms.active():
            self.__dict__["_evaluated"] = normalized.sigma.detach(), version(self._sigma)
        if may_be_replay or not torch.is_grad_enabled():  # as in a reentrant checkpoint
            state = State(normalized.u, normalized.v, normalized.sigma.detach())
            recomputation.keep(recomputation.around(), self.owner, state)

    def output_dtype(self, weight: Tensor) -> torch.dtype:
        """Of what an access to ``weight`` returns here and now."""
        if self.autocast_output and weight.dtype == torch.float32:
            device_type = weight.device.type
            if torch.is_autocast_enabled(device_type):
                return torch.get_autocast_dtype(device_type)
        return weight.dtype

    def request(self, weight: Tensor, is_compiling: bool, may_be_replay: bool) -> Request:
        """What an access to ``weight`` computes now, and the buffers that it overwrites.

        ``may_be_replay``: in eager mode, what :func:`recomputation.is_possible` says.
        """
        if self._is_cold:
            if is_compiling or transforms.active():
                raise RuntimeError(
                    "u and v are as they were drawn, and compiled or transformed code cannot warm "
                    "them up: call snorm_triton.refresh_spectral_norm(model) before"
                )
            self._warm_up(weight)
        buffers: Any = self._buffers  # read past Module's attribute lookup
        u, v, sigma = buffers["_u"], buffers["_v"], buffers["_sigma"]
        if u.requires_grad or v.requires_grad or sigma.requires_grad:  # given by functional_call
            u, v, sigma = u.detach(), v.detach(), sigma.detach()
        dtype = state_dtype(weight)
        n_power_iterations, replayed = 0, None
        due: Tensor | None = None
        written: tuple[Tensor, ...] = ()  # an evaluation is pure
        iterates = self.training or self.power_iter_on_eval
        taken = recomputation.replay(recomputation.around(), self.owner) if may_be_replay else None
        if taken is not None:
            u, v, replayed = taken
        elif is_compiling and iterates:
            n_power_iterations, written = self.n_power_iterations, (u, v, sigma)
            due = buffers.get("_due")
        elif not iterates:
            pass
        elif (may_be_replay and recomputation.is_running()) or (
            self.power_iter == "update" and not self._is_due(weight)
        ):
            replayed = sigma.to(dtype)
        else:
            n_power_iterations, written = self.n_power_iterations, (u, v, sigma)
        return Request(
            weight,
            u if u.dtype == dtype else u.to(dtype),
            v if v.dtype == dtype else v.to(dtype),
            self.dim,
            n_power_iterations,
            self.eps,
            self.output_dtype(weight) if self.autocast_output else weight.dtype,
            self.backend,
            written,
            replayed,
            due,
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self.power_iter == "update":
            self._follow_updates()
            self._replaced()

    def right_inverse(self, value: Tensor) -> Tensor:
        """The value itself: assigning to the parameter sets the weight before normalization."""
        self._replaced()
        return value

    def extra_repr(self) -> str:
        options = f"n_power_iterations={self.n_power_iterations}, dim={self.dim}, eps={self.eps:g}"
        if self.power_iter != "access":
            options += f", power_iter={self.power_iter!r}"
        if self.autocast_output:
            options += ", autocast_output=True"
        return options + (f", backend={self.backend!r}" if self.backend != "auto" else "")


def _memory(tensor: Tensor) -> tuple[object, ...]:
    """Which memory holds it, known from any that is ever there instead, and where in that."""
    if is_sharded(tensor):
        tensor = cast(Any, tensor).to_local()
    return StorageWeakRef(tensor.untyped_storage()), tensor.storage_offset(), tensor.stride()


@contextmanager
def without_iterating(parametrizations: ParametrizationList) -> Iterator[None]:
    """Accesses inside neither iterate nor write, whatever the mode."""
    ours = [p for p in parametrizations if isinstance(p, SpectralNormParametrization)]
    before = [(p.training, p.power_iter_on_eval) for p in ours]
    for p in ours:
        p.training = p.power_iter_on_eval = False
    try:
        yield
    finally:
        for p, (training, power_iter_on_eval) in zip(ours, before, strict=True):
            p.training, p.power_iter_on_eval = training, power_iter_on_eval
