"""The bytes that the kernels move, as bench/traffic.py counts them: none too many, none outside.

A tensor goes by the name of the kernel's argument.
"""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")
pytest.importorskip("numpy")

import triton
import triton.language as tl
from triton.runtime.errors import InterpreterError

from bench.accesses import READ, SECTOR, WRITE, recorded_launches
from bench.traffic import Model, Weight, copy_bytes, interpreted_traffic, traffic_of

pytestmark = [
    pytest.mark.interpreted,
    # numpy computes, and warns of the NaN and infinity that IEEE arithmetic gives.
    pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning"),
]
# More rows than persistent programs, of a length that no block divides; rows too long to stay on
# chip; runs too short to fill a sector.
ROWS, LONG_ROWS, SHORT_RUNS = Weight((268, 4097)), Weight((9, 16385)), Weight((130, 67, 2), 1)
WEIGHTS = {
    "rows": ROWS,
    "long-rows": LONG_ROWS,
    "short-runs": SHORT_RUNS,
    "one-row": Weight((1, 1031)),
    "one-column": Weight((1031, 1)),
    "tall": Weight((1031, 3)),
    "linear-dim1": Weight((37, 1031), 1),
    "conv": Weight((19, 7, 3, 3)),
    "conv-channels-last": Weight((67, 130, 3, 3), 0, channels_last=True),
    "conv-dim2": Weight((19, 7, 3, 5), 2),
    "conv-dim2-channels-last": Weight((19, 7, 3, 5), 2, channels_last=True),
    "conv3d-channels-last": Weight((6, 5, 2, 3, 2), 0, channels_last=True),
    "transposed-k3": Weight((67, 35, 3, 3), 1),
    "transposed-k4": Weight((67, 35, 4, 4), 1),
    "transposed-channels-last": Weight((67, 35, 4, 4), 1, channels_last=True),
    "transposed3d-channels-last": Weight((5, 6, 2, 3, 2), 1, channels_last=True),
}


def requested(launches, tensor, direction):
    """The bytes that the launches ask for, under one name."""
    found = [x for launch in launches for x in launch.traffic if x.tensor == tensor]
    return sum(x.requested for x in found if x.direction == direction)


def only(launches, tensor, direction):
    """The traffic of a tensor that one launch touches."""
    (found,) = [
        x
        for launch in launches
        for x in launch.traffic
        if (x.tensor, x.direction) == (tensor, direction)
    ]
    return found


# Blocks depend on the dtype of u and v, which half precisions share with float32.
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", WEIGHTS)
def test_no_kernel_touches_a_byte_outside_what_it_was_given(name, dtype):
    # An access outside raises.
    operations = traffic_of(replace(WEIGHTS[name], dtype=dtype))
    assert all(launch.must for launches in operations.values() for launch in launches)


@pytest.mark.parametrize(
    ("weight", "reads"),
    [(ROWS, 1), (LONG_ROWS, 2), (SHORT_RUNS, 2)],
    ids=["rows", "long-rows", "short-runs"],
)
def test_a_power_step_reads_rows_that_fit_on_chip_once_and_others_twice(weight, reads):
    launches = traffic_of(weight)["forward"]
    size = copy_bytes(weight) // 2
    rescale = 1
    assert requested(launches, "weight_ptr", READ) == (reads + rescale) * size


def test_an_evaluation_reads_the_weight_once_and_rescales_it():
    launches = traffic_of(ROWS)["evaluation"]
    size = copy_bytes(ROWS) // 2
    assert requested(launches, "weight_ptr", READ) == 2 * size
    assert sum(launch.must for launch in launches) < 3.02 * size


@pytest.mark.parametrize("operation", ["forward", "evaluation"])
def test_rescale_reads_and_writes_each_byte_once(operation):
    weight = Weight((64, 3, 3, 3))
    launch = traffic_of(weight)[operation][-1]
    for tensor, direction in (("weight_ptr", READ), ("out_ptr", WRITE)):
        moved = only([launch], tensor, direction)
        assert moved.requested == moved.must == moved.does == copy_bytes(weight) // 2
        assert moved.again == 0


@pytest.mark.parametrize("name", ["rows", "conv-channels-last", "transposed-k4"])
def test_a_backward_reads_the_weight_once_and_the_gradient_twice(name):
    weight = WEIGHTS[name]
    launches = traffic_of(weight)["backward"]
    size = copy_bytes(weight) // 2
    assert requested(launches, "weight_ptr", READ) == size
    assert requested(launches, "grad_ptr", READ) == 2 * size
    assert requested(launches, "out_ptr", WRITE) == size


def test_a_model_moves_its_weights_as_one_by_one():
    model = Model("SN-ResNet cifar10")
    forward, backward = (traffic_of(model)[operation] for operation in ("forward", "backward"))
    size = copy_bytes(model) // 2
    assert [launch.kernel for launch in forward] == [
        "foreach_power",
        "foreach_reduce",
        "foreach_finish",
    ]
    # Shares of a quarter of the weight, or, of a layer with one output, of all of it.
    assert sum(launch.must for launch in forward) < 3.6 * size
    assert sum(launch.must for launch in backward) < 4.05 * size


def test_another_process_counts_the_same(monkeypatch):
    weight = Weight((7, 5, 3, 3), 1, channels_last=True, dtype="float16")
    expected = interpreted_traffic(weight)
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    assert traffic_of(weight) == expected


@triton.jit
def strided_sum(x_ptr, out_ptr, size, stride, REPEATS: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for _ in range(REPEATS):
        total += tl.load(x_ptr + i * stride, mask=i < size, other=0.0)
    tl.store(out_ptr + tl.program_id(0), tl.sum(total, axis=0))


@triton.jit
def add_through_a_table(table_ptr, size, BLOCK: tl.constexpr):
    x_ptr = tl.load(table_ptr).to(tl.pointer_type(tl.float32))
    out_ptr = tl.load(table_ptr + 1).to(tl.pointer_type(tl.float32))
    i = tl.arange(0, BLOCK)
    tl.atomic_add(out_ptr + i, tl.load(x_ptr + i, mask=i < size), mask=i < size)


def run_strided(x, out, size, stride=1, repeats=1):
    with recorded_launches() as launches:
        strided_sum[(len(out),)](x, out, size, stride, REPEATS=repeats, BLOCK=16)
    return launches


def test_a_stride_takes_a_sector_for_each_element():
    x, out = torch.zeros(16, SECTOR // 4), torch.empty(1)
    moved = only(run_strided(x, out, 16, stride=SECTOR // 4), "x_ptr", READ)
    assert (moved.requested, moved.must, moved.does, moved.again) == (64, 64, 16 * SECTOR, 0)


def test_what_a_program_takes_twice_is_apart_from_what_two_programs_take():
    x, out = torch.zeros(32), torch.empty(2)
    moved = only(run_strided(x, out, 32, stride=0, repeats=3), "x_ptr", READ)
    assert (moved.requested, moved.must) == (3 * 128, 4)
    assert (moved.does, moved.again) == (2 * SECTOR, 4 * SECTOR)


def test_masked_lanes_move_nothing():
    launches = run_strided(torch.zeros(5), torch.empty(1), 5)
    assert only(launches, "x_ptr", READ).requested == 20
    assert launches[0].programs == 1


def test_an_element_past_a_tensor_is_refused_though_its_storage_goes_on():
    x = torch.zeros(16)[:5]
    run_strided(x, torch.empty(1), 5)
    with pytest.raises(InterpreterError, match="1 lanes read memory that the launch was not given"):
        run_strided(x, torch.empty(1), 6)


def test_tensors_behind_a_table_of_pointers_are_known():
    x, out = torch.ones(9), torch.zeros(8)
    table = torch.tensor([x.data_ptr(), out.data_ptr()])
    with recorded_launches() as launches:
        add_through_a_table[(1,)](table, 8, BLOCK=16)
    assert requested(launches, "*table_ptr", READ) == 2 * 32
    assert requested(launches, "*table_ptr", WRITE) == 32
    assert out.sum() == 8
