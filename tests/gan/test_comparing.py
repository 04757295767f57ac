"""The comparison: its runs, that none is done twice, and its figure and table."""

import math
import subprocess

import pytest

from snorm_triton.cli import main as command_line
from snorm_triton.gan import comparison
from snorm_triton.gan.checkpoint import Checkpoint
from snorm_triton.gan.comparison import CELLS, Cell, train_cells
from snorm_triton.gan.comparison_picture import draw_comparison, table_of


def test_there_are_six_groups_of_three():
    assert len(set(CELLS)) == 18
    assert {cell.normalization for cell in CELLS} == {"none", "weight-norm", "ours"}


@pytest.mark.usefixtures("hasty_classifier")
def test_a_run_is_trained_once_judged_and_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    cell = Cell("B", "ours")
    monkeypatch.setattr(comparison, "CELLS", [cell])
    assert command_line.main(["compare", "--steps", "1", "--output", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    checkpoint = Checkpoint(cell.folder(tmp_path))
    assert (checkpoint.step, checkpoint.config.learning_rate) == (1, 1e-4)
    assert (tmp_path / "comparison.md").read_text() in said
    monkeypatch.setattr(subprocess, "Popen", None)
    assert list(train_cells(tmp_path, 1, seed=0, jobs=1)) == [cell]


def test_a_run_that_fails_is_named_with_its_last_words(tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "CELLS", [Cell("G", "ours")])
    with pytest.raises(ValueError, match=r"^G with ours: preset must be one of .*, got 'G'$"):
        list(train_cells(tmp_path, 1, seed=0, jobs=1))


def test_figure_and_table_show_what_there_is(tmp_path):
    distances = {CELLS[0]: 12.34, CELLS[1]: math.inf}
    draw_comparison(tmp_path / "a.png", distances, 1.0, "title")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    row = next(line for line in table_of(distances, 1.0, "").splitlines() if line.startswith("| A"))
    assert row == "| A | 0.0001 | 0.5 0.9 | 5 | 12.3 | diverged |  |"


@pytest.mark.parametrize("flag", ["--steps", "--jobs"])
def test_numbers_below_one_are_refused(tmp_path, flag):
    message = command_line.main(["compare", flag, "0", "--output", str(tmp_path / "a")])
    assert message == f"{flag[2:]} must be at least 1, got 0"
