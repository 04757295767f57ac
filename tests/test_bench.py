"""The benchmarks: each variant does what it is compared for, and memory is counted right."""

from functools import partial

import pytest
import torch
from torch import nn

from bench import bench_access, bench_training
from bench.cases import Case
from bench.measure import build
from bench.memory import memory_of
from bench.model_overhead import BACKWARD, EVALUATION, FORWARD, REPLAY, runs_of
from bench.normalizations import (
    FOREACH,
    LEGACY,
    NEW,
    NORMALIZATIONS,
    OURS,
    PER_LAYER,
    SPECTRAL_NORM,
    WEIGHT_NORM,
    layers_of,
    raw_weights,
)
from bench.rotation import Rotation
from bench.stubbed import stubbed_launches
from bench.training import NONE, TrainingCase, training_builders, training_step
from bench.variants import (
    ALL,
    COMPILED,
    COMPILES,
    COPY,
    EAGER,
    GRAPHED,
    NEW_COMPILED,
    Setting,
    access,
    builders,
    copy,
)
from snorm_triton.gan import TrainingConfig

CPU = torch.device("cpu")
TINY_GAN = TrainingConfig(batch_size=4, generator_channels=4, discriminator_channels=4, z_dim=4)


def small(build, backward=False):
    return Setting(Case("small", build), CPU, torch.float32, backward)


@pytest.mark.parametrize("name", [OURS, NEW, LEGACY])
def test_each_access_iterates_and_normalizes(name):
    read = access(small(partial(nn.Conv2d, 3, 4, 3)), name)
    for _ in range(100):
        (weight,) = read()
    assert torch.linalg.matrix_norm(weight.flatten(1), 2).item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("name", [OURS, NEW, LEGACY])
def test_backward_returns_a_gradient_for_every_layer(name):
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.ConvTranspose2d(4, 2, 3))
    gradients = access(small(lambda: model, backward=True), name)()
    assert [gradient.shape for gradient in gradients] == [(4, 3), (4, 2, 3, 3)]


def test_copy_copies_every_weight():
    setting = small(lambda: nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)))
    run = copy(setting)
    buffers, weights = run.args
    run()
    assert all(map(torch.equal, buffers, weights))


def failing_with(error):
    def fail(*args):
        raise error

    return fail


def all_builders():
    """Every variant of every suite, those of GPUs included."""
    settings = [
        Setting(Case("small", partial(nn.Linear, 3, 4), compiled=True), device, torch.float32, True)
        for device in (CPU, torch.device("cuda"))
    ]
    chosen = training_builders(TrainingCase("small", 8, TrainingConfig()), CPU)
    for setting in settings:
        for ours in ((OURS,), (FOREACH, PER_LAYER)):
            chosen |= builders(setting, ours, ALL)
    return chosen


@pytest.mark.parametrize("stage", ["build", "run"])
@pytest.mark.parametrize("name", all_builders())
def test_only_a_variant_of_torch_may_fail_and_is_reported(name, stage):
    fail = failing_with(RuntimeError("no"))
    chosen = {COPY: lambda: list, name: fail if stage == "build" else lambda: fail}
    if name.startswith("torch"):
        runs, errors = build(chosen, CPU)
        assert list(runs) == [COPY]
        assert errors == {name: "RuntimeError: no"}
    else:
        with pytest.raises(RuntimeError, match="no"):
            build(chosen, CPU)


def test_a_compiler_may_raise_anything_and_the_others_what_torch_raises():
    fail = failing_with(KeyError("weight"))
    runs, errors = build({NEW_COMPILED: fail}, CPU)
    assert not runs
    assert errors == {NEW_COMPILED: "KeyError: 'weight'"}
    for name in (NEW, LEGACY, GRAPHED.format(NEW)):
        with pytest.raises(KeyError):
            build({name: fail}, CPU)


@pytest.mark.parametrize(
    ("name", "ours"),
    [("bench_layer", OURS), ("bench_model", FOREACH), ("bench_model", PER_LAYER)],
)
def test_a_benchmark_of_accesses_fails_with_ours(monkeypatch, name, ours):
    monkeypatch.setitem(NORMALIZATIONS, ours, failing_with(RuntimeError("no")))
    case = Case("small", partial(nn.Linear, 3, 4))
    with pytest.raises(RuntimeError, match="no"):
        getattr(bench_access, name)(None, case, torch.float32, False, CPU, 0.1, EAGER, False)


@pytest.mark.parametrize("ours", [FOREACH, PER_LAYER])
def test_a_benchmark_of_training_fails_with_ours(monkeypatch, ours):
    monkeypatch.setitem(NORMALIZATIONS, ours, failing_with(RuntimeError("no")))
    case = TrainingCase("small", 8, TINY_GAN)
    with pytest.raises(RuntimeError, match="no"):
        bench_training.bench_training_step(None, case, CPU, 0.1)


def test_compiled_only_where_the_case_and_the_caller_say_so():
    case = Case("small", partial(nn.Linear, 3, 4), compiled=True)
    setting = Setting(case, CPU, torch.float32, False)
    every, without = (set(builders(setting, (OURS,), ALL, compiles)) for compiles in (True, False))
    assert every - without == {NEW_COMPILED}
    assert NEW_COMPILED not in builders(small(case.build), (OURS,), ALL)


def test_eager_rows_hold_nothing_that_is_compiled_or_captured():
    case = Case("small", partial(nn.Linear, 3, 4), compiled=True)
    chosen = {
        variants: list(builders(Setting(case, torch.device("cuda"), torch.float32, False), *rest))
        for variants in (EAGER, COMPILED, ALL)
        for rest in [((FOREACH, PER_LAYER), variants)]
    }
    graphs = [GRAPHED.format(name) for name in (FOREACH, NEW)]
    assert chosen[EAGER] == [COPY, FOREACH, PER_LAYER, NEW, LEGACY]
    assert chosen[COMPILED] == [COPY, FOREACH, NEW_COMPILED, COMPILES.format(FOREACH), *graphs]
    assert chosen[ALL] == [*chosen[EAGER], NEW_COMPILED, *graphs]


def test_what_fails_beside_a_compiler_is_reported_and_raised_later():
    error, deferred = ValueError("no"), []
    chosen = {COPY: lambda: list, COMPILES.format(OURS): failing_with(error)}
    runs, errors = build(chosen, CPU, deferred)
    assert list(runs) == [COPY]
    assert errors == {COMPILES.format(OURS): "ValueError: no"}
    assert deferred == [error]


class Benchmark:
    """As much of pytest-benchmark's fixture as a benchmark uses."""

    def __init__(self):
        self.extra_info = {}

    def pedantic(self, run, rounds):
        for _ in range(rounds):
            run()


def test_a_row_is_kept_and_fails_where_ours_does_not_compile(monkeypatch):
    monkeypatch.setattr(torch, "compile", failing_with(RuntimeError("no compiler")))
    case, benchmark = Case("small", partial(nn.Linear, 3, 4), compiled=True), Benchmark()
    with pytest.raises(ExceptionGroup, match="lacks variants of ours"):
        bench_access.bench_layer(benchmark, case, torch.float32, True, CPU, 0.01, COMPILED, True)
    row = benchmark.extra_info
    assert row["suite"] == "compiled layer"
    assert list(row["variants"]) == [COPY, OURS]
    assert list(row["errors"]) == [NEW_COMPILED, COMPILES.format(OURS)]


def test_counts_large_allocations_and_the_most_held():
    def three_of_which_two_at_once():
        first, second = torch.empty(1000), torch.empty(1000)
        del first
        return second, torch.empty(1000), torch.empty(10)

    counted = memory_of(three_of_which_two_at_once, CPU, nbytes=4000)
    assert counted["allocations"] == 3
    assert counted["allocated"] == pytest.approx(3, abs=0.05)
    assert counted["peak"] == pytest.approx(2, abs=0.05)


@pytest.mark.parametrize(("name", "allocations"), [(OURS, 2), (NEW, 7), (LEGACY, 7)])
def test_allocations_of_a_training_access(name, allocations):
    run = access(small(partial(nn.Linear, 256, 256), backward=True), name)
    assert memory_of(run, CPU, 4 * 256 * 256)["allocations"] == allocations


@pytest.mark.parametrize("name", [NONE, OURS, NEW, LEGACY])
def test_training_step_updates_every_weight_of_the_discriminator(name):
    step = training_step(TrainingCase("small", 8, TINY_GAN), CPU, name)
    discriminator = step.__self__.discriminator.network
    weights = raw_weights(discriminator) or [layer.weight for layer in layers_of(discriminator)]
    before = [weight.clone() for weight in weights]
    step()
    assert len(weights) == len(layers_of(discriminator))
    assert not any(map(torch.equal, weights, before))


def test_rotation_times_every_variant_each_round():
    runs = dict.fromkeys(("a", "b"), lambda: sum(range(100)))
    rotation = Rotation(runs, synchronize=lambda: None)
    for _ in range(5):
        rotation()
    statistics = rotation.statistics(baseline="a")
    assert [len(seconds) for seconds in rotation.seconds.values()] == [5, 5]
    assert statistics["a"]["ratio_quartiles"] == [1, 1]
    assert statistics["b"]["ratio"] == statistics["b"]["median"] / statistics["a"]["median"]


@pytest.mark.filterwarnings("ignore:.*is deprecated in favor of:FutureWarning")
def test_the_host_is_timed_in_every_pass_of_both_norms():
    with stubbed_launches():
        runs = runs_of(torch.device("cpu"))
        for run in runs.values():
            run()
    names = {NEW, LEGACY, PER_LAYER, FOREACH}
    for constraint in (SPECTRAL_NORM, WEIGHT_NORM):
        for passed in (FORWARD, BACKWARD, EVALUATION):
            assert {name for kind, of, name in runs if (kind, of) == (constraint, passed)} == names
    assert (SPECTRAL_NORM, REPLAY, FOREACH) in runs
