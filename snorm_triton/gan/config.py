"""What a run trains, how and for how long: one frozen value, checked when it is made."""

import math
from dataclasses import dataclass, field, fields
from typing import Any, Self, get_type_hints

from .choices import check_choice, nearest
from .losses import LOSSES
from .normalizations import NORMALIZATIONS

MODELS = ("sn-resnet", "sn-dcgan")
SCHEDULES = ("linear", "constant")
AUTOCASTS = ("none", "bfloat16", "float16")
DEFAULT_STEPS = 2500


def _option(default: Any, help: str, *, choices: Any = None, later: bool = False) -> Any:
    """A field; `later` are those that may change when a run is resumed."""
    return field(default=default, metadata={"help": help, "choices": choices, "later": later})


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The options of a run; the defaults are those of the demo.

    They are the paper's CIFAR-10 discriminator, 32 instead of 128 wide, with a learning rate that
    falls to zero: the paper's, 2e-4, is for 50,000 generator steps; in a few thousand a larger one
    gets further. None is decided when the data is known.

    Raises:
        TypeError: an option is of another type.
        ValueError: an option is out of range or no known name, or two do not go together.
    """

    data: str = _option("digits", "digits, a folder, or torchvision:NAME", later=True)
    image_size: int | None = _option(None, "resize the images to this height and width")
    model: str = _option("sn-resnet", "both networks", choices=MODELS)
    conditional: bool | None = _option(None, "give both networks the labels, where they take them")
    z_dim: int = _option(32, "length of the noise")
    generator_channels: int = _option(32, "width of the generator")
    discriminator_channels: int = _option(32, "width of the discriminator")
    normalization: str = _option("ours", "of the discriminator", choices=NORMALIZATIONS)
    loss: str = _option("hinge", "what the networks minimize", choices=LOSSES)
    gradient_penalty: float = _option(10.0, "weight of the penalty of wgan-gp")
    steps: int | None = _option(None, f"generator steps ({DEFAULT_STEPS} by default)", later=True)
    epochs: float | None = _option(None, "passes over the data, instead of steps", later=True)
    batch_size: int = _option(64, "images of a step, over all ranks")
    learning_rate: float = _option(1e-3, "of Adam")
    betas: tuple[float, float] = _option((0.0, 0.9), "of Adam")
    schedule: str = _option("linear", "of the learning rate, to zero or not", choices=SCHEDULES)
    discriminator_steps: int = _option(1, "discriminator steps for each of the generator")
    ema_decay: float = _option(0.995, "of the generator's moving average; 0 takes the last weights")
    autocast: str = _option("none", "dtype of mixed precision", choices=AUTOCASTS)
    compile: bool = _option(False, "compile both networks")
    seed: int = _option(0, "of every random draw")
    device: str | None = _option(None, "as torch names it; by default a GPU if there is one")
    threads: int | None = _option(None, "CPU threads; torch's own choice by default")
    evaluate: bool | None = _option(
        None, "judge samples by a small classifier of the data, as is done for the digits"
    )
    record_every: int | None = _option(None, "steps between rows of metrics.csv", later=True)
    picture_every: int = _option(500, "steps between pictures", later=True)
    checkpoint_every: int = _option(500, "steps between checkpoints", later=True)
    tensorboard: bool = _option(False, "write event files for TensorBoard, too", later=True)

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            object.__setattr__(self, each.name, _typed(each.name, value))
            if each.metadata["choices"] is not None:
                check_choice(each.name, value, each.metadata["choices"])
        for name in POSITIVE:
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be positive, got {value}")
        for name in ("gradient_penalty", "seed"):
            if not 0 <= getattr(self, name) < 2**63:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name, values in (("betas", self.betas), ("ema_decay", (self.ema_decay,))):
            if not all(0 <= value < 1 for value in values):
                raise ValueError(
                    f"{name} must be at least 0 and below 1, got {getattr(self, name)}"
                )
        self._check_pairs()

    def _check_pairs(self) -> None:
        if self.steps is not None and self.epochs is not None:
            raise ValueError(f"steps={self.steps} and epochs={self.epochs}: give one of them")
        if self.compile and LOSSES[self.loss].penalized:
            raise ValueError(f"compile: torch does not compile the double backward of {self.loss}")
        if self.compile and self.normalization == "hook":
            raise ValueError("compile: torch's hook changes the module at each forward")
        if self.conditional and self.model == "sn-dcgan":
            raise ValueError("conditional: sn-dcgan takes no labels, sn-resnet does")

    @classmethod
    def check_keys(cls, keys: Any, where: str) -> None:
        """Raise ValueError for the first of `keys` that is no option."""
        known = [each.name for each in fields(cls)]
        for key in keys:
            if key not in known:
                raise ValueError(f"{where} has no option {key!r}{nearest(key, known)}")

    def changed_since(self, earlier: Self) -> str | None:
        """The first option that a resumed run has to keep and does not."""
        for each in fields(self):
            kept = getattr(self, each.name) == getattr(earlier, each.name)
            if not kept and not each.metadata["later"]:
                return each.name
        return None


POSITIVE = (
    *("image_size", "z_dim", "generator_channels", "discriminator_channels", "steps", "epochs"),
    *("batch_size", "learning_rate", "discriminator_steps", "threads"),
    *("record_every", "picture_every", "checkpoint_every"),
)


def _typed(name: str, value: Any) -> Any:
    """`value` as the field `name` has it: an int may stand for a float, a list for a tuple."""
    kind = get_type_hints(TrainingConfig)[name]
    if value is None and type(None) in getattr(kind, "__args__", ()):
        return None
    base = _base(kind)
    if base is tuple and isinstance(value, list | tuple) and len(value) == 2:
        return tuple(_number(name, part) for part in value)
    if base is float:
        return _number(name, value)
    if base is tuple or type(value) is not base:
        wanted = "two numbers" if base is tuple else base.__name__
        raise TypeError(f"{name} must be {wanted}, got {value!r}")
    return value


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {value!r}")
    return float(value)


def _base(kind: Any) -> Any:
    """int of `int | None`, tuple of `tuple[float, float]`."""
    origin = getattr(kind, "__origin__", None)
    if origin is tuple:
        return tuple
    options = [option for option in getattr(kind, "__args__", ()) if option is not type(None)]
    return options[0] if options else kind
