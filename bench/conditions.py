"""Under which conditions something is measured: device, versions, commit, kernels.

python -m bench.conditions                 a line of JSON; refuses where there is no GPU
python -m bench.conditions --device cpu    that of the CPU
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

import snorm_triton
from bench.device import device_name, find_gpu

try:
    from triton import __version__ as triton_version
except ImportError:
    triton_version = "none"

ROOT = Path(__file__).parents[1]


def conditions(device: torch.device) -> dict[str, Any]:
    return {
        "device": device_name(device),
        "processors": os.cpu_count(),
        "torch": torch.__version__,
        "triton": triton_version,
        "python": platform.python_version(),
        "snorm_triton": snorm_triton.__version__,
        "SNORM_TRITON_BACKEND": os.environ.get("SNORM_TRITON_BACKEND", ""),
        "kernels": kernels_digest(),
    }


@lru_cache
def kernels_digest() -> str:
    """Of the sources of the kernels: what was counted or measured of them holds for no others."""
    folder = Path(snorm_triton.__file__).parent / "kernels"
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.py")):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


@lru_cache
def tree() -> dict[str, Any]:
    """The commit checked out; in a copy without git's folder the one that COMMIT names."""
    commit = git("rev-parse", "HEAD") or os.environ.get("COMMIT")
    changes = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit or "unknown", "uncommitted_changes": bool(changes)}


def git(*arguments: str) -> str:
    try:
        run = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return ""
    return run.stdout.strip() if run.returncode == 0 else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", help="default: the GPU, without which it refuses")
    asked = parser.parse_args().device
    device = torch.device(asked) if asked else find_gpu()
    if device is None:
        sys.exit(
            "make gpu needs a CUDA, ROCm or XPU device, and torch reports none here; "
            "GPU_ARGS='--device cpu' rehearses it on the CPU."
        )
    print(json.dumps({**conditions(device), **tree()}))


if __name__ == "__main__":
    main()
