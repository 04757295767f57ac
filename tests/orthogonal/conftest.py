"""Every map, for the tests that are of each."""

import pytest

from orthogonal_models import MAPS


@pytest.fixture(params=MAPS)
def kind(request):
    return request.param
