"""The table of docs/distributed.md is what bench/communication.py writes today."""

from pathlib import Path

import pytest

from bench.communication import written

PAGE = Path(__file__).parents[2] / "docs" / "distributed.md"


@pytest.mark.skipif(not PAGE.exists(), reason="the docs are not part of the package")
def test_the_table_is_up_to_date():
    assert written(PAGE.read_text()) == PAGE.read_text()
