import pytest

pytest.register_assert_rewrite("whole_models")
