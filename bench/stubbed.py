"""Kernel launches that do nothing, on a CPU: what is left is the host's time of an access."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from snorm_triton.kernels import launch
from snorm_triton.modules import ways
from snorm_triton.ops import dispatch
from snorm_triton.parametrizations import prepared, prepared_round, updates


@contextmanager
def stubbed_launches() -> Iterator[Counter[str]]:
    """Weights on the CPU take the kernels, none of which runs: the launches of each, counted.

    Results are memory as it was found, which no code on the host looks at. A fingerprint of the
    weight is not taken, as on a GPU. What a GPU adds is not in it: streams and devices that are
    asked for, memory that is pinned, and the launches themselves.
    """
    counted: Counter[str] = Counter()

    def count(kernel: Any, programs: int, /, **arguments: Any) -> None:
        counted[kernel.fn.__name__] += 1

    def count_again(made: launch.Launch, memory: object) -> None:
        counted[made.kernel.fn.__name__] += 1

    with ExitStack() as patches:
        patches.callback(_forget_choices)
        for module, name, stand_in in (
            (launch, "run", count),
            (launch.Launch, "__call__", count_again),
            (dispatch, "_interpreted", lambda: True),
            (dispatch, "DEFAULT_BACKEND", "triton"),
            (prepared, "fingerprint", _of_no_gpu),
            (prepared_round, "fingerprint", _of_no_gpu),
            (ways, "fingerprint", _of_no_gpu),
            (updates, "fingerprint", _of_no_gpu),
        ):
            patches.enter_context(mock.patch.object(module, name, stand_in))
        _forget_choices()
        yield counted


def _of_no_gpu(tensor: object) -> None:
    """No memory of a GPU is looked at."""


def _forget_choices() -> None:
    dispatch._select.cache_clear()
    dispatch._backend_for.cache_clear()
