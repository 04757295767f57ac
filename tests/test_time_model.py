"""The model of a device's time knows every launch, and comes near to what was measured."""

from statistics import geometric_mean

import pytest

from bench.normalizations import NEW, OURS
from bench.time_model import DEVICES, rows
from bench.work import Work, time_of


@pytest.fixture(scope="module")
def modeled():
    return list(rows(DEVICES["H200"]))


def test_it_comes_near_to_what_was_measured(modeled):
    ratios = [row.ours / row.measured[OURS] for row in modeled if OURS in row.measured]
    assert len(ratios) > 50
    assert geometric_mean(ratios) == pytest.approx(1, rel=0.15)
    assert all(0.5 < ratio < 1.5 for ratio in ratios)


def test_it_says_what_was_measured_of_torchs_too(modeled):
    ratios = [row.torchs / row.measured[NEW] for row in modeled if NEW in row.measured]
    assert geometric_mean(ratios) == pytest.approx(1, rel=0.3)
    assert all(row.ours < row.torchs for row in modeled)


def test_few_programs_reach_less_than_the_devices_bandwidth():
    device = DEVICES["H100"]
    few, many = (time_of(Work("a", n, reads=1e8), device) for n in (33, 132))
    assert few == pytest.approx(4 * many, rel=0.05)
