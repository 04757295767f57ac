"""Sets of options with a name."""

from collections.abc import Mapping
from typing import Any


def _adam(learning_rate: float, beta1: float, beta2: float, steps: int) -> dict[str, Any]:
    return {
        "learning_rate": learning_rate,
        "betas": (beta1, beta2),
        "discriminator_steps": steps,
        "schedule": "constant",
    }


ROBUSTNESS: Mapping[str, Mapping[str, Any]] = {
    "A": _adam(1e-4, 0.5, 0.9, 5),
    "B": _adam(1e-4, 0.5, 0.999, 1),
    "C": _adam(2e-4, 0.5, 0.999, 1),
    "D": _adam(1e-3, 0.5, 0.9, 5),
    "E": _adam(1e-3, 0.5, 0.999, 5),
    "F": _adam(1e-3, 0.9, 0.999, 5),
}
"""The settings of Adam that the paper compares (Miyato et al., arXiv 1802.05957, Table 1)."""

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "demo": {},
    "notebook": {
        "model": "sn-dcgan",
        "z_dim": 64,
        "generator_channels": 64,
        "discriminator_channels": 16,
        "loss": "bce",
        "epochs": 50,
        "batch_size": 128,
        "learning_rate": 2e-4,
        "betas": (0.5, 0.999),
        "schedule": "constant",
        "ema_decay": 0.0,
        "picture_every": 500,
    },
    **ROBUSTNESS,
}
"""`demo` is the defaults; `notebook` is the "Spectrally Normalized GANs" course notebook."""
