import pytest

pytest.register_assert_rewrite("saved_states")
