"""What the tests of training need: the demo extra, and threads as they were."""

import pytest
import torch

pytest.importorskip("sklearn", reason="the demo extra is not installed")
pytest.importorskip("matplotlib", reason="the demo extra is not installed")
pytest.importorskip("tqdm", reason="the demo extra is not installed")


@pytest.fixture(autouse=True)
def threads():
    """Puts the number of threads back, which a run sets."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
