"""Options: what is refused, in what order they stand, and that a TOML file of them reads back."""

import tomllib
from dataclasses import replace

import pytest

from snorm_triton.gan import TrainingConfig
from snorm_triton.gan.config_files import layered, make_config, to_toml
from snorm_triton.gan.presets import PRESETS

REFUSED = [
    ({"loss": "hing"}, "loss must be one of hinge, .*, got 'hing'; did you mean 'hinge'?"),
    ({"model": "resnet"}, "model must be .*; did you mean 'sn-resnet'?"),
    ({"normalization": 3}, "normalization must be str, got 3"),
    ({"steps": 0}, "steps must be positive, got 0"),
    ({"steps": 2.5}, "steps must be int, got 2.5"),
    ({"learning_rate": float("nan")}, "learning_rate must be positive, got nan"),
    ({"betas": [0.5]}, r"betas must be two numbers, got \[0.5\]"),
    ({"betas": (0.5, 1.0)}, r"betas must be at least 0 and below 1, got \(0.5, 1.0\)"),
    ({"ema_decay": 1}, "ema_decay must be at least 0 and below 1, got 1.0"),
    ({"ema_decay": True}, "ema_decay must be a number, got True"),
    ({"seed": -1}, "seed must be at least 0, got -1"),
    ({"steps": 1, "epochs": 1}, "steps=1 and epochs=1.0: give one of them"),
    ({"compile": True, "loss": "wgan-gp"}, "compile: torch does not compile the double backward"),
    ({"compile": True, "normalization": "hook"}, "compile: torch's hook changes the module"),
    ({"model": "sn-dcgan", "conditional": True}, "conditional: sn-dcgan takes no labels"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=str)
def test_wrong_options_are_refused(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        TrainingConfig(**options)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_toml_file_reads_back(preset):
    config = make_config({"data": 'a "strange"\\path'}, preset=preset)
    assert TrainingConfig(**tomllib.loads(to_toml(config))) == config


def test_presets_are_those_of_the_paper_and_of_the_notebook():
    adam = {
        name: (preset["learning_rate"], *preset["betas"], preset["discriminator_steps"])
        for name, preset in PRESETS.items()
        if name in "ABCDEF"
    }
    assert adam == {
        "A": (1e-4, 0.5, 0.9, 5),
        "B": (1e-4, 0.5, 0.999, 1),
        "C": (2e-4, 0.5, 0.999, 1),
        "D": (1e-3, 0.5, 0.9, 5),
        "E": (1e-3, 0.5, 0.999, 5),
        "F": (1e-3, 0.9, 0.999, 5),
    }
    notebook = make_config({}, preset="notebook")
    assert (notebook.z_dim, notebook.batch_size, notebook.learning_rate) == (64, 128, 2e-4)
    assert (notebook.betas, notebook.loss, notebook.picture_every) == ((0.5, 0.999), "bce", 500)


def test_flags_stand_over_the_file_and_the_file_over_the_preset(tmp_path):
    file = tmp_path / "a.toml"
    file.write_text('preset = "F"\nlearning_rate = 0.5\nz_dim = 7\n')
    config = make_config({"z_dim": 9}, file=file)
    assert (config.betas, config.learning_rate, config.z_dim) == ((0.9, 0.999), 0.5, 9)


def test_steps_and_epochs_replace_each_other():
    assert layered({"epochs": 3}, {"steps": 2}) == {"steps": 2}
    assert make_config({"steps": 2}, preset="notebook").epochs is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat = 1", "a.toml has no option 'learning_rat'; did you mean 'learning_rate'?"),
        ("loss = ", "a.toml is no TOML file: "),
        ('preset = "notebok"', "preset must be one of .*; did you mean 'notebook'?"),
    ],
    ids=["key", "syntax", "preset"],
)
def test_wrong_files_are_refused(tmp_path, text, message):
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        make_config({}, file=tmp_path / "a.toml")


def test_only_what_changes_no_result_so_far_may_change_later():
    config = TrainingConfig()
    assert replace(config, steps=9, picture_every=3, data="moved").changed_since(config) is None
    assert replace(config, seed=1).changed_since(config) == "seed"
    for option in ({"loss": "bce"}, {"batch_size": 3}, {"autocast": "bfloat16"}, {"threads": 7}):
        assert replace(config, **option).changed_since(config) == next(iter(option))
