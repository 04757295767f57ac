"""The parametrization that normalizes a weight at each access and keeps u, v and sigma."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Unpack
from weakref import ReferenceType

import torch
from torch import Tensor

from ..functional import check_vectors, l2_normalize, state_dtype
from ..ops import modes, recomputation
from ..ops.calls import Access, Evaluate, Iterate, Normalized, Replay
from ..ops.dispatch import select
from ..ops.state import overwrite
from ..torch_internals import functorch
from ..torch_internals.checkpoints import unseen
from ..torch_internals.storage import version
from . import learned_scale, updates
from .base import Originals, Prepared, evaluations
from .checks import check_dim
from .iteration import choose
from .learned_scale import rescaling_of
from .options import OPTIONS, Options, SpectralNormOptions
from .prepared import prepared_evaluation
from .singular_vectors import SingularVectors
from .spectral_rounds import spectral_rounds
from .standing_access import StandingAccess, standing_access


class SpectralNormParametrization(SingularVectors):
    r"""``forward(W) = W / sigma(W)``, for ``torch.nn.utils.parametrize.register_parametrization``.

    Holds ``_u`` of shape (M,) and ``_v`` of shape (N,) as buffers under torch's names, for a weight
    read as a matrix of shape (M, N) with M the size of ``dim``. A 1-D weight has neither: it is
    divided by its L2 norm.

    Starts from random vectors, drawn as torch draws them, and 15 power iterations. In training each
    access iterates, or with ``power_iter="update"`` the first one after a step of an optimizer or
    another change of the weight, and later ones replay its u, v and sigma. In evaluation nothing is
    written. The buffers are updated in place, and what backward needs is never one of them.

    Under ``torch.func`` it computes in torch's own operations, whatever the backend, and writes a
    buffer unless the samples of a ``vmap`` share it and differ.

    Args:
        weight: the weight as it is now, at least 1-D, floating or complex.
        options: those of :func:`snorm_triton.spectral_norm`; ``dim=None`` is 0.
        vectors: u and v to go on from, as they are, in place of random ones and iterations.
        more: the options as keywords, in place of ``options``.

    Raises:
        ValueError, IndexError: an option, or ``vectors``, is not what it may be for this weight.
    """

    _due: Tensor  # of policy "update": whether the next access of compiled code iterates
    _updated_for: tuple[object, ...] | None = None  # what the last iteration was of
    # An own tensor of that iteration's graph, and how many backwards there were by then.
    _graph: tuple[ReferenceType[Tensor], int]
    standing: StandingAccess | None = None  # what makes the last access again
    transient = (*SingularVectors.transient, "_updated_for", "_graph", "standing")
    options: SpectralNormOptions

    def __init__(
        self,
        weight: Tensor,
        options: SpectralNormOptions | None = None,
        *,
        vectors: tuple[Tensor, Tensor] | None = None,
        **more: Unpack[Options],
    ) -> None:
        options = SpectralNormOptions.of(more) if options is None else options
        dim = options.dim or 0
        check_dim(dim, weight.shape)
        select(weight, options.backend)
        if weight.ndim == 1:
            vectors = None
        elif vectors is not None:
            check_vectors(vectors, weight, dim)
        super().__init__(weight, replace(options, dim=dim % weight.ndim), vectors)
        if options.power_iter == "update":
            self.register_buffer("_due", torch.ones_like(self._sigma), persistent=False)
            updates.follow(self)
        if vectors is None:
            self.reset_parameters()
            self._warm_up(weight)
        if not options.stable_fp32:
            self._apply(lambda state: state.to(weight.dtype))

    @property
    def due(self) -> Tensor:
        """Raised by every step of an optimizer, shape (): compiled code sees no Python number."""
        return self._due

    @property
    def iterates(self) -> bool:
        """Whether an access in this mode iterates where one is due."""
        return (self.training or self.options.power_iter_on_eval) and evaluations.depth == 0

    def forward(self, weight: Tensor) -> Tensor:
        """``weight / sigma``, of the weight's shape, dtype and memory layout."""
        if weight.ndim == 1:
            return self._divide_by_length(weight)
        known = self.__dict__  # past Module's attribute lookup
        if not torch.compiler.is_compiling():
            standing: StandingAccess | None = known.get("standing")
            if standing is not None and (weight_sn := standing(weight, self)) is not None:
                return weight_sn
        prepared: Prepared | None = known.get("prepared")
        serving = None if prepared is None else prepared.serving((weight,), self)
        if serving is not None:
            return serving.hand_over((weight,), self)
        checkpoints = recomputation.around_access()
        with unseen() if checkpoints else nullcontext():
            return self._normalize(weight, checkpoints)

    def _normalize(self, weight: Tensor, checkpoints: recomputation.Checkpoints | None) -> Tensor:
        access, mode = self.access((weight,), checkpoints), self.mode(weight)
        output = mode.normalize(access)
        mode.write((access,), (output,))
        self.settle(access, output, checkpoints)
        if checkpoints is not None:
            stands = type(self) is SpectralNormParametrization and mode is modes.eager
            self.__dict__["standing"] = standing_access(self, access) if stands else None
        return output.weight_sn

    def mode(self, weight: Tensor) -> modes.Mode:
        """The way of an access to ``weight`` here and now."""
        return modes.current(weight)

    def joins(self, originals: Originals) -> bool:
        """Whether the weight is a real matrix."""
        (weight,) = originals
        return weight.ndim > 1 and not weight.is_complex()

    def _divide_by_length(self, weight: Tensor) -> Tensor:
        weight_sn, sigma = l2_normalize(weight, self.options.eps, rescaling_of(self))
        if self._sigma.device != weight.device:  # as after a state dict was assigned
            self._sigma = torch.empty_like(self._sigma, device=weight.device)
        overwrite([self._sigma], [sigma.detach()])
        return weight_sn

    def access(self, originals: Originals, checkpoints: recomputation.Checkpoints | None) -> Access:
        """What an access to a weight of two dimensions or more computes here and now."""
        (weight,) = originals
        known = self.__dict__  # past Module's attribute lookup
        if known.get("_drawn") is not None:
            self._wake(weight)
        buffers, options = known["_buffers"], known["options"]
        u, v, sigma = buffers["_u"], buffers["_v"], buffers["_sigma"]
        if u.requires_grad or v.requires_grad or sigma.requires_grad:  # given by functional_call
            u, v, sigma = u.detach(), v.detach(), sigma.detach()
        (u, v, _), step = choose(self, weight, (u, v, sigma), checkpoints)
        dtype, rescaling = weight.dtype, options.rescaling
        if known["_parameters"]:  # a learned scale
            rescaling = rescaling_of(self)
        if dtype.itemsize < 4:
            dtype = state_dtype(weight)
        return Access(
            weight,
            u if u.dtype == dtype else u.to(dtype),
            v if v.dtype == dtype else v.to(dtype),
            options.dim or 0,
            step,
            self.output_dtype(weight) if options.autocast_output else weight.dtype,
            options.backend,
            rescaling,
        )

    @staticmethod
    def compute(accesses: Sequence[Access]) -> list[Normalized]:
        """W / sigma of each."""
        mode = modes.current(accesses[0].weight)
        outputs = mode.normalize_together(accesses)
        mode.write(accesses, outputs)
        return outputs

    rounds = staticmethod(spectral_rounds)

    def settle(
        self,
        access: Access,
        output: Normalized,
        checkpoints: recomputation.Checkpoints | None,
    ) -> None:
        """Note what an access took."""
        if checkpoints is None:
            return
        known = self.__dict__  # past Module's way to set attributes
        known["is_sigma_known"] = True
        if type(access.step) is Iterate:
            known["_evaluated"] = None
            if self.prepared is not None and self.prepared.outlives_forward:
                known["prepared"] = None
            if self.options.power_iter == "update":
                updates.has_iterated(self, access.weight, output.u)
        elif type(access.step) is Evaluate and not functorch.active():
            known["_evaluated"] = output.sigma.detach(), version(self._sigma)
            originals = (access.weight,)
            if self.options.cache_evaluation and self.outlive_forward(originals):
                known["prepared"] = prepared_evaluation(originals, output, self)
        if checkpoints:
            recomputation.keep(checkpoints, self.owner, output.state)

    def hand_over(self, originals: Originals, output: Normalized) -> Tensor:
        """``weight / sigma`` as it was computed ahead, and what that took for checkpoints."""
        around, state = recomputation.around_access(), output.state
        if around:
            recomputation.replay(around, self.owner)  # what was kept here: it is this
            recomputation.keep(around, self.owner, state)
        if not functorch.active():
            return super().hand_over(originals, output)
        (weight,) = originals
        options, dtype = self.options, self.output_dtype(weight)
        taken = state.u, state.v, options.dim or 0, Replay(state.sigma), dtype, options.backend
        access = Access(weight, *taken, rescaling_of(self))
        return self.mode(weight).normalize(access).weight_sn

    def replaced(self) -> None:
        """The weight, or u and v, are others than an access has left."""
        self.prepared = self.standing = None
        if "_due" in self._buffers:
            self._updated_for = None
            if torch.is_inference_mode_enabled() or not self._due.is_inference():
                with torch.no_grad():
                    self._due.fill_(1)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self.options.power_iter == "update":
            updates.follow(self)
            self.replaced()

    def right_inverse(self, value: Tensor) -> Tensor:
        """The value itself: assigning to the parameter sets the weight before normalization."""
        self.replaced()
        if learned_scale.is_new(self):  # it starts where this weight is what it is
            self._warm_up(value)
        return value

    def extra_repr(self) -> str:
        shown = {name: getattr(self.options, name) for name in ("n_power_iterations", "dim")}
        shown |= {"eps": f"{self.options.eps:g}"}
        more = ("power_iter", "bound", "scale", "autocast_output", "backend")
        values = {name: getattr(self.options, name) for name in more}
        shown |= {name: repr(value) for name, value in values.items() if value != OPTIONS[name]}
        return ", ".join(f"{name}={value}" for name, value in shown.items())
