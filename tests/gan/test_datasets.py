"""Each format is read as it was written, and a damaged file is named."""

import gzip
import struct
import sys
import types

import pytest
import torch
from PIL import Image

from snorm_triton.gan.datasets import as_bytes, as_floats, load, torchvision
from snorm_triton.gan.datasets.digits import load_digits
from snorm_triton.gan.datasets.images import ImageSet


def random_bytes(*shape, below=256):
    random = torch.Generator().manual_seed(0)
    return torch.randint(below, shape, dtype=torch.uint8, generator=random)


IMAGES, LABELS = random_bytes(5, 4, 6), random_bytes(5, below=10)
COLORS = random_bytes(10, 3, 32, 32)
LARGE = random_bytes(2, 3, 96, 96)


def idx(tensor):
    return struct.pack(f">HBB{tensor.ndim}I", 0, 8, tensor.ndim, *tensor.shape) + bytes(
        tensor.flatten().tolist()
    )


def write_idx(folder, *, compressed=False):
    for what, tensor in (("images-idx3", IMAGES), ("labels-idx1", LABELS)):
        content = idx(tensor)
        name = f"train-{what}-ubyte" + (".gz" if compressed else "")
        (folder / name).write_bytes(gzip.compress(content) if compressed else content)


def write_cifar10(folder):
    for number, part in enumerate(COLORS.split(2), start=1):
        rows = torch.cat([torch.full((2, 1), number, dtype=torch.uint8), part.flatten(1)], dim=1)
        (folder / f"data_batch_{number}.bin").write_bytes(bytes(rows.flatten().tolist()))


def write_stl10(folder):
    by_columns = LARGE.transpose(2, 3).flatten()
    (folder / "train_X.bin").write_bytes(bytes(by_columns.tolist()))
    (folder / "train_y.bin").write_bytes(bytes([10, 1]))


def write_images(folder, *, size=(40, 24)):
    for name, color in (("cats", (255, 0, 0)), ("dogs", (0, 0, 255))):
        (folder / name).mkdir()
        for suffix in ("png", "jpg"):
            Image.new("RGB", size, color).save(folder / name / f"a.{suffix}")


def test_digits_are_bytes_with_ink_at_255():
    digits = load_digits()
    assert digits.images.shape == (1797, 1, 8, 8)
    assert (digits.images.min(), digits.images.max()) == (0, 255)
    assert digits.images.unique().numel() == 17
    assert digits.classes.tolist() == list(range(10))


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gz"])
def test_idx(tmp_path, compressed):
    write_idx(tmp_path, compressed=compressed)
    data = load(str(tmp_path))
    assert torch.equal(data.images[:, 0], IMAGES)
    assert torch.equal(data.labels, LABELS.long())


def test_cifar10(tmp_path):
    write_cifar10(tmp_path)
    data = load(str(tmp_path))
    assert torch.equal(data.images, COLORS)
    assert data.labels.tolist() == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


def test_stl10_has_columns_first_and_labels_from_one(tmp_path):
    write_stl10(tmp_path)
    data = load(str(tmp_path), 48)
    assert data.shape == (3, 48, 48)
    assert data.labels.tolist() == [9, 0]
    assert torch.equal(load(str(tmp_path)).images, LARGE)


def test_images_by_class_of_any_size(tmp_path):
    write_images(tmp_path)
    (tmp_path / "cats" / "notes.txt").write_text("no image")
    data = load(str(tmp_path), 16)
    assert data.images.shape == (4, 3, 16, 16)
    assert data.labels.tolist() == [0, 0, 1, 1]
    means = data.images.float().mean((2, 3))
    assert means[0, 0] > 250
    assert means[2, 2] > 250
    assert means[0, 2] < 5


def truncated(name):
    def damage(folder):
        path = folder / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 + 1])

    return damage


def replaced(name, content):
    return lambda folder: (folder / name).write_bytes(content)


GZ = "train-images-idx3-ubyte.gz"
DAMAGES = {
    "idx truncated": (
        write_idx,
        truncated("train-images-idx3-ubyte"),
        "truncated or damaged: 69 b",
    ),
    "idx not idx": (write_idx, replaced("train-labels-idx1-ubyte", b"none"), "is no IDX file"),
    "idx without labels": (
        write_idx,
        lambda folder: (folder / "train-labels-idx1-ubyte").unlink(),
        "has no train-labels-idx",
    ),
    "idx of two lengths": (
        write_idx,
        replaced("train-labels-idx1-ubyte", idx(LABELS[:4])),
        "has 5 images and 4 labels",
    ),
    "gz truncated": (lambda f: write_idx(f, compressed=True), truncated(GZ), "is truncated or no"),
    "gz not gz": (lambda f: write_idx(f, compressed=True), replaced(GZ, b"a"), "truncated or no"),
    "cifar truncated": (write_cifar10, truncated("data_batch_2.bin"), "data_batch_2.bin is trunc"),
    "stl truncated": (write_stl10, truncated("train_X.bin"), "train_X.bin is truncated"),
    "image corrupt": (write_images, replaced("cats/a.png", b"none"), "a.png is no image"),
    "image truncated": (write_images, truncated("dogs/a.png"), "a.png is no image"),
    "empty": (lambda folder: None, lambda folder: None, "holds no train-images-idx3-ubyte, "),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_data_is_refused_by_name(tmp_path, name):
    write, damage, message = DAMAGES[name]
    write(tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        load(str(tmp_path))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"no dataset or folder 'digit'; did you mean 'digits'\?"):
        load("digit")


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file, and not a folder"):
        load(str(tmp_path / "file"))


def test_floats_and_bytes_turn_into_each_other():
    every = torch.arange(256, dtype=torch.uint8)
    assert (as_floats(every).min(), as_floats(every).max()) == (-1, 1)
    assert torch.equal(as_bytes(as_floats(every)), every)


def test_rows_have_one_class_a_column_and_repeat():
    data = ImageSet(torch.arange(5, dtype=torch.uint8)[:, None, None, None], torch.arange(5) % 2, 2)
    assert data.rows(4, data.classes).flatten().tolist() == [0, 1, 2, 3, 4, 1, 0, 3]


class GrayImages:
    """A dataset as torchvision has them: pairs of a Pillow image and a label."""

    def __init__(self, root, train=True, download=False):
        self.asked_for = (root, train, download)

    def __len__(self):
        return 3

    def __getitem__(self, index):
        if self.asked_for != ("there", True, True):
            raise RuntimeError(f"not\nthere: {self.asked_for}")
        return Image.new("L", (6, 6), 10 * index), index % 2


@pytest.fixture
def stand_in_for_torchvision(monkeypatch):
    datasets = types.SimpleNamespace(__all__=("GrayImages",), GrayImages=GrayImages)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", datasets)
    monkeypatch.setitem(sys.modules, "torchvision", types.SimpleNamespace(datasets=datasets))
    monkeypatch.setattr(torchvision, "find_spec", lambda name: True)


@pytest.mark.usefixtures("stand_in_for_torchvision")
def test_a_dataset_of_torchvision_is_taken_into_memory():
    data = load("torchvision:GrayImages:there")
    assert data.images.shape == (3, 1, 6, 6)
    assert data.images[:, 0, 0, 0].tolist() == [0, 10, 20]
    assert data.labels.tolist() == [0, 1, 0]


@pytest.mark.usefixtures("stand_in_for_torchvision")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("GrayImage", "NAME must be one of GrayImages, got 'GrayImage'; did you mean 'GrayImages'"),
        ("GrayImages", r"torchvision cannot load it: not there: \('data', True, True\)$"),
    ],
)
def test_what_torchvision_cannot_load_is_a_sentence(name, message):
    with pytest.raises(ValueError, match=message):
        load(f"torchvision:{name}")


def test_torchvision_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(torchvision, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs torchvision: pip install torchvision"):
        load("torchvision:MNIST")
