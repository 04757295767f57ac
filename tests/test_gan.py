"""The demo: its data, its losses, what it measures, what it writes, and its command line."""

import csv
import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

pytest.importorskip("sklearn", reason="the demo extra is not installed")
pytest.importorskip("matplotlib", reason="the demo extra is not installed")
pytest.importorskip("tqdm", reason="the demo extra is not installed")

from snorm_triton.cli import demo as demo_command
from snorm_triton.cli import main as command_line
from snorm_triton.gan.data import DigitReader, load_digits, rows_of_digits
from snorm_triton.gan.demo import run_demo
from snorm_triton.gan.losses import discriminator_loss, generator_loss
from snorm_triton.gan.pictures import MARGIN, ZOOM, tile
from snorm_triton.gan.singular_values import top_singular_values
from snorm_triton.gan.training import NORMALIZATIONS, Trainer, TrainingConfig

TINY = TrainingConfig(steps=4, batch_size=4, z_dim=4, channels=4)
FILES = ("metrics.csv", "samples.png", "sigma.png")


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    return load_digits()


@pytest.fixture
def threads():
    """Puts the number of threads back, which the command sets."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_digits_are_8x8_in_minus_one_to_one(digits):
    images, labels = digits
    assert images.shape == (1797, 1, 8, 8)
    assert images.dtype == torch.float32
    assert (images.min(), images.max()) == (-1, 1)
    assert labels.shape == (1797,)
    assert labels.unique().tolist() == list(range(10))


def test_rows_of_digits_have_one_class_a_column(digits):
    images, labels = digits
    rows = rows_of_digits(images, labels, 3)
    assert rows.shape == (30, 1, 8, 8)
    assert torch.equal(rows[12], images[labels == 2][1])


def test_reader_agrees_with_real_labels_and_not_with_wrong_ones(digits):
    images, labels = digits
    reader = DigitReader(images[:1000], labels[:1000])
    assert reader.agreement(images[1000:], labels[1000:]) > 0.9
    assert reader.agreement(images[1000:], (labels[1000:] + 1) % 10) < 0.1


def test_discriminator_loss_by_hand():
    real, fake = torch.tensor([[2.0], [0.5]]), torch.tensor([[-3.0], [0.25]])
    # real: 0 and 0.5, mean 0.25; fake: 0 and 1.25, mean 0.625
    assert discriminator_loss(real, fake).item() == 0.875


def test_discriminator_loss_is_flat_beyond_the_margin():
    real, fake = (torch.tensor([value], requires_grad=True) for value in (1.5, -1.5))
    discriminator_loss(real, fake).backward()
    assert real.grad is not None
    assert fake.grad is not None
    assert (real.grad.item(), fake.grad.item()) == (0, 0)


def test_generator_loss_by_hand():
    assert generator_loss(torch.tensor([[2.0], [-0.5]])).item() == -0.75


def test_top_singular_values_of_known_weights():
    layer = nn.Linear(3, 3, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.diag(torch.tensor([1.0, -4.0, 2.0])))
    model = nn.Sequential(parametrizations.spectral_norm(layer), nn.ReLU())
    measured = top_singular_values(model)
    assert list(measured) == ["0"]
    assert measured["0"].raw == pytest.approx(4)
    assert measured["0"].normalized == pytest.approx(1, rel=1e-4)


def test_measuring_leaves_the_power_iteration_where_it_was():
    model = parametrizations.spectral_norm(nn.Linear(5, 7))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    top_singular_values(model)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_unnormalized_layer_has_one_singular_value():
    values = top_singular_values(nn.Sequential(nn.Conv2d(2, 3, 3)))["0"]
    assert values.raw == values.normalized


def test_tile_puts_images_in_rows_with_margins():
    images = torch.stack([torch.full((1, 8, 8), value) for value in (-1.0, 1.0, 0.0, 0.5)])
    cell = 8 * ZOOM + 2 * MARGIN
    picture = tile(images, columns=2)
    assert picture.shape == (2 * cell, 2 * cell)
    middle, margin = cell // 2, cell + MARGIN // 2
    assert picture[middle, cell + middle] == 1
    assert picture[cell + middle, cell + middle] == 0.5
    assert picture[margin, margin] == -1


@pytest.mark.parametrize("size", [8, 16])
def test_training_moves_both_networks_and_ends_at_learning_rate_zero(digits, size):
    images = nn.functional.interpolate(digits[0][:50], size=size)
    trainer = Trainer(images, digits[1][:50], TINY)
    assert trainer.sample(trainer.noise(3), torch.arange(3)).shape == (3, 1, size, size)
    networks = nn.ModuleList([trainer.generator, trainer.discriminator])
    before = [parameter.clone() for parameter in networks.parameters()]
    for _ in range(TINY.steps):
        losses = trainer.step()
    assert all(math.isfinite(loss) for loss in losses)
    moved = [not torch.equal(b, a) for b, a in zip(before, networks.parameters(), strict=True)]
    assert all(moved)
    assert [schedule.get_last_lr() for schedule in trainer._schedules] == [[0.0], [0.0]]


@pytest.mark.parametrize("shape", [(1, 12, 12), (1, 2, 2), (1, 8, 16), (3, 8, 8)], ids=str)
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"images must .* bottom_width=2 by .*, got \(10, "):
        Trainer(torch.zeros(10, *shape), torch.arange(10), TINY)


def test_demo_writes_pictures_and_metrics(tmp_path):
    history = run_demo(tmp_path / "out", TINY, progress=False)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(FILES)
    for name in ("samples.png", "sigma.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "out" / "metrics.csv").open() as file:
        header, *rows = csv.reader(file)
    layers = list(top_singular_values(history._trainer.discriminator))
    assert len(layers) == 12
    assert header == [
        *("step", "discriminator_loss", "generator_loss", "agreement", "largest_sigma"),
        *(f"sigma {layer}" for layer in layers),
        *(f"raw sigma {layer}" for layer in layers),
    ]
    assert [int(row[0]) for row in rows] == [1, 2, 3, 4]
    assert all(math.isfinite(float(value)) for value in itertools.chain(*rows))
    assert all(float(row[4]) == max(map(float, row[5:17])) for row in rows)


def test_demo_repeats_for_a_seed(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run_demo(tmp_path / name, TINY, seed=seed, progress=False)
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        assert (tmp_path / "a" / name).read_bytes() != (tmp_path / "c" / name).read_bytes()


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_demo_runs_with_each_normalization(tmp_path, normalization):
    history = run_demo(tmp_path, TINY, normalization=normalization, progress=False)
    for values in history.records[-1].sigma.values():
        if normalization == "none":
            assert values.normalized == values.raw
        else:
            assert values.normalized == pytest.approx(1, abs=0.2)


def test_demo_names_the_normalizations_that_it_has(tmp_path):
    with pytest.raises(ValueError, match="must be one of snorm, torch, none, got 'ours'"):
        run_demo(tmp_path / "out", TINY, normalization="ours")
    assert not (tmp_path / "out").exists()


def test_no_command_prints_help(capsys):
    assert command_line.main([]) == 0
    assert "demo" in capsys.readouterr().out


@pytest.mark.usefixtures("threads")
def test_demo_command_names_its_folder(tmp_path: Path, capsys):
    assert command_line.main(["demo", "--steps", "1", "--output", str(tmp_path / "out")]) == 0
    assert str(tmp_path / "out") in capsys.readouterr().out.splitlines()[-1]


def test_demo_command_says_which_packages_are_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(demo_command, "find_spec", lambda module: None)
    message = command_line.main(["demo", "--output", str(tmp_path / "out")])
    assert message == (
        "the demo needs scikit-learn, matplotlib, tqdm: pip install '.[demo]' in its checkout"
    )
    assert not (tmp_path / "out").exists()


def test_demo_command_refuses_a_file_as_output(tmp_path):
    (tmp_path / "file").touch()
    message = command_line.main(["demo", "--output", str(tmp_path / "file")])
    assert str(message).startswith(f"--output {tmp_path / 'file'}: ")


def test_demo_command_refuses_an_unknown_device(tmp_path):
    message = command_line.main(["demo", "--device", "nowhere", "--output", str(tmp_path)])
    assert str(message).startswith("--device nowhere: ")


def test_demo_command_refuses_zero_steps(capsys):
    with pytest.raises(SystemExit):
        command_line.main(["demo", "--steps", "0"])
    assert "argument --steps: must be at least 1, got 0" in capsys.readouterr().err
