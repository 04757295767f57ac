"""The warning of a change in place that was lost: which tensor, and at which line of the user's."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from types import FrameType

import torch
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

_CALL = nn.Module.__call__.__code__


def calls(frame: FrameType | None) -> list[nn.Module]:
    """The modules that are being called, from the innermost."""
    found = []
    while frame is not None:
        if frame.f_code is _CALL:
            found.append(frame.f_locals[_CALL.co_varnames[0]])
        frame = frame.f_back
    return found


def is_in_forward(parametrizations: ParametrizationList) -> bool:
    own = [parametrizations, *parametrizations]
    return any(all(module is not each for each in own) for module in calls(sys._getframe(1)))


def warn(parametrizations: ParametrizationList, name: str) -> None:
    """Say that a change of what was handed out was lost, and how it is made: at the user's line."""
    frame: FrameType | None = sys._getframe(1)
    level = 2
    while frame is not None and _is_inside(frame):
        frame, level = frame.f_back, level + 1
    is_one = parametrizations.is_tensor
    other = f", or change module.parametrizations.{name}.original under torch.no_grad()"
    warnings.warn(
        f"{_path_of(parametrizations, name)} was changed in place where it was handed out, "
        "normalized: the parameter is what it was. To change that, assign "
        f"module.{name} = tensor{other if is_one else ''}",
        UserWarning,
        stacklevel=level,
    )


_INSIDE = (str(Path(torch.__file__).parent), str(Path(__file__).parent.parent))


def _is_inside(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(_INSIDE)


def _path_of(parametrizations: ParametrizationList, name: str) -> str:
    """The tensor's name in the outermost module that is being called, or as good as is known."""
    for model in reversed(calls(sys._getframe(1))):
        for path, module in model.named_modules():
            if module is parametrizations:
                return repr(path.replace("parametrizations.", ""))
    *_, original = parametrizations._parameters or parametrizations._buffers
    return f"{name!r} of shape {tuple(getattr(parametrizations, original).shape)}"
