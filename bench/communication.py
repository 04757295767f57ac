"""What the normalization of a sharded weight sends: `make communication` writes it to the docs.

One process plays one rank of many, on torch's process group that sends nothing: what it would send
does not depend on the values.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    parallelize_module,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from snorm_triton import spectral_norm

SIZES = (256, 1024, 4096)
RANKS = (2, 64)
STYLES: tuple[type[ParallelStyle], ...] = (ColwiseParallel, RowwiseParallel)
BEGIN, END = "<!-- make communication -->", "<!-- end -->"


class Communication(TorchDispatchMode):
    """The collectives called under it: for each its operator's name and its tensors' bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, int]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace in ("c10d", "_c10d_functional"):
            tensors = [x for x in tree_leaves(args) if isinstance(x, Tensor)]
            self.calls.append(
                (func.__name__.partition(".")[0].rstrip("_"), sum(x.nbytes for x in tensors))
            )
        return func(*args, **(kwargs or {}))

    @property
    def nbytes(self) -> int:
        """Of all calls."""
        return sum(nbytes for _, nbytes in self.calls)


@contextmanager
def one_rank_of(ranks: int) -> Iterator[None]:
    """A process group of so many ranks, of which this process is the first and the only one."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    try:
        yield
    finally:
        dist.destroy_process_group()


def measure(style: type[ParallelStyle], size: int, ranks: int) -> tuple[Communication, ...]:
    """What the forward and the backward of one access send, for a square float32 weight."""
    with one_rank_of(ranks):
        layer = parallelize_module(
            nn.Linear(size, size, bias=False), init_device_mesh("cpu", (ranks,)), style()
        )
        spectral_norm(layer)
        with Communication() as forward:
            weight = layer.weight
        shard = weight.to_local()
        with Communication() as backward:
            shard.backward(torch.ones_like(shard))
    return forward, backward


def table() -> str:
    """The table in Markdown."""
    lines = [
        "| weight, float32 | its bytes | sharded by | ranks | forward | backward | in all |",
        "| --- | ---: | --- | --- | ---: | ---: | ---: |",
    ]
    for size in SIZES:
        nbytes = 4 * size * size
        for style in STYLES:
            # Ranks that send alike share a line.
            alike: dict[tuple[str, str, float], list[int]] = {}
            for ranks in RANKS:
                forward, backward = measure(style, size, ranks)
                share = (forward.nbytes + backward.nbytes) / nbytes
                alike.setdefault((described(forward), described(backward), share), []).append(ranks)
            for (sent, sent_back, share), ranks_alike in alike.items():
                lines.append(
                    f"| {size} x {size} | {nbytes:,} | {style.__name__} | "
                    f"{', '.join(map(str, ranks_alike))} | {sent} | {sent_back} | {share:.2%} |"
                )
    return "\n".join(lines)


def described(communication: Communication) -> str:
    """Each kind of call, how often, and the bytes in all."""
    counts = Counter(name for name, _ in communication.calls)
    calls = ", ".join(f"{count} x {name}" for name, count in sorted(counts.items()))
    return f"{calls}: {communication.nbytes:,}"


def written(page: str) -> str:
    """The page with the table between its two marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(written(path.read_text()))
