"""What a profiler is to see: accesses of two weights, one by each kernel of the power step."""

from __future__ import annotations

import torch

from bench.cases import LAYERS
from snorm_triton import spectral_norm

# Whole rows on chip, and rows in chunks.
PROFILED = ("Linear 4096-4096", "ConvTranspose2d 1024-512 k4")
ACCESSES = 2


def main() -> None:
    device = torch.device("cuda")
    modules = [case.module(device, torch.float32) for case in LAYERS if case.name in PROFILED]
    layers = [spectral_norm(module, backend="triton") for module in modules]
    torch.cuda.synchronize()
    torch.cuda.profiler.start()  # what compiles and registers comes before
    for layer in layers:
        for _ in range(ACCESSES):
            _ = layer.weight
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()


if __name__ == "__main__":
    main()
