"""On torch, a training access allocates one tensor of the weight's size forward, one backward."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from snorm_triton import spectral_norm
from snorm_triton.ops import tiles


class FreshTensors(TorchDispatchMode):
    """Collects the operations that return fresh memory for ``numel`` elements or more."""

    def __init__(self, numel):
        super().__init__()
        self.numel = numel
        self.operations = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        known = {storage_of(x) for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        for x in tree_leaves(result):
            is_large = isinstance(x, torch.Tensor) and x.numel() >= self.numel
            if is_large and storage_of(x) not in known:
                self.operations.append(str(operation))
        return result


def storage_of(tensor):
    return tensor.untyped_storage().data_ptr()


def test_one_weight_sized_allocation_each_way(layer_kind, monkeypatch):
    monkeypatch.setattr(tiles, "ELEMENTS", 1)  # of which more may be allocated
    layer = spectral_norm(layer_kind.make(), layer_kind.parameter, backend="torch")
    torch.optim.SGD(layer.parameters(), lr=0.1).step()  # training has begun
    original = layer.parametrizations[layer_kind.parameter].original
    grad = torch.randn_like(original)
    with FreshTensors(original.numel()) as forward:
        weight = getattr(layer, layer_kind.parameter)
    with FreshTensors(original.numel()) as backward:
        torch.autograd.grad(weight, original, grad)
    assert forward.operations == ["aten.div.Tensor"]
    assert backward.operations in (["aten.addr.default"], ["aten.addcmul.default"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "make",
    [lambda: nn.Linear(700, 800), lambda: nn.ConvTranspose2d(190, 181, 4)],
    ids=["Linear", "ConvTranspose2d"],
)
def test_half_precision_is_never_widened_as_a_whole(make, dtype):
    layer = spectral_norm(make().to(dtype))
    torch.optim.SGD(layer.parameters(), lr=0.1).step()  # training has begun
    original = layer.parametrizations.weight.original
    grad = torch.randn_like(original)
    with FreshTensors(original.numel()) as forward:
        weight = layer.weight
    with FreshTensors(original.numel()) as backward:
        torch.autograd.grad(weight, original, grad)
    assert forward.operations == ["aten.div.Tensor"]
    assert backward.operations == ["aten.empty_like.default"]
