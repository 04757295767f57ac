"""The operations of a backend against the reference, in a process of its own.

Triton reads TRITON_INTERPRET when a kernel is defined, and a kernel that touches memory which is
not its own ends the process, or all that it does on the device from then on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import torch

from .operations import DTYPES, OPERATIONS, tolerance

BACKENDS = {
    "triton": "snorm_triton.kernels.backend",
    "torch on a CPU": "snorm_triton.ops.torch_cpu",
    "torch": "snorm_triton.ops.torch_any_device",
}


class Outcome(NamedTuple):
    """An operation, its error in each dtype, and the sentence of what was raised instead, if any.

    Without an operation of a process that ended in another way.
    """

    operation: str
    errors: dict[str, float]
    failure: str = ""

    @property
    def is_right(self) -> bool:
        """Whether every error is one of rounding; a NaN is none."""
        within = [e <= tolerance(getattr(torch, dtype)) for dtype, e in self.errors.items()]
        return not self.failure and all(within)


def dtypes(interpreted: bool) -> tuple[torch.dtype, ...]:
    """Those that are checked: two where Triton interprets, which takes its time."""
    return DTYPES[:2] if interpreted else DTYPES


def outcomes(backend: str, device: torch.device, interpreted: bool = False) -> Iterator[Outcome]:
    """What comes of each operation of a backend of ``BACKENDS`` on ``device``, as it comes."""
    environment = os.environ | {"PYTHONPATH": _import_path()}
    environment.pop("TRITON_INTERPRET", None)
    if interpreted:
        environment["TRITON_INTERPRET"] = "1"
    command = [sys.executable, "-W", "ignore", "-m", __name__, backend, str(device)]
    command += [str(dtype).removeprefix("torch.") for dtype in dtypes(interpreted)]
    with subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            for line in process.stdout:
                yield Outcome(**json.loads(line))
            said = process.stderr.read().strip().splitlines()
        finally:
            process.kill()  # of a caller that has stopped listening
    if process.returncode:
        last = f": {said[-1]}" if said else ""
        yield Outcome("", {}, f"the process ended with status {process.returncode}{last}")


def _import_path() -> str:
    """A search path on which the new process finds the package that this one runs."""
    root = str(Path(__file__).resolve().parents[2])
    return os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])


def main(backend: str, device: str, *names: str) -> None:
    """Print an outcome a line, as JSON."""
    module = import_module(BACKENDS[backend])
    for operation in OPERATIONS:
        errors, failure = {}, ""
        try:
            for dtype in names:
                place = torch.device(device)
                errors[dtype] = operation.error(module, place, getattr(torch, dtype))
        except Exception as error:  # whatever a compiler or a driver raises
            sentence = " ".join(str(error).split())[:300]
            failure = f"{type(error).__name__}: {sentence}"
        print(json.dumps(Outcome(operation.name, errors, failure)._asdict()), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
