"""What a run draws and writes."""

import csv
import itertools
import math

import torch

from snorm_triton.gan.metrics import read_metrics
from snorm_triton.gan.pictures import tile
from snorm_triton.gan.sigma_picture import LINES, draw_sigma, spread
from tiny_runs import tiny_run

PNG = b"\x89PNG"


def test_tile_puts_gray_images_on_white_paper_in_rows():
    images = torch.tensor([0, 255, 128, 64], dtype=torch.uint8)[:, None, None, None]
    picture = tile(images.expand(-1, 1, 8, 8), columns=2)
    cell = 64 + 2 * 4
    assert picture.shape == (2 * cell, 2 * cell, 3)
    middles = picture[cell // 2 :: cell, cell // 2 :: cell, 0]
    assert middles.tolist() == [[255, 0], [127, 191]]
    assert picture[:2].unique().tolist() == [255]


def test_tile_keeps_colors():
    image = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    image[:, 2] = 200
    assert tile(image, columns=1)[32, 32].tolist() == [0, 0, 200]


def test_a_run_leaves_pictures_metrics_and_its_config(tmp_path):
    tiny_run(tmp_path, picture_every=3, evaluate=True).train(progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("checkpoint.pt", "config.toml", "metrics.csv", "samples", "samples.png", "sigma.png"),
    ]
    pictures = sorted((tmp_path / "samples").iterdir())
    assert [path.name for path in pictures] == ["step-0000003.png", "step-0000006.png"]
    for path in (*pictures, tmp_path / "samples.png", tmp_path / "sigma.png"):
        assert path.read_bytes().startswith(PNG)
    with (tmp_path / "metrics.csv").open() as file:
        header, *rows = csv.reader(file)
    assert header[:6] == [
        *("step", "discriminator_loss", "generator_loss"),
        *("agreement", "frechet_distance", "largest_sigma"),
    ]
    assert len(header) == 6 + 2 * 12
    assert [int(row[0]) for row in rows] == [1, 2, 3, 4, 5, 6]
    assert all(math.isfinite(float(value)) for value in itertools.chain(*rows))
    assert all(float(row[5]) == max(map(float, row[6:18])) for row in rows)


def test_few_layers_all_have_a_line_and_many_are_thinned_evenly():
    assert spread(["a", "b"], LINES) == ["a", "b"]
    many = [str(number) for number in range(61)]
    assert spread(many, LINES) == ["0", "12", "24", "36", "48", "60"]


def test_singular_values_of_a_run_that_diverged_are_drawn(tmp_path):
    columns = {"step": [1, 2], "sigma a": [1.0, math.nan], "raw sigma a": [2.0, math.nan]}
    draw_sigma(tmp_path / "sigma.png", columns, spectral=True)
    assert (tmp_path / "sigma.png").read_bytes().startswith(PNG)


def test_metrics_read_back(tmp_path):
    run = tiny_run(tmp_path, steps=2)
    run.journal.draw = lambda: None
    run.train(progress=False)
    columns = read_metrics(tmp_path / "metrics.csv")
    assert columns["step"] == [1, 2]
    assert columns["largest_sigma"][-1] == run.journal.last_record.largest_sigma
