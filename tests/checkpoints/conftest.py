import pytest
import torch
from torch.nn.utils import spectral_norm as legacy_spectral_norm

pytest.register_assert_rewrite("saved_states")


@pytest.fixture
def saved():
    from saved_states import model_of

    return model_of(legacy_spectral_norm)


@pytest.fixture
def legacy_file(tmp_path, saved):
    path = tmp_path / "legacy.pt"
    torch.save(saved.state_dict(), path)
    return path
