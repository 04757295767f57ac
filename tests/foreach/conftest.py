import gc

import pytest

pytest.register_assert_rewrite("whole_models")


@pytest.fixture
def no_collection():
    """What is not needed is given back at once, or it stays."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()
