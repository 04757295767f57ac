"""Weight normalization: of one parameter, of a whole model, and off again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar, Unpack

from torch import nn

from ..modules.weight_norm import WeightNormWrapper
from ..ops.dispatch import BackendName
from ..parametrizations.checks import check_flag
from ..parametrizations.options import WeightNormKeywords
from ..selection import WEIGHT_NORM
from .whole_models import Types, apply, remove_all, selection_of

M = TypeVar("M", bound=nn.Module)


def weight_norm(
    module: M,
    name: str = "weight",
    dim: int | None = 0,
    *,
    init_on_first_forward: bool = True,
    autocast_output: bool = False,
    cache_evaluation: bool = True,
    backend: BackendName = "auto",
) -> M:
    r"""Separate the lengths of a parameter's rows from their directions: ``w = g v / \|v\|``.

    In place of :func:`torch.nn.utils.parametrizations.weight_norm`: the first three arguments, the
    results and the state dicts are the same, and those of the older
    :func:`torch.nn.utils.weight_norm` load too. Salimans and Kingma (2016), arXiv 1602.07868.

    g and v are ``module.parametrizations.weight.original0`` and ``original1``, or
    ``module.weight_g`` and ``module.weight_v``. Until the module's first forward what is written
    into ``module.weight``, as by ``nn.init`` or through ``.data``, becomes the g and v of that.
    Norms are computed in float32 at least. A row of zeros stays one and has the gradient of a
    division by 1, where torch's is NaN.

    Args:
        module: the module that holds the parameter; of any type, lazy ones included.
        name: the parameter's attribute name.
        dim: the dimension that keeps its norms, any sign; None, or -1 as torch has it, takes one
            norm of all.
        init_on_first_forward: let a lazy module register when its parameters materialize, before
            its first output is computed; False refuses a parameter that has no shape yet.
        autocast_output: under autocast, return a float32 weight in autocast's dtype, so that no
            cast follows; of layers that autocast casts the weight of.
        cache_evaluation: keep the weight of an evaluation without gradients as long as nothing has
            changed, as :func:`spectral_norm` does.
        backend: as of :func:`spectral_norm`.

    Returns:
        The same module.

    Raises:
        ValueError: ``name`` is not a parameter, or one that is not dense and floating point or
            complex, or has a parametrization already; ``backend`` is unknown or cannot run; the
            parameter is lazy and ``init_on_first_forward`` is False, or sharded by FSDP2 already.
        IndexError: ``dim`` is out of range. Whatever is raised, the module is unchanged.

    Example:
        >>> from torch import nn
        >>> from snorm_triton import weight_norm
        >>> layer = weight_norm(nn.Linear(20, 40))
        >>> layer.weight_g.shape, layer.weight_v.shape
        (torch.Size([40, 1]), torch.Size([40, 20]))
    """
    WeightNormWrapper(
        module,
        name,
        dim=dim,
        init_on_first_forward=init_on_first_forward,
        autocast_output=autocast_output,
        cache_evaluation=cache_evaluation,
        backend=backend,
    ).attach()
    return module


def remove_weight_norm(module: M, name: str = "weight", *, recursive: bool = False) -> M:
    """Take weight normalization off: the weight as it is becomes a plain parameter, a new one.

    Args:
        module: what :func:`weight_norm` or :func:`apply_weight_norm` was given.
        name: the parameter's attribute name; not looked at where ``recursive``.
        recursive: every weight-normalized parameter of every submodule.

    Returns:
        The same module.

    Raises:
        ValueError: nothing is registered there, or another parametrization is on top of it; then
            nothing is changed.
        TypeError: ``recursive`` is not True or False.
    """
    check_flag("recursive", recursive)
    if not recursive:
        WeightNormWrapper(module, name).remove()
        return module
    remove_all(module, WeightNormWrapper)
    return module


def apply_weight_norm(
    model: M,
    *,
    names: str | Sequence[str] = ("weight",),
    include_types: Types | None = None,
    exclude_types: Types = (),
    exclude_names: str | Sequence[str] = (),
    predicate: Callable[[str, nn.Module], bool] | None = None,
    foreach: bool | None = None,
    **options: Unpack[WeightNormKeywords],
) -> M:
    """Weight-normalize the ``weight`` of every layer of a model, but those that are already.

    On a GPU all of them are computed at the start of the model's forward, in one launch for each
    dtype however many they are, and so are their gradients.

    Args:
        model: any module; itself a candidate.
        names: as of :func:`apply_spectral_norm`.
        include_types: layer types, subclasses included; None is Linear, Conv1d to 3d and
            ConvTranspose1d to 3d, with their lazy variants.
        exclude_types: types to leave out, subclasses included.
        exclude_names: qualified module names to leave out, exact or shell patterns.
        predicate: called with a qualified name and its module; False leaves it out.
        foreach: as of :func:`apply_spectral_norm`.
        options: those of :func:`weight_norm`.

    Returns:
        The same model. Where nothing of it matches, a warning says so.

    Raises:
        ValueError, IndexError, TypeError: as :func:`apply_spectral_norm`; then no layer has been
            changed.

    Example:
        >>> from torch import nn
        >>> from snorm_triton import apply_weight_norm
        >>> vocoder = nn.Sequential(nn.Conv1d(80, 64, 7), nn.ConvTranspose1d(64, 32, 16, 8))
        >>> list(apply_weight_norm(vocoder).state_dict())[1:3]
        ['0.parametrizations.weight.original0', '0.parametrizations.weight.original1']
    """
    selected = selection_of(
        names, include_types, exclude_types, exclude_names, predicate, WEIGHT_NORM
    )
    apply(model, WeightNormWrapper, selected, foreach, options)
    return model
