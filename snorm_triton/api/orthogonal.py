"""Orthogonal weights: of one parameter, of a whole model, and off again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar, Unpack

from torch import nn

from ..modules.orthogonal import OrthogonalWrapper
from ..ops.newton_schulz import N_ITERATIONS
from ..ops.orthogonal_maps import MapName
from ..parametrizations.checks import check_flag
from ..parametrizations.options import OrthogonalKeywords
from ..selection import ORTHOGONAL, ORTHOGONAL_BY_DIM
from .whole_models import Types, apply, remove_all, selection_of

M = TypeVar("M", bound=nn.Module)


def orthogonal(
    module: M,
    name: str = "weight",
    orthogonal_map: MapName | None = None,
    *,
    use_trivialization: bool = True,
    dim: int | None = None,
    init_on_first_forward: bool = True,
    autocast_output: bool = False,
    cache_evaluation: bool = True,
    n_iterations: int = N_ITERATIONS,
) -> M:
    r"""Keep the columns of a parameter orthonormal, or its rows where it is wide.

    In place of :func:`torch.nn.utils.parametrizations.orthogonal`: the first four arguments, the
    results and the state dicts are the same. ``module.parametrizations.weight.original`` is any
    tensor of the weight's shape, of which a map makes an orthonormal one at each access:

    - ``"matrix_exp"`` and ``"cayley"`` rotate by what its lower triangle generates;
    - ``"householder"`` reflects by each of its columns; of real weights only;
    - ``"newton_schulz"``, which torch lacks, takes the polar factor: Q of W = Q H, H Hermitian and
      positive, the orthonormal matrix nearest to W. It takes matrix products alone, and so suits
      GPUs and large weights.

    Björck and Bowie (1971) for the last, with the polynomials of Amsel et al. (2025), arXiv
    2505.16932; Lezcano-Casado and Martínez-Rubio (2019), arXiv 1901.08428, for the others.

    The weight starts from the parameter as it is, made orthonormal by a QR decomposition, or by the
    polar factor; so does what is assigned to ``module.weight`` or, until the module's first
    forward, written into it, as by ``nn.init``. Half precision is computed in float32, and a base
    kept in it.

    Args:
        module: the module that holds the parameter; of any type, lazy ones included.
        name: the parameter's attribute name; of two dimensions or more.
        orthogonal_map: None is ``"matrix_exp"`` for square or complex matrices, and else
            ``"householder"``.
        use_trivialization: multiply by a ``base``, a square matrix in
            ``module.parametrizations.weight[0].base``, which the start is kept in: training begins
            at the identity, where the maps behave best (arXiv 1909.09501). newton_schulz needs
            none.
        dim: None reads the last two dimensions as a matrix, and those before as a batch of such,
            as torch does; a number reads all of the parameter as one matrix, of the shape (size of
            ``dim``, all else), as :func:`spectral_norm` does: for convolutions.
        init_on_first_forward: let a lazy module register when its parameters materialize, before
            its first output is computed; False refuses a parameter that has no shape yet.
        autocast_output: under autocast, return a float32 weight in autocast's dtype, so that no
            cast follows; of layers that autocast casts the weight of.
        cache_evaluation: keep the weight of an evaluation without gradients as long as nothing has
            changed, as :func:`spectral_norm` does.
        n_iterations: how many polynomials newton_schulz has; its default converges for condition
            numbers to 1000, one more for 4 times that. On a CPU it takes no more of them than the
            weight needs. Training that makes a weight worse conditioned than that goes unnoticed,
            for nothing is read of it.

    Returns:
        The same module.

    Raises:
        ValueError: ``name`` is not a parameter, or one that is not dense, floating point or complex
            and of two dimensions or more, or is sharded; ``orthogonal_map`` is unknown, or
            householder for a complex one; newton_schulz is given one that is rank-deficient, here
            or when it is assigned; the parameter has another parametrization, and
            ``use_trivialization`` is True; it is lazy, and ``init_on_first_forward`` is False.
        IndexError: ``dim`` is out of range. Whatever is raised, the module is unchanged.
        NotImplementedError: when it is assigned to, with matrix_exp or cayley and without a base.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from snorm_triton import orthogonal
        >>> layer = orthogonal(nn.Linear(20, 40))
        >>> torch.allclose(layer.weight.T @ layer.weight, torch.eye(20), atol=1e-5)
        True
        >>> conv = orthogonal(nn.Conv2d(8, 4, 3), orthogonal_map="newton_schulz", dim=0)
        >>> rows = conv.weight.flatten(1)
        >>> torch.allclose(rows @ rows.T, torch.eye(4), atol=1e-5)
        True
    """
    OrthogonalWrapper(
        module,
        name,
        orthogonal_map=orthogonal_map,
        use_trivialization=use_trivialization,
        dim=dim,
        init_on_first_forward=init_on_first_forward,
        autocast_output=autocast_output,
        cache_evaluation=cache_evaluation,
        n_iterations=n_iterations,
    ).attach()
    return module


def remove_orthogonal(module: M, name: str = "weight", *, recursive: bool = False) -> M:
    """Take an orthogonal parametrization off: the weight as it is becomes a plain parameter.

    Args:
        module: what :func:`orthogonal` or :func:`apply_orthogonal` was given.
        name: the parameter's attribute name; not looked at where ``recursive``.
        recursive: every orthogonal parameter of every submodule.

    Returns:
        The same module.

    Raises:
        ValueError: nothing is registered there; then nothing is changed.
        TypeError: ``recursive`` is not True or False.
    """
    check_flag("recursive", recursive)
    if recursive:
        remove_all(module, OrthogonalWrapper)
    else:
        OrthogonalWrapper(module, name).remove()
    return module


def apply_orthogonal(
    model: M,
    *,
    names: str | Sequence[str] = ("weight",),
    include_types: Types | None = None,
    exclude_types: Types = (),
    exclude_names: str | Sequence[str] = (),
    predicate: Callable[[str, nn.Module], bool] | None = None,
    foreach: bool | None = None,
    **options: Unpack[OrthogonalKeywords],
) -> M:
    """Keep the ``weight`` of every linear layer of a model orthonormal, but those that are already.

    With newton_schulz on a GPU all of them are computed at the start of the model's forward, those
    of one shape by batched products, and so are their gradients. Other maps are computed at each
    access.

    Args:
        model: any module; itself a candidate.
        names: as of :func:`apply_spectral_norm`.
        include_types: layer types, subclasses included; None is Linear and, where ``dim`` is given,
            Conv1d to 3d and ConvTranspose1d to 3d, with their lazy variants.
        exclude_types: types to leave out, subclasses included.
        exclude_names: qualified module names to leave out, exact or shell patterns.
        predicate: called with a qualified name and its module; False leaves it out.
        foreach: as of :func:`apply_spectral_norm`.
        options: those of :func:`orthogonal`.

    Returns:
        The same model. Where nothing of it matches, a warning says so.

    Raises:
        ValueError, IndexError, TypeError: as :func:`apply_spectral_norm` and :func:`orthogonal`;
            then no layer has been changed.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from snorm_triton import apply_orthogonal
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        >>> model = apply_orthogonal(model, orthogonal_map="newton_schulz")
        >>> round(torch.linalg.cond(model[2].weight).item(), 4)
        1.0
    """
    constraint = ORTHOGONAL if options.get("dim") is None else ORTHOGONAL_BY_DIM
    selected = selection_of(
        names, include_types, exclude_types, exclude_names, predicate, constraint
    )
    apply(model, OrthogonalWrapper, selected, foreach, options)
    return model
