"""What users call: normalize a parameter, take it off again, and bring it in line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from torch import nn

from ..modules.spectral_norm import SpectralNormWrapper
from ..ops.dispatch import BackendName
from ..parametrizations.checks import check_flag, check_iterations
from ..parametrizations.options import Operator, Policy, Scale
from ..parametrizations.singular_vectors import WARM_UP_ITERATIONS
from ..reports import normalized
from .whole_models import remove_all

M = TypeVar("M", bound=nn.Module)


def spectral_norm(
    module: M,
    name: str = "weight",
    n_power_iterations: int = 1,
    eps: float = 1e-12,
    dim: int | None = None,
    *,
    stable_fp32: bool = True,
    power_iter_on_eval: bool = False,
    init_on_first_forward: bool = True,
    power_iter: Policy = "access",
    autocast_output: bool = False,
    cache_evaluation: bool = True,
    operator: Operator = "matrix",
    input_shape: Sequence[int] | None = None,
    bound: float | None = None,
    scale: float | Scale = 1.0,
    backend: BackendName = "auto",
) -> M:
    r"""Divide a parameter by its largest singular value at each access.

    In place of :func:`torch.nn.utils.parametrizations.spectral_norm`: the first five arguments, the
    results and the state dicts are the same. Miyato et al. (2018), arXiv 1802.05957. Normalizing a
    parameter twice stacks.

    The parameter before normalization is ``module.parametrizations.weight.original``, or
    ``module.weight_orig``. Until the module's first forward what is written into ``module.weight``,
    as by ``nn.init`` or through ``.data``, becomes that, as with torch's hook. Later it is done to
    a temporary, and the next access warns, except of changes through ``.data``, of recurrent
    modules and of those with a ``max_norm``: assign ``module.weight = tensor``, or call
    ``module.reset_parameters()``.

    Args:
        module: the module that holds the parameter; of any type, lazy ones included.
        name: the parameter's attribute name.
        n_power_iterations: power iterations per access in training.
        eps: lower bound of \|u\| and \|v\| in evaluation, and of the norm of a 1-D parameter. In
            training the norms are taken scaled and need no bound.
        dim: the dimension of the outputs. None is 0, and 1 for ConvTranspose1d to 3d.
        stable_fp32: keep u, v and sigma at least float32 when the module becomes half or bfloat16.
        power_iter_on_eval: iterate in evaluation too.
        init_on_first_forward: let a lazy module register when its parameters materialize, before
            its first output is computed; False refuses a parameter that has no shape yet.
        power_iter: ``"access"``, torch's policy: each access in training iterates. ``"update"``,
            Algorithm 1 of the paper: the first access after a step of any optimizer, or after
            another change of the weight, iterates, and all until the next one get that weight, so
            that D(real), D(fake), micro-batches and recomputations agree. Code that torch.compile
            traces hears of the steps of optimizers alone.
        autocast_output: under autocast, return a float32 weight in autocast's dtype, so that no
            cast follows and its gradient needs none; of layers that autocast casts the weight of.
            The estimate is in float32 in any case.
        cache_evaluation: keep the weight of an evaluation without gradients, as long as nothing
            has changed, so that the next one computes nothing; one weight of memory. A change of
            its values through ``weight.data`` is seen on a CPU, by a sample of them, and at the
            next step of an optimizer elsewhere: False computes each anew.
        operator: ``"matrix"``, the weight read as a matrix, as torch and the paper have it; or
            ``"convolution"``, the convolution itself, its stride, padding and the rest included,
            whose norm is larger for most kernels (docs/lipschitz.md). u and v are images then.
        input_shape: of ``operator="convolution"``: (C, *spatial), without the batch; None takes
            that of the first input, before its output is computed.
        bound: divide only where sigma exceeds it, so that the norm is at most ``bound``, times the
            scale if there is one: by max(1, sigma / bound), as Gouk et al. (2018,
            arXiv 1804.04368) do; ``float("inf")`` leaves the parameter as it is and keeps sigma.
            None divides by any sigma. Kernels are compiled for a bound and a scale that are
            numbers.
        scale: what the result is multiplied by, its norm where there is no bound; or ``"learned"``,
            a parameter ``module.parametrizations.weight[0].scale`` of shape (1,), which starts at
            what the parameter is divided by, so that the layer computes what it did before (Zhai et
            al. 2023, arXiv 2303.06296). Make the optimizer after it.
        backend: ``"auto"`` takes Triton on a GPU and torch elsewhere, or what the environment
            variable ``SNORM_TRITON_BACKEND`` says; ``"triton"`` and ``"torch"`` insist.

    Returns:
        The same module.

    Raises:
        ValueError: ``name`` is not a parameter, or one that is not dense and floating point or
            complex; ``n_power_iterations``, ``eps``, ``bound`` or ``scale`` is not positive;
            ``power_iter``, ``operator`` or ``backend`` is unknown, or the backend cannot run;
            ``operator="convolution"`` of what is none, or with an ``input_shape`` that does not
            fit; the parameter is lazy and ``init_on_first_forward`` is False; it is sharded by
            FSDP2 already, or a DTensor whose placements are not all Shard or Replicate.
        IndexError: ``dim`` is out of range. Whatever is raised, the module is unchanged.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from snorm_triton import spectral_norm
        >>> layer = spectral_norm(nn.Linear(20, 40))
        >>> round(torch.linalg.matrix_norm(layer.weight, 2).item(), 1)
        1.0
    """
    SpectralNormWrapper(
        module,
        name,
        n_power_iterations=n_power_iterations,
        eps=eps,
        dim=dim,
        stable_fp32=stable_fp32,
        power_iter_on_eval=power_iter_on_eval,
        init_on_first_forward=init_on_first_forward,
        power_iter=power_iter,
        autocast_output=autocast_output,
        cache_evaluation=cache_evaluation,
        operator=operator,
        input_shape=input_shape,
        bound=bound,
        scale=scale,
        backend=backend,
    ).attach()
    return module


def remove_spectral_norm(
    module: M, name: str = "weight", leave_parametrized: bool = True, *, recursive: bool = False
) -> M:
    """Take spectral normalization off a parameter, or off a whole model; it never iterates.

    Args:
        module: what :func:`spectral_norm` or :func:`apply_spectral_norm` was given.
        name: the parameter's attribute name; not looked at where ``recursive``.
        leave_parametrized: True bakes the normalized weight in, False gives back the weight before
            normalization. The parameter stays the same object, and other parametrizations stay.
        recursive: every normalized parameter of every submodule.

    Returns:
        The same module.

    Raises:
        ValueError: nothing is registered there.
        TypeError: ``leave_parametrized`` or ``recursive`` is not True or False.
    """
    check_flag("leave_parametrized", leave_parametrized)
    check_flag("recursive", recursive)
    if not recursive:
        SpectralNormWrapper(module, name).remove(leave_parametrized=leave_parametrized)
        return module
    remove_all(module, SpectralNormWrapper, leave_parametrized)
    return module


def refresh_spectral_norm(model: M, n_power_iterations: int = WARM_UP_ITERATIONS) -> M:
    """Recompute u, v and sigma of every normalized parameter from the weights as they are now.

    For weights that changed other than by training: averaged, interpolated or loaded ones, or those
    of a model that ``to_empty`` left without values. Whatever the mode; in place, and no access.
    A learned scale that is where it started is started anew.

    Args:
        model: any module that holds normalized parameters.
        n_power_iterations: iterations on each, from u and v as they are: random ones are drawn, as
            at registration, only where those are zero or not finite, or too short or long for
            vectors that training left, or for an average of such.

    Returns:
        The same module.

    Raises:
        ValueError: ``n_power_iterations`` is not positive, ``model`` holds nothing normalized, or
            it is on the meta device still. Nothing is changed then.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from snorm_triton import refresh_spectral_norm, spectral_norm
        >>> layer = spectral_norm(nn.Linear(20, 40)).eval()
        >>> with torch.no_grad():
        ...     layer.weight = torch.eye(40, 20)
        >>> round(refresh_spectral_norm(layer, 50).weight.norm().item() ** 2)
        20
    """
    check_iterations(n_power_iterations)
    found = list(normalized(model))
    if not found:
        raise ValueError(
            f"no spectral norm of snorm_triton is registered in {type(model).__name__}"
        )
    for name, wrapper in found:
        if wrapper.original.is_meta and not wrapper.is_deferred:
            raise ValueError(
                f"parameter {name!r} is on the meta device: give it values before (to_empty, then "
                "initialize or load)"
            )
    for _, wrapper in found:
        if not wrapper.is_deferred:
            wrapper.refresh(n_power_iterations)
    return model
