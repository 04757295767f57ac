"""What a model's normalized parameters are like: their sigmas, backends, and a log of a run."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from .modules.spectral_norm import SpectralNormWrapper
from .modules.weight_norm import WeightNormWrapper
from .modules.wrapper import Wrapper
from .ops.dispatch import SHARDED, is_sharded, select
from .ops.matrix_view import matrix_view
from .parametrizations.convolution_norm import ConvolutionNormParametrization
from .torch_internals.parametrize import LegacySpectralNorm, TorchSpectralNorm

W = TypeVar("W", bound=Wrapper)


class BackendReport(NamedTuple):
    """The parameter's qualified name, its backend, and why.

    The backend is "triton", "torch", or "none" where the one asked for by name cannot run any more,
    or where a lazy module has no parameter yet.
    """

    name: str
    backend: str
    reason: str


class Writer(Protocol):
    """What can take a scalar: ``torch.utils.tensorboard.SummaryWriter`` and its like."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int | None) -> Any:
        """Take ``scalar_value`` for ``tag`` at ``global_step``."""


def sigmas(model: nn.Module) -> dict[str, Tensor]:
    """Sigma of each normalized parameter of a model at its last access, by its qualified name.

    Detached, shape (), on the parameter's device, and no synchronization. A parameter normalized
    more than once has one entry each, ``"weight.0"``, ``"weight.1"``. A zero weight has sigma 0.
    Where no access has told it since a checkpoint was loaded, it is computed from what was loaded;
    of a lazy module that waits for its first forward it is NaN. torch's own are listed too, once
    :func:`snorm_triton.patch_torch` has computed them.
    """
    found = {}
    for name, wrapper in normalized(model):
        each = [torch.full((), torch.nan)] if wrapper.is_deferred else wrapper.sigmas()
        for index, sigma in enumerate(each):
            found[name if len(each) == 1 else f"{name}.{index}"] = sigma
    return found | dict(_patched_sigmas(model))


def backend_report(model: nn.Module) -> list[BackendReport]:
    """For each normalized parameter of a model: its qualified name, its backend, and why.

    Example:
        >>> from torch import nn
        >>> from snorm_triton import backend_report, spectral_norm
        >>> backend_report(spectral_norm(nn.Linear(2, 2), backend="torch"))
        [BackendReport(name='weight', backend='torch', reason='asked for by backend')]
    """
    report = []
    for name, wrapper in constrained(model, SpectralNormWrapper, WeightNormWrapper):
        if wrapper.is_deferred:
            report.append(BackendReport(name, "none", "it waits for its module's first forward"))
        for parametrization in wrapper.parametrizations:
            weight = wrapper.original
            if isinstance(parametrization, ConvolutionNormParametrization):
                report.append(BackendReport(name, "torch", "torch convolves"))
                continue
            try:
                choice = select(weight, parametrization.options.backend)
            except ValueError as error:
                report.append(BackendReport(name, "none", str(error)))
                continue
            if is_sharded(weight):
                report.append(BackendReport(name, "torch", SHARDED))
                continue
            view = None if weight.ndim < 2 else matrix_view(weight, parametrization.dim or 0)
            copied = "" if weight.ndim < 2 or view else "; not dense, so copied at each access"
            report.append(BackendReport(name, choice.backend, choice.reason + copied))
    return report


def normalized(model: nn.Module) -> Iterator[tuple[str, SpectralNormWrapper]]:
    """The parameters of a model that a spectral norm is on, as :func:`constrained` has them."""
    return constrained(model, SpectralNormWrapper)


def constrained(model: nn.Module, *kinds: type[W]) -> Iterator[tuple[str, W]]:
    """The constrained parameters of a model with their qualified names, those that wait included.

    A wrapper of each of the kinds that is on the parameter.
    """
    check_model(model)
    for prefix, module in list(model.named_modules()):
        for name in list(chain(getattr(module, "parametrizations", ()), module._parameters)):
            for kind in kinds:
                wrapper = kind(module, name)
                if wrapper.parametrizations or wrapper.is_deferred:
                    yield (f"{prefix}.{name}" if prefix else name), wrapper


def log_sigmas(
    writer: Writer, model: nn.Module, step: int | None = None, prefix: str = "sigma"
) -> None:
    """Write the last sigma of each normalized parameter of a model, as :func:`sigmas` gives them.

    One read of the device for all of them.

    Args:
        writer: takes ``add_scalar(tag, value, step)``.
        model: any module.
        step: the step to write them for.
        prefix: the tags are ``prefix/name`` with the parameter's qualified name.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from snorm_triton import log_sigmas, refresh_spectral_norm, spectral_norm
        >>> class Printer:
        ...     def add_scalar(self, tag, scalar_value, global_step):
        ...         print(tag, round(scalar_value, 3), global_step)
        >>> layer = spectral_norm(nn.Linear(2, 2, bias=False))
        >>> layer.weight = torch.diag(torch.tensor([3.0, 1.0]))
        >>> log_sigmas(Printer(), refresh_spectral_norm(layer), step=7)
        sigma/weight 3.0 7
    """
    waiting = [name for name, wrapper in normalized(model) if wrapper.is_deferred]
    found = {name: sigma for name, sigma in sigmas(model).items() if name not in waiting}
    if not found:
        return
    first, *_ = found.values()
    values = torch.stack([sigma.to(first.device, torch.float32) for sigma in found.values()])
    for name, value in zip(found, values.tolist(), strict=True):
        writer.add_scalar(f"{prefix}/{name}", value, step)


def _patched_sigmas(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for path, module in model.named_modules():
        hooks = list(module._forward_pre_hooks.values())
        norms = [(hook.name, hook) for hook in hooks if isinstance(hook, LegacySpectralNorm)]
        if isinstance(module, ParametrizationList):
            name = path.replace("parametrizations.", "")
            norms += [(name, norm) for norm in module if isinstance(norm, TorchSpectralNorm)]
            path = ""
        for name, norm in norms:
            sigma = norm.__dict__.get("sigma")
            if isinstance(sigma, Tensor):
                yield f"{path}.{name}" if path else name, sigma.clone()


def check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
