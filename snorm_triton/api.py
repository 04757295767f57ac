"""What users call: normalize a module or a model, take it off again, and look at it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, TypeVar

from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm as _TorchSpectralNorm
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.spectral_norm import SpectralNorm as _LegacySpectralNorm

from .checks import check_flag, check_numbers
from .dispatch import SHARDED, is_sharded, select
from .foreach import attach as attach_foreach
from .foreach import detach as detach_foreach
from .matrix_view import matrix_view
from .parametrization import SpectralNormParametrization
from .singular_vectors import WARM_UP_ITERATIONS
from .wrapper import SpectralNormWrapper

M = TypeVar("M", bound=nn.Module)
Types = type[nn.Module] | Sequence[type[nn.Module]]

NORMALIZED_TYPES: tuple[type[nn.Module], ...] = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Embedding,
    nn.Bilinear,
)  # and their subclasses, the lazy ones among them


class BackendReport(NamedTuple):
    """The parameter's qualified name, its backend, and why.

    The backend is "triton", "torch", or "none" where the one asked for by name cannot run any more.
    """

    name: str
    backend: str
    reason: str


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
    power_iter: str = "access",
    autocast_output: bool = False,
    backend: str = "auto",
) -> M:
    r"""Divide a parameter by its largest singular value at each access.

    In place of :func:`torch.nn.utils.parametrizations.spectral_norm`: the first five arguments, the
    results and the state dicts are the same. Miyato et al. (2018), arXiv 1802.05957. Normalizing a
    parameter twice stacks.

    The parameter before normalization is ``module.parametrizations.weight.original``: initialize
    that, assign ``module.weight = tensor``, or call ``module.reset_parameters()``. What is done in
    place to ``module.weight``, as by ``nn.init``, is done to a temporary: the next access warns,
    except of changes through ``.data``, of recurrent modules and of those with a ``max_norm``.

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
            cast follows and its gradient needs none. The estimate is in float32 in any case.
        backend: ``"auto"`` takes Triton on a GPU and torch elsewhere, or what the environment
            variable ``SNORM_TRITON_BACKEND`` says; ``"triton"`` and ``"torch"`` insist.

    Returns:
        The same module.

    Raises:
        ValueError: ``name`` is not a parameter, or one that is not dense and floating point or
            complex; ``n_power_iterations`` or ``eps`` is not positive; ``power_iter`` or
            ``backend`` is unknown, or the backend cannot run; the parameter is lazy and
            ``init_on_first_forward`` is False; it is sharded by FSDP2 already, or a DTensor whose
            placements are not all Shard or Replicate.
        IndexError: ``dim`` is out of range. Whatever is raised, the module is unchanged.

    Example:
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
        backend=backend,
    ).attach()
    return module


def remove_spectral_norm(
    module: M, name: str = "weight", *, leave_parametrized: bool = True, recursive: bool = False
) -> M:
    """Take spectral normalization off a parameter, or off a whole model; it never iterates.

    Args:
        module: what :func:`spectral_norm` or :func:`apply_spectral_norm` was given.
        name: the parameter's attribute name; not looked at where ``recursive``.
        leave_parametrized: True bakes the normalized weight in, False gives back the weight before
            normalization. The parameter stays the same object.
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
    wrappers = [wrapper for _, wrapper in _normalized(module)]
    if not wrappers:
        raise ValueError(
            f"no spectral norm of snorm_triton is registered in {type(module).__name__}"
        )
    for wrapper in wrappers:
        wrapper.remove(leave_parametrized=leave_parametrized)
    detach_foreach(module)
    return module


def apply_spectral_norm(
    model: M,
    *,
    include_types: Types | None = None,
    exclude_types: Types = (),
    exclude_names: str | Sequence[str] = (),
    predicate: Callable[[str, nn.Module], bool] | None = None,
    foreach: bool | None = None,
    **options: Any,
) -> M:
    """Normalize the ``weight`` of every layer of a model, but those normalized already, by anyone.

    On a GPU the weights are normalized together at the start of the model's forward, in three
    launches for each dtype and power iteration however many they are, and every access during it
    gets that one result. A weight that changes meanwhile is normalized anew, but a change through
    ``weight.data`` goes unnoticed.

    Args:
        model: any module; itself a candidate.
        include_types: layer types, subclasses included; None is Linear, Conv1d to 3d,
            ConvTranspose1d to 3d, Embedding and Bilinear, with their lazy variants.
        exclude_types: types to leave out, subclasses included.
        exclude_names: qualified module names to leave out, exact or shell patterns: ``"head"``,
            ``"blocks.*.shortcut"``.
        predicate: called with a qualified name and its module; False leaves it out.
        foreach: True normalizes all weights of the model at the start of its forward, those
            normalized by other calls too; False normalizes each at its access, as
            :func:`spectral_norm` does; None does the first on GPUs and the second elsewhere. What
            is accessed outside the model's forward is normalized at its access in any case.
        options: those of :func:`spectral_norm`.

    Returns:
        The same model.

    Raises:
        ValueError, IndexError: as :func:`spectral_norm`; then no layer has been changed.
        ValueError: a name or pattern of ``exclude_names`` matches no module of the model.
        TypeError: an option that :func:`spectral_norm` does not have, or an argument of another
            type than it must be.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(1))
        >>> model = apply_spectral_norm(model, exclude_names="3")
        >>> list(sigmas(model))
        ['0.weight']
    """
    include = NORMALIZED_TYPES if include_types is None else _types("include_types", include_types)
    exclude = _types("exclude_types", exclude_types)
    if not isinstance(exclude_names, str | Iterable):
        raise TypeError(f"exclude_names must be a string or strings, got {exclude_names!r}")
    patterns = (exclude_names,) if isinstance(exclude_names, str) else tuple(exclude_names)
    if predicate is not None and not callable(predicate):
        raise TypeError(f"predicate must be a function of a name and a module, got {predicate!r}")
    _check_selection(model, include, exclude, patterns)
    if foreach is not None and not isinstance(foreach, bool):
        raise ValueError(f"foreach must be True, False or None, got {foreach!r}")
    if "name" in options:
        raise TypeError("apply_spectral_norm takes no name: it normalizes each layer's weight")
    wrappers = [
        SpectralNormWrapper(module, "weight", **options)
        for name, module in model.named_modules()
        if isinstance(module, include)
        and not isinstance(module, exclude)
        and not any(fnmatchcase(name, pattern) for pattern in patterns)
        and (predicate is None or predicate(name, module))
        and not _is_normalized(module)
    ]
    for wrapper in wrappers:
        wrapper.check()
    for wrapper in wrappers:
        wrapper.attach()
    detach_foreach(model)
    if foreach is not False:
        attach_foreach(model, everywhere=foreach is True)
    return model


def refresh_spectral_norm(model: M, n_power_iterations: int = WARM_UP_ITERATIONS) -> M:
    """Recompute u, v and sigma of every normalized parameter from the weights as they are now.

    For weights that changed other than by training: averaged, interpolated or loaded ones, or those
    of a model that ``to_empty`` left without values. Whatever the mode; in place, and no access.

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
        >>> layer = spectral_norm(nn.Linear(20, 40)).eval()
        >>> with torch.no_grad():
        ...     layer.weight = torch.eye(40, 20)
        >>> round(refresh_spectral_norm(layer, 50).weight.norm().item() ** 2)
        20
    """
    check_numbers(n_power_iterations, eps=1)
    found = list(_normalized(model))
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


def sigmas(model: nn.Module) -> dict[str, Tensor]:
    """Sigma of each normalized parameter of a model at its last access, by its qualified name.

    Detached, shape (), on the parameter's device, and no synchronization. A parameter normalized
    more than once has one entry each, ``"weight.0"``, ``"weight.1"``. A zero weight has sigma 0;
    until a parameter is first accessed after a checkpoint was loaded, its sigma is NaN.
    """
    found = {}
    for name, wrapper in _normalized(model):
        each = wrapper.parametrizations
        for index, parametrization in enumerate(each):
            found[name if len(each) == 1 else f"{name}.{index}"] = parametrization.sigma
    return found


def backend_report(model: nn.Module) -> list[BackendReport]:
    """For each normalized parameter of a model: its qualified name, its backend, and why.

    Example:
        >>> backend_report(spectral_norm(nn.Linear(2, 2), backend="torch"))
        [BackendReport(name='weight', backend='torch', reason='asked for by backend')]
    """
    report = []
    for name, wrapper in _normalized(model):
        for parametrization in wrapper.parametrizations:
            weight = wrapper.original
            try:
                choice = select(weight, parametrization.backend)
            except ValueError as error:
                report.append(BackendReport(name, "none", str(error)))
                continue
            if is_sharded(weight):
                report.append(BackendReport(name, "torch", SHARDED))
                continue
            view = None if weight.ndim < 2 else matrix_view(weight, parametrization.dim)
            copied = "" if weight.ndim < 2 or view else "; not dense, so copied at each access"
            report.append(BackendReport(name, choice.backend, choice.reason + copied))
    return report


def _normalized(model: nn.Module) -> Iterator[tuple[str, SpectralNormWrapper]]:
    """The normalized parameters of a model with their qualified names, those that wait included."""
    _check_model(model)
    for prefix, module in list(model.named_modules()):
        names = [*getattr(module, "parametrizations", ()), *module._parameters]
        for name in names:
            wrapper = SpectralNormWrapper(module, name)
            if wrapper.parametrizations or wrapper.is_deferred:
                yield (f"{prefix}.{name}" if prefix else name), wrapper


def _is_normalized(module: nn.Module, name: str = "weight") -> bool:
    """Whether the parameter is normalized already: by us, by torch, or by torch's legacy hook."""
    if SpectralNormWrapper(module, name).is_deferred:
        return True
    if any(
        isinstance(hook, _LegacySpectralNorm) and hook.name == name
        for hook in module._forward_pre_hooks.values()
    ):
        return True
    if not is_parametrized(module, name):
        return False
    ours_or_torch = (SpectralNormParametrization, _TorchSpectralNorm)
    parametrizations: Any = module.parametrizations
    return any(isinstance(p, ours_or_torch) for p in parametrizations[name])


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")


def _check_selection(
    model: nn.Module, include: tuple[Any, ...], exclude: tuple[Any, ...], patterns: tuple[Any, ...]
) -> None:
    _check_model(model)
    for argument, types in (("include_types", include), ("exclude_types", exclude)):
        for layer_type in types:
            if not isinstance(layer_type, type):
                raise TypeError(f"{argument} must hold module types, got {layer_type!r}")
    names = [name for name, _ in model.named_modules()]
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"exclude_names must hold strings, got {pattern!r}")
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"exclude_names: {pattern!r} matches no module of the model")


def _types(argument: str, types: Types) -> tuple[type[nn.Module], ...]:
    if isinstance(types, type):
        return (types,)
    if isinstance(types, str) or not isinstance(types, Iterable):
        raise TypeError(f"{argument} must hold module types, got {types!r}")
    return tuple(types)
