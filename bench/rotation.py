"""Variants timed in turns, so that drift of the machine hits all alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from random import Random
from statistics import median, quantiles
from time import perf_counter
from typing import Any

Run = Callable[[], object]
WARM_UP_ROUNDS = 3


class Rotation:
    """Called once a round: times a block of accesses of every variant, in a new order each time."""

    def __init__(
        self,
        runs: Mapping[str, Run],
        synchronize: Callable[[], None],
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self.runs = dict(runs)
        self.clock = clock
        self.synchronize = synchronize
        self.order = Random(0)
        self.accesses = 1
        self.seconds: dict[str, list[float]] = {}
        self.forget()

    def forget(self) -> None:
        self.seconds = {name: [] for name in self.runs}

    def __call__(self) -> None:
        for name in self.order.sample(list(self.runs), len(self.runs)):
            self.seconds[name].append(self.block(self.runs[name]))

    def block(self, run: Run) -> float:
        self.synchronize()
        start = self.clock()
        for _ in range(self.accesses):
            run()
        self.synchronize()
        return (self.clock() - start) / self.accesses

    def calibrate(self, budget: float) -> int:
        """Warm up, size the block to about a millisecond; the rounds that fit `budget` seconds."""
        for _ in range(WARM_UP_ROUNDS):
            self()
        fastest = min(min(seconds) for seconds in self.seconds.values())
        self.accesses = max(1, min(50, math.ceil(1e-3 / fastest)))
        self.forget()
        self()
        round_seconds = sum(seconds[0] for seconds in self.seconds.values()) * self.accesses
        self.forget()
        return max(11, min(201, int(budget / round_seconds)))

    def statistics(self, baseline: str) -> dict[str, dict[str, Any]]:
        """Per variant: seconds an access, and the ratio to `baseline`, with quartiles."""
        reference = self.seconds[baseline]
        summary = {}
        for name, seconds in self.seconds.items():
            by_round = [mine / other for mine, other in zip(seconds, reference, strict=True)]
            quarter, _, three_quarters = quantiles(seconds, n=4)
            ratio_quarter, _, ratio_three_quarters = quantiles(by_round, n=4)
            summary[name] = {
                "median": median(seconds),
                "quartiles": [quarter, three_quarters],
                "ratio": median(seconds) / median(reference),
                "ratio_quartiles": [ratio_quarter, ratio_three_quarters],
            }
        return summary
