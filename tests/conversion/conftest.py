import pytest

pytest.register_assert_rewrite("converted_models")
