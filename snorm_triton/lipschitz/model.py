"""A Lipschitz bound of a whole model: the product, sum or root of squares of its layers' bounds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from ..ops.convolution import Convolution
from ..ops.convolution_geometry import CONVOLUTIONS, TRANSPOSED
from .bound import N_ITERATIONS, conv_norm_bound
from .containers import Concatenation, Residual
from .layers import FACTORS

Sizes = tuple[int, ...]
# With the dimensions that their inputs may have.
BATCH_NORMS = {nn.BatchNorm1d: (1, 2), nn.BatchNorm2d: (3,), nn.BatchNorm3d: (4,)}


def model_bound(
    model: nn.Module, input_shape: Sequence[int], n_iterations: int = N_ITERATIONS
) -> Tensor:
    r"""An upper bound of a model's Lipschitz constant, from sample to output, in Euclidean norms.

    The product of its layers' bounds along a Sequential, the sum over the branches of a
    :class:`Residual`, the root of the sum of squares over those of a :class:`Concatenation`.
    Convolutions and Linear layers count by :func:`conv_norm_bound`, normalized weights as
    evaluation has them, without an iteration; a BatchNorm by its largest scale, in evaluation;
    pooling, padding and upsampling by what they repeat; activations by their largest slope.
    Hooks of modules are not looked at, but those of torch's own norms.

    Args:
        model: one of these modules; not a subclass with another ``forward``.
        input_shape: (C, ...), without the batch.
        n_iterations: of the Gram iteration, see :func:`conv_norm_bound`.

    Returns:
        Shape (), float32 or float64; differentiable in the parameters.

    Raises:
        ValueError: a module of another type, BatchNorm or dropout in training, or a layer that does
            not take the shape it gets; each with its path in the model.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from snorm_triton.lipschitz import model_bound
        >>> model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.LayerNorm(3))
        >>> model_bound(model, (3,))
        Traceback (most recent call last):
            ...
        ValueError: 2 (LayerNorm): a module of this type has no bound here
        >>> bool(model_bound(model[:2], (3,)) >= torch.linalg.matrix_norm(model[0].weight, 2))
        True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    shape = tuple(int(size) for size in input_shape)
    bound, _ = _Walk(n_iterations).bound(model, shape, "")
    if not isinstance(bound, Tensor):
        return torch.tensor(bound, dtype=torch.float64)
    roundings = 2 * len(list(model.modules()))
    return bound * (1 + roundings * torch.finfo(bound.dtype).eps)


class _Walk:
    """Goes through a model with the shape of each layer's input."""

    def __init__(self, n_iterations: int) -> None:
        self.n_iterations = n_iterations

    def bound(self, module: nn.Module, shape: Sizes, path: str) -> tuple[Tensor | float, Sizes]:
        """The bound of a module, and the shape of its output."""
        if _is(module, (nn.Sequential,)):
            return self._chain(module, shape, path)
        if _is(module, (Residual,)):
            return self._sum(module, shape, path)
        if _is(module, (Concatenation,)):
            return self._concatenation(module, shape, path)
        try:
            return self._layer(module, shape)
        except (ValueError, RuntimeError) as error:
            name = type_before_parametrizations(module).__name__
            raise ValueError(f"{path or 'model'} ({name}): {error}") from error

    def _chain(self, module: Any, shape: Sizes, path: str) -> tuple[Tensor | float, Sizes]:
        total: Tensor | float = 1.0
        for name, child in module._modules.items():  # each as often as it is there
            factor, shape = self.bound(child, shape, _join(path, name))
            total = total * factor
        return total, shape

    def _sum(self, module: Any, shape: Sizes, path: str) -> tuple[Tensor | float, Sizes]:
        branch, output = self.bound(module.branch, shape, _join(path, "branch"))
        shortcut, other = self.bound(module.shortcut, shape, _join(path, "shortcut"))
        if output != other:
            raise ValueError(
                f"{path or 'model'} (Residual): branch and shortcut must have outputs of one "
                f"shape, got {output} and {other}"
            )
        return branch + shortcut, output

    def _concatenation(self, module: Any, shape: Sizes, path: str) -> tuple[Tensor | float, Sizes]:
        outputs = [
            self.bound(branch, shape, _join(path, f"branches.{i}"))
            for i, branch in enumerate(module.branches)
        ]
        rests = {output[1:] for _, output in outputs}
        if len(rests) > 1:
            raise ValueError(
                f"{path or 'model'} (Concatenation): outputs must differ in their channels alone, "
                f"got {', '.join(str(output) for _, output in outputs)}"
            )
        if not shape or not all(output for _, output in outputs):
            raise ValueError(f"{path or 'model'} (Concatenation): outputs must have channels")
        squares: Any = sum(bound * bound for bound, _ in outputs)
        return squares**0.5, (sum(output[0] for _, output in outputs), *rests.pop())

    def _layer(self, module: Any, shape: Sizes) -> tuple[Tensor | float, Sizes]:
        kind = None if _is_overridden(module) else type_before_parametrizations(module)
        if kind in CONVOLUTIONS + TRANSPOSED:
            bound = conv_norm_bound(module, shape, self.n_iterations)
            return bound, _output_shape(module, shape)
        if kind is nn.Linear:
            if shape[-1:] != (module.in_features,):
                raise ValueError(f"takes {module.in_features} features, got shape {shape}")
            bound = conv_norm_bound(module, n_iterations=self.n_iterations)
            return bound, (*shape[:-1], module.out_features)
        if _is(module, BATCH_NORMS):
            return _batch_norm(module, shape), shape
        if _is(module, (nn.PReLU,)):
            if module.num_parameters not in (1, *shape[:1]):
                raise ValueError(f"takes {module.num_parameters} channels, got shape {shape}")
            return module.weight.abs().amax().clamp_min(1), shape
        for known, factor in FACTORS.items():
            if _is(module, (known,)):
                output = module.forward(torch.empty(1, *shape, device="meta"))
                return factor(module, shape), tuple(output.shape[1:])
        raise ValueError("a module of this type has no bound here")


def _batch_norm(module: Any, shape: Sizes) -> Tensor:
    if module.training:
        raise ValueError("it depends on the batch in training: call eval()")
    if module.running_var is None:
        raise ValueError("it depends on the batch: it has no running statistics")
    is_image = any(
        isinstance(module, kind) and len(shape) in ranks for kind, ranks in BATCH_NORMS.items()
    )
    if not is_image or shape[0] != module.num_features:
        raise ValueError(f"takes {module.num_features} channels, got shape {shape}")
    scale: Tensor = (module.running_var + module.eps).rsqrt()
    if module.weight is not None:
        scale = scale * module.weight.abs()
    return scale.amax() * (1 + 4 * torch.finfo(scale.dtype).eps)


def _output_shape(module: Any, shape: Sizes) -> Sizes:
    """Of a convolution, whose weight is not computed for it."""
    o, i = module.out_channels, module.in_channels
    first, second = (i, o) if isinstance(module, TRANSPOSED) else (o, i)
    sizes = (first, second // module.groups, *module.kernel_size)
    return Convolution.of(module, shape, torch.empty(sizes, device="meta")).output_shape


def _is(module: nn.Module, types: Iterable[type[nn.Module]]) -> bool:
    """Whether it computes what one of these types does."""
    return not _is_overridden(module) and any(
        isinstance(module, kind) and type(module).forward is kind.forward for kind in types
    )


def _is_overridden(module: nn.Module) -> bool:
    """Whether this one, or how modules of its type are called, is not what its type says."""
    own = {"forward", "_conv_forward"} & vars(module).keys()
    return bool(own) or type(module).__call__ is not nn.Module.__call__


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
