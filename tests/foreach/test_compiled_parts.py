"""A compiled part of a model that is normalized as a whole is compiled once, or once more."""

import pytest
import torch
from torch import nn

from snorm_triton import apply_spectral_norm, apply_weight_norm

# As torch imports itself.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit")


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()


@pytest.mark.parametrize("apply", [apply_spectral_norm, apply_weight_norm])
@pytest.mark.parametrize("compiled_at", [0, 4])
def test_a_compiled_part_of_a_model_that_is_normalized_as_a_whole(apply, compiled_at):
    model = apply(nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 6))), foreach=True)
    optimizer, graphs = torch.optim.SGD(model.parameters(), lr=0.01), []

    def compiler(graph, inputs):
        graphs.append(graph)
        return graph.forward

    for step in range(12):
        if step == compiled_at:
            model[1].compile(backend=compiler, fullgraph=True)
        optimizer.zero_grad()
        model(torch.randn(3, 6)).square().sum().backward()
        optimizer.step()
    assert len(graphs) <= 2
