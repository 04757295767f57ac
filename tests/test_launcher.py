"""Launches past Triton's bookkeeping: by the same compiled kernel, with the same arguments."""

import random
import weakref
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.driver import driver
from triton.runtime.jit import create_function_from_signature

from snorm_triton.kernels import launch, launcher
from snorm_triton.kernels.launcher import Launcher
from snorm_triton.kernels.rescale import divide_and_copy_state
from snorm_triton.kernels.small import normalize_small

TARGET = GPUTarget("cuda", 90, 32)
POINTERS = ("weight", "u", "v", "sigma", "out", "new_u", "new_v", "new_sigma")


def arguments_of_division(
    offset=0, dtype=torch.float32, block=1024, numel=4096, bound=0.0, learns=False, **others
):
    memory = torch.zeros(len(POINTERS), 64, dtype=dtype)
    pointers = {f"{name}_ptr": memory[i, offset:] for i, name in enumerate(POINTERS)}
    sizes = {"numel": numel, "M": 64, "N": 63, "FACTOR": 8, "BLOCK": block, "VECTOR_BLOCK": 256}
    scale = {"scale_ptr": memory[0, :1] if learns else None, "BOUND": bound, "SCALE": 1.0}
    return {**pointers, **sizes, **scale, **launch.ROUNDING, **others}


def triton_key(kernel):
    """What Triton looks a compiled kernel up by, of arguments."""
    binder = create_function_from_signature(kernel.signature, kernel.params, make_backend(TARGET))

    def key(arguments):
        _, specialization, options = binder(**arguments)
        return tuple(specialization), str(options)

    return key


def drawn_arguments(kernel, draw):
    arguments = {}
    for parameter in kernel.params:
        if parameter.is_constexpr:
            arguments[parameter.name] = draw.choice([16, 32])
        elif parameter.name.endswith("_ptr"):
            dtype = draw.choice([torch.float32, torch.bfloat16])
            pointer = torch.zeros(64, dtype=dtype)[draw.choice([0, 0, 1, 8]) :]
            absent = parameter.name == "scale_ptr" and draw.choice([True, False])
            arguments[parameter.name] = None if absent else pointer
        elif parameter.name == "eps":
            arguments[parameter.name] = draw.choice([0.0, 1e-12])
        else:
            arguments[parameter.name] = draw.choice([1, 7, 16, 0, -16, 2**31 - 1, 2**31, 2**40 + 1])
    return {**arguments, "num_warps": draw.choice([4, 8])}


@pytest.mark.parametrize(
    "kernel", [divide_and_copy_state, normalize_small], ids=lambda k: k.__name__
)
def test_two_launches_share_a_key_where_they_share_tritons(kernel):
    draw, find, known = random.Random(0), triton_key(kernel), Launcher(kernel)
    start = drawn_arguments(kernel, draw)
    alike = different = 0
    for _ in range(2000):
        other = drawn_arguments(kernel, draw)
        changed = draw.sample(list(start), draw.choice([1, 1, 2]))
        other = {name: other[name] if name in changed else start[name] for name in start}
        share = find(start) == find(other)
        assert (known.specialize(start)[0] == known.specialize(other)[0]) == share, changed
        alike, different = alike + share, different + (not share)
        start = other
    assert min(alike, different) > 200


class Recorded:
    """A driver of no GPU: kernels are compiled for one, and their launches recorded."""

    def __init__(self):
        self.launches, self.loaded = [], 0
        properties = {"max_shared_mem": 2**18}
        self.utils = SimpleNamespace(
            load_binary=self.load,
            unload_module=lambda module: None,  # as Triton 3.8 does in the end
            get_device_properties=lambda device: properties,
        )
        self.device, self.stream = 0, 7

    def load(self, name, binary, shared, device):
        self.loaded += 1
        return "module", f"{name} {self.loaded} on {device}", 32, 0, 1024

    def launcher_cls(self, source, metadata):
        def run(*launched):
            *grid, stream, function, _, told, enter, leave = launched[:9]
            if enter is not None:
                enter(told)
            if leave is not None:
                leave(told)
            values = [x.data_ptr() if isinstance(x, torch.Tensor) else x for x in launched[9:]]
            self.launches.append((grid, stream, function, values))

        return run

    def get_current_device(self):
        return self.device

    def get_current_stream(self, device):
        return self.stream

    def get_current_target(self):
        return TARGET


@pytest.fixture
def gpu(monkeypatch):
    recorded = Recorded()
    monkeypatch.setattr(driver, "_active", recorded)
    monkeypatch.setattr(launcher, "_on_cuda", lambda arguments: True)
    monkeypatch.setattr(launch, "_launchers", {})
    divide_and_copy_state.device_caches.clear()
    yield recorded
    divide_and_copy_state.device_caches.clear()


@pytest.fixture
def seen_by_triton():
    """The launches that Triton itself makes."""
    run, seen = type(divide_and_copy_state).run, []

    def counted(kernel, *args, **kwargs):
        seen.append(kernel)
        return run(kernel, *args, **kwargs)

    with mock.patch.object(type(divide_and_copy_state), "run", counted):
        yield seen


CHANGES = {
    "alignment": {"offset": 1},
    "dtype": {"dtype": torch.float64},
    "a size of one": {"numel": 1},
    "a constant": {"block": 2048},
    "a bound": {"bound": 0.5},
    "a learned scale": {"learns": True},
    "warps": {"num_warps": 8},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_launch_is_tritons_own_also_after_a_change(gpu, seen_by_triton, change):
    for changes in ({}, change, {}, change):
        arguments = arguments_of_division(**changes)
        launch.run(divide_and_copy_state, 5, **arguments)
        divide_and_copy_state[(5,)](**arguments)
        ours, tritons = gpu.launches[-2:]
        assert ours == tritons
    assert len(seen_by_triton) == 2 + 4  # both kernels once, and the four to compare with
    assert gpu.loaded == 2


def test_another_device_and_stream_get_their_own(gpu):
    arguments = arguments_of_division()
    for device, stream in ((0, 7), (1, 9), (0, 8), (1, 9)):
        gpu.device, gpu.stream = device, stream
        launch.run(divide_and_copy_state, 5, **arguments)
        divide_and_copy_state[(5,)](**arguments)
        assert gpu.launches[-1] == gpu.launches[-2]


def test_hooks_are_told_of_launches(gpu):
    arguments = arguments_of_division()
    launch.run(divide_and_copy_state, 5, **arguments)
    told = []
    hooks = triton.knobs.runtime.launch_enter_hook

    def hook(metadata):
        told.append(metadata.get()["name"])

    hooks.add(hook)
    try:
        launch.run(divide_and_copy_state, 5, **arguments)
    finally:
        hooks.remove(hook)
    launch.run(divide_and_copy_state, 5, **arguments)
    assert told == ["divide_and_copy_state"]


def watched_by_pre_run(monkeypatch):
    monkeypatch.setattr(divide_and_copy_state, "pre_run_hooks", [lambda **arguments: None])


def watched_by_debugger(monkeypatch):
    monkeypatch.setattr(triton.knobs.runtime, "debug", True)


def of_unknown_triton(monkeypatch):
    monkeypatch.setattr(launcher, "_is_known", False)


@pytest.mark.parametrize("watch", [watched_by_pre_run, watched_by_debugger, of_unknown_triton])
def test_whatever_watches_launches_gets_those_of_triton(gpu, seen_by_triton, monkeypatch, watch):
    watch(monkeypatch)
    for _ in range(3):
        launch.run(divide_and_copy_state, 5, **arguments_of_division())
    assert len(seen_by_triton) == 3


def test_tensors_on_no_gpu_are_left_to_triton():
    kernel = mock.MagicMock(spec=divide_and_copy_state)
    Launcher(kernel)(5, {"x": torch.zeros(1), "y": 3})
    kernel.__getitem__.assert_called_once_with((5,))
    kernel.__getitem__.return_value.assert_called_once_with(x=mock.ANY, y=3)


OUTPUTS = "out_ptr", "new_u_ptr", "new_v_ptr", "new_sigma_ptr"


def repeated(**changes):
    """A launch that is made again, and what makes its outputs: fresh, or off by some elements."""
    constant = {k: v for k, v in arguments_of_division(**changes).items() if k not in OUTPUTS}

    def memory(offset=0):
        arguments = arguments_of_division(offset, **changes)
        return {name: arguments[name] for name in OUTPUTS}

    return launch.Launch(divide_and_copy_state, 5, OUTPUTS, **constant), constant, memory


def assert_as_tritons(gpu, made, constant, memory):
    made(memory)
    divide_and_copy_state[(5,)](**constant, **memory)
    ours, tritons = gpu.launches[-2:]
    assert ours == tritons


def test_a_launch_made_again_takes_other_memory(gpu, monkeypatch):
    made, constant, memory = repeated(bound=0.5)
    for _ in range(2):
        assert_as_tritons(gpu, made, constant, memory())
    monkeypatch.setattr(Launcher, "specialize", None)  # nothing is looked at any more
    for _ in range(3):
        assert_as_tritons(gpu, made, constant, memory())
    gpu.stream = 9
    assert_as_tritons(gpu, made, constant, memory())


def test_a_launch_made_again_elsewhere_is_looked_at_anew(gpu):
    made, constant, memory = repeated()
    for offset in (0, 0, 1, 0, 1, 4, 0):
        assert_as_tritons(gpu, made, constant, memory(offset))
    gpu.device = 1
    assert_as_tritons(gpu, made, constant, memory())
    gpu.device = 0
    assert_as_tritons(gpu, made, constant, memory())


def test_a_launch_made_again_holds_what_it_takes(gpu):
    made, constant, memory = repeated()
    held = weakref.ref(constant["weight_ptr"])
    del constant
    for _ in range(3):
        made(memory())
    assert held() is not None


@pytest.mark.parametrize("watch", [watched_by_pre_run, watched_by_debugger])
def test_whatever_watches_gets_launches_made_again(gpu, seen_by_triton, monkeypatch, watch):
    made, _, memory = repeated()
    for _ in range(3):
        made(memory())
    known = len(seen_by_triton)
    watch(monkeypatch)
    for _ in range(3):
        made(memory())
    assert len(seen_by_triton) - known == 3
