"""The kernels of weight normalization, interpreted, against its formula in float64."""

import math

import pytest
import torch

from snorm_triton.ops.matrix_view import MatrixView, flat, matrix_view
from snorm_triton.ops.row_scaling import RowScaling, RowScalingGradient

pytestmark = [
    pytest.mark.interpreted,
    pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning"),
]
CONTIGUOUS, CHANNELS_LAST = torch.contiguous_format, torch.channels_last
# name: shape, dim (None: all of the weight is one row), memory format
LAYOUTS = {
    "linear": ((37, 53), 0, CONTIGUOUS),
    "linear-wide-runs": ((35, 48), 0, CONTIGUOUS),
    "linear-dim1": ((37, 53), 1, CONTIGUOUS),
    "linear-whole": ((19, 23), None, CONTIGUOUS),
    "conv1d": ((9, 6, 5), 0, CONTIGUOUS),
    "conv1d-groups": ((32, 1, 7), 0, CONTIGUOUS),
    "conv2d": ((19, 7, 3, 3), 0, CONTIGUOUS),
    "conv2d-channels-last": ((19, 7, 3, 3), 0, CHANNELS_LAST),
    "conv2d-dim1": ((19, 7, 3, 3), 1, CONTIGUOUS),
    "conv2d-dim1-channels-last": ((19, 7, 3, 3), 1, CHANNELS_LAST),
    "conv2d-dim2-channels-last": ((19, 7, 3, 5), 2, CHANNELS_LAST),
    "conv2d-dim3": ((19, 7, 3, 5), 3, CONTIGUOUS),
    "conv2d-whole-channels-last": ((5, 7, 3, 3), None, CHANNELS_LAST),
    "conv3d": ((6, 5, 2, 3, 2), 0, CONTIGUOUS),
    "conv3d-channels-last": ((6, 5, 2, 3, 2), 0, torch.channels_last_3d),
    "depthwise": ((70, 1, 3, 3), 0, CONTIGUOUS),
    "transposed1d-k2": ((11, 13, 2), 1, CONTIGUOUS),
    "transposed2d-k4": ((11, 13, 4, 4), 1, CONTIGUOUS),
    "transposed2d-dim0": ((11, 13, 4, 4), 0, CONTIGUOUS),
    "transposed2d-channels-last": ((11, 13, 4, 4), 1, CHANNELS_LAST),
    "transposed3d-channels-last": ((5, 6, 2, 3, 2), 1, torch.channels_last_3d),
    "embedding": ((131, 16), 0, CONTIGUOUS),
    "one-row": ((1, 37), 0, CONTIGUOUS),
    "one-short-row": ((4, 1, 7), 1, CONTIGUOUS),
    "one-column": ((37, 1), 0, CONTIGUOUS),
    "one-element": ((1, 1), 0, CONTIGUOUS),
}
# With the sizes of `small_tiles`: rows below, at and above what fits into each tile, in runs of
# each kind, and rows that are walked along by one program, or by several.
EDGES = {
    **{f"row-of-{N}": ((3, N), 0, CONTIGUOUS) for N in (8, 9, 17, 32, 33, 40, 64, 65, 72)},
    **{f"row-of-{N}": ((3, N), 0, CONTIGUOUS) for N in (127, 128, 129, 136)},
    **{f"{M}-rows": ((M, 8), 0, CONTIGUOUS) for M in (31, 32, 33)},
    **{f"{M}-rows-of-24": ((M, 24), 0, CONTIGUOUS) for M in (7, 8, 9)},
    **{f"runs-of-{Q}": ((20, 5, Q), 1, CONTIGUOUS) for Q in (1, 3, 7, 8, 9)},
    "lines-of-33-rows": ((9, 33), 1, CONTIGUOUS),
    "few-long-rows": ((3, 400), 0, CONTIGUOUS),
    "many-long-rows": ((9, 264), 0, CONTIGUOUS),
    "long-rows-of-short-runs": ((90, 5, 3), 1, CONTIGUOUS),
    "long-rows-of-long-runs": ((30, 3, 16), 1, CONTIGUOUS),
    "long-lines": ((90, 5), 1, CONTIGUOUS),
    "one-long-row": ((1, 1000), None, CONTIGUOUS),
}
# relative errors of (norms, the weight, its gradient). Half weights and their gradients round to
# the dtype, to 2^-11 and 2^-8 at best, and Triton's interpreter truncates to bfloat16 where a GPU
# rounds: twice that.
TOLERANCES = {
    torch.float32: (1e-6, 1e-6, 2e-6),
    torch.float64: (1e-14, 1e-14, 1e-14),
    torch.float16: (1e-6, 2**-11, 2**-11),
    torch.bfloat16: (1e-6, 2**-7, 2**-7),
}
HALVES = torch.float16, torch.bfloat16


def dtype_id(dtype):
    return str(dtype).removeprefix("torch.")


@pytest.fixture(params=["one", "many"])
def launchers(request):
    """A launcher for lists of calls, of which there is one, or for each of its own and in one."""
    from snorm_triton.kernels import row_plan, weight_norm_together

    # What it keeps was planned for other tiles, perhaps, at the same addresses.
    row_plan._planned.cache_clear()
    times = 1 if request.param == "one" else 2

    def forward(calls):
        return weight_norm_together.scale_rows([*calls] * times)[-len(calls) :]

    def backward(calls):
        return weight_norm_together.scale_rows_backward([*calls] * times)[-len(calls) :]

    return forward, backward


@pytest.fixture
def small_tiles(monkeypatch):
    """So small that a row of a few hundred elements is long."""
    from snorm_triton.kernels import config, weight_norm_together  # before anything is patched

    for name, size in {
        "WIDEST_ROW": 128,
        "SCALING_BLOCK": 128,
        "FEWEST_SCALED": 64,
        "SCALING_PARTS": 3,
        "PROGRAMS": 8,
        "TOGETHER_BLOCK": 256,
        "NARROW_ROWS": 32,
        "LONGEST_TOGETHER": 512,
        "LINE": 16,
    }.items():
        monkeypatch.setattr(config, name, size)
    for name in ("NARROW_ROWS", "LINE"):
        monkeypatch.setattr(weight_norm_together, name, getattr(config, name))


def make_call(layout, dtype, g_dtype=None, scale=1.0):
    shape, dim, memory_format = layout
    weight = (torch.randn(shape) * scale).to(dtype).contiguous(memory_format=memory_format)
    view = MatrixView(1, 1, weight.numel()) if dim is None else matrix_view(weight, dim)
    sizes = [view.M if i == dim else 1 for i in range(len(shape))]
    return RowScaling(weight, view, torch.randn(sizes).to(g_dtype or dtype), dtype)


def gradient_call(call, scaled, dtype=None):
    grad = torch.empty_like(call.weight, dtype=dtype).copy_(torch.randn(call.weight.shape))
    return RowScalingGradient(grad, call.weight, call.view, call.g, scaled.norms)


def rows(tensor, view):
    """A tensor that is laid out as the weight, in float64, [M, P * Q]."""
    memory = flat(tensor).double().view(view.P, view.M, view.Q)
    return memory.transpose(0, 1).reshape(view.M, -1)


def formula(call, gradient):
    """|v|, g v / |v|, and the gradients of v and g, where a zero row is divided by 1."""
    v, grad = rows(call.weight, call.view), rows(gradient.grad, call.view)
    g, norms = call.g.double().view(-1, 1), v.norm(dim=1, keepdim=True)
    divisor = torch.where(norms == 0, 1.0, norms)
    x = v / divisor
    inner = (grad * x).sum(dim=1, keepdim=True)
    return norms.flatten(), g * x, g / divisor * (grad - inner * x), inner.flatten()


def check(call, scaled, gradient, gradients, relative_error):
    view, (grad_v, grad_g) = call.view, gradients
    norms, weight, exact_grad_v, exact_grad_g = formula(call, gradient)
    norms_error, weight_error, gradient_error = TOLERANCES[call.weight.dtype]
    assert relative_error(scaled.norms, norms) < norms_error
    assert relative_error(rows(scaled.weight, view), weight) < weight_error
    # What is left of a difference, as of a row of one element, rounds as its terms do.
    rounding = (
        gradient_error
        * rows(gradient.grad, view).norm()
        * (call.g.double().abs().max() / norms[norms > 0].min())
    )
    difference = (rows(grad_v, view) - exact_grad_v).norm()
    assert difference <= max(gradient_error * exact_grad_v.norm(), rounding / 50)
    g_error = max(TOLERANCES[call.g.dtype][1], 1e-5 if call.g.dtype == torch.float32 else 0)
    assert relative_error(grad_g.flatten(), exact_grad_g) < g_error


def check_layout(layout, launchers, relative_error, dtype, g_dtype=None, grad_dtype=None):
    forward, backward = launchers
    call = make_call(layout, dtype, g_dtype)
    (scaled,) = forward([call])
    assert scaled.weight.dtype == dtype
    assert scaled.weight.stride() == call.weight.stride()
    assert scaled.norms.shape == (call.view.M,)
    gradient = gradient_call(call, scaled, grad_dtype)
    ((grad_v, grad_g),) = backward([gradient])
    assert (grad_v.dtype, grad_g.dtype) == (dtype, call.g.dtype)
    assert grad_v.stride() == call.weight.stride()
    assert grad_g.shape == call.g.shape
    check(call, scaled, gradient, (grad_v, grad_g), relative_error)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("launchers", ["one"], indirect=True)
@pytest.mark.usefixtures("nan_filled_memory")
def test_every_layout(layout, launchers, relative_error):
    check_layout(LAYOUTS[layout], launchers, relative_error, torch.float32)


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("launchers", ["one"], indirect=True)
@pytest.mark.usefixtures("nan_filled_memory", "small_tiles")
def test_rows_at_the_edges_of_tiles(edge, launchers, relative_error):
    check_layout(EDGES[edge], launchers, relative_error, torch.float32)


@pytest.mark.parametrize("edge", ["row-of-33", "runs-of-7", "long-lines", "many-long-rows"])
@pytest.mark.parametrize("launchers", ["one"], indirect=True)
@pytest.mark.usefixtures("nan_filled_memory", "small_tiles")
def test_offsets_that_int32_does_not_hold(edge, launchers, monkeypatch, relative_error):
    import triton.language as tl

    from snorm_triton.kernels import launch

    rows_of = launch.rows_of
    monkeypatch.setattr(launch, "rows_of", lambda view: rows_of(view) | {"INDEX": tl.int64})
    check_layout(EDGES[edge], launchers, relative_error, torch.float32)


@pytest.mark.parametrize("layout", ["linear-wide-runs", "transposed2d-channels-last"])
@pytest.mark.parametrize("g_dtype", [None, torch.float32], ids=["g alike", "g float32"])
@pytest.mark.parametrize("dtype", [torch.float64, *HALVES], ids=dtype_id)
@pytest.mark.usefixtures("nan_filled_memory")
def test_every_dtype(dtype, g_dtype, layout, launchers, relative_error):
    check_layout(LAYOUTS[layout], launchers, relative_error, dtype, g_dtype)


@pytest.mark.parametrize("edge", ["few-long-rows", "one-long-row", "long-lines", "row-of-65"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=dtype_id)
@pytest.mark.usefixtures("nan_filled_memory", "small_tiles")
def test_long_rows_of_every_dtype(dtype, edge, launchers, relative_error):
    check_layout(EDGES[edge], launchers, relative_error, dtype)


def test_a_result_and_a_gradient_of_another_dtype(launchers, relative_error):
    forward, backward = launchers
    call = make_call(LAYOUTS["conv2d"], torch.float32)._replace(dtype=torch.bfloat16)
    (scaled,) = forward([call])
    assert scaled.weight.dtype == torch.bfloat16
    gradient = gradient_call(call, scaled, torch.bfloat16)
    ((grad_v, grad_g),) = backward([gradient])
    assert grad_v.dtype == grad_g.dtype == torch.float32
    _, weight, exact_grad_v, _ = formula(call, gradient)
    assert relative_error(rows(scaled.weight, call.view), weight) < 2**-7
    assert relative_error(rows(grad_v, call.view), exact_grad_v) < 2e-6


@pytest.mark.parametrize("edge", ["row-of-17", "few-long-rows", "many-long-rows", "long-lines"])
@pytest.mark.usefixtures("nan_filled_memory", "small_tiles")
def test_a_zero_row_is_divided_by_one(edge, launchers):
    forward, backward = launchers
    call = make_call(EDGES[edge], torch.float32)
    rows_of = call.weight if call.view.P == 1 else call.weight.T
    rows_of[1] = 0.0
    (scaled,) = forward([call])
    gradient = gradient_call(call, scaled)
    ((grad_v, grad_g),) = backward([gradient])
    assert scaled.norms[1] == 0
    assert grad_g.flatten()[1] == 0
    assert torch.equal(rows(scaled.weight, call.view)[1].abs().max(), torch.zeros(()).double())
    expected = gradient.grad * call.g
    assert torch.equal(rows(grad_v, call.view)[1], rows(expected, call.view)[1])
    assert grad_v.isfinite().all()


@pytest.mark.parametrize("edge", ["row-of-17", "few-long-rows", "many-long-rows", "one-long-row"])
@pytest.mark.parametrize("scale", [1e-25, 1e25])
@pytest.mark.usefixtures("nan_filled_memory", "small_tiles")
def test_no_square_leaves_the_range(scale, edge, launchers, relative_error):
    forward, backward = launchers
    call = make_call(EDGES[edge], torch.float32, scale=scale)
    (scaled,) = forward([call])
    gradient = gradient_call(call, scaled)
    ((grad_v, grad_g),) = backward([gradient])
    norms, weight, exact_grad_v, exact_grad_g = formula(call, gradient)
    assert relative_error(scaled.norms, norms) < 1e-6
    assert relative_error(rows(scaled.weight, call.view), weight) < 1e-6
    assert relative_error(rows(grad_v, call.view), exact_grad_v) < 2e-6
    assert relative_error(grad_g.flatten(), exact_grad_g) < 1e-5


@pytest.mark.parametrize("edge", ["few-long-rows", "many-long-rows"])
@pytest.mark.usefixtures("small_tiles")
def test_magnitudes_that_differ_along_a_row(edge, launchers, relative_error):
    forward, _ = launchers
    call = make_call(EDGES[edge], torch.float32)
    call.weight.mul_(torch.logspace(-37, 37, call.weight.shape[1]))
    (rising,) = forward([call])
    (falling,) = forward([call._replace(weight=call.weight.flip(1))])
    for scaled, weight in ((rising, call.weight), (falling, call.weight.flip(1))):
        exact = weight.double().norm(dim=1)
        assert relative_error(scaled.norms, exact) < 1e-6
        expected = weight.double() * (call.g.double() / exact[:, None])
        assert relative_error(scaled.weight, expected) < 1e-6


@pytest.mark.parametrize("edge", ["row-of-17", "few-long-rows", "many-long-rows"])
@pytest.mark.usefixtures("small_tiles")
def test_a_nan_stays_in_its_row(edge, launchers):
    forward, _ = launchers
    call = make_call(EDGES[edge], torch.float32)
    call.weight[1, 5] = math.nan
    (scaled,) = forward([call])
    others = torch.arange(call.view.M) != 1
    assert scaled.weight[1].isnan().all()
    assert scaled.norms[1].isnan()
    assert scaled.weight[others].isfinite().all()


@pytest.mark.usefixtures("nan_filled_memory")
def test_a_weight_that_begins_off_sixteen_bytes_goes_alone(relative_error):
    from snorm_triton.kernels import weight_norm_together

    calls = [make_call(LAYOUTS["linear"], torch.float32) for _ in range(3)]
    memory = torch.randn(1 + calls[1].weight.numel())
    calls[1] = calls[1]._replace(weight=memory[1:].view(calls[1].weight.shape))
    check_many(weight_norm_together, calls, relative_error)


def many_calls():
    calls = [make_call(layout, torch.float32) for layout in LAYOUTS.values()]
    return [make_call(LAYOUTS["linear"], torch.bfloat16, torch.float32), *calls]


def check_many(launches, calls, relative_error):
    together = launches.scale_rows(calls)
    gradients = [gradient_call(*each) for each in zip(calls, together, strict=True)]
    of_all = launches.scale_rows_backward(gradients)
    for each in zip(calls, together, gradients, of_all, strict=True):
        check(*each, relative_error)
    return together


@pytest.mark.usefixtures("nan_filled_memory")
def test_every_layout_and_two_dtypes_together(relative_error):
    from snorm_triton.kernels import weight_norm_together

    check_many(weight_norm_together, many_calls(), relative_error)


@pytest.mark.usefixtures("nan_filled_memory", "small_tiles")
def test_every_edge_together(relative_error):
    from snorm_triton.kernels import row_plan, weight_norm_together

    row_plan._planned.cache_clear()
    calls = [make_call(layout, torch.float32) for layout in EDGES.values()]
    check_many(weight_norm_together, calls, relative_error)


def test_results_that_share_memory_have_their_own_versions():
    from snorm_triton.kernels import weight_norm_together

    calls = [make_call(LAYOUTS["linear"], torch.float32) for _ in range(3)]
    first, second, _ = weight_norm_together.scale_rows(calls)
    versions = second.weight._version, second.norms._version
    first.weight.add_(1)
    first.norms.add_(1)
    assert (second.weight._version, second.norms._version) == versions
    assert not second.weight._is_view()


def test_a_plan_is_kept_while_weights_stay_where_they_are():
    from snorm_triton.kernels import row_plan, weight_norm_together

    calls = [make_call(LAYOUTS["linear"], torch.float32) for _ in range(3)]
    weight_norm_together.scale_rows(calls)
    before = row_plan._planned.cache_info()
    again = weight_norm_together.scale_rows(calls)
    calls[0].weight.mul_(2)
    doubled = weight_norm_together.scale_rows(calls)
    after = row_plan._planned.cache_info()
    assert (after.hits - before.hits, after.misses - before.misses) == (2, 0)
    assert torch.equal(doubled[0].norms, 2 * again[0].norms)
    weight_norm_together.scale_rows([calls[0]._replace(weight=calls[0].weight.clone()), *calls[1:]])
    assert row_plan._planned.cache_info().misses == after.misses + 1


def test_the_same_bits_at_every_call(launchers):
    forward, backward = launchers
    call = make_call(LAYOUTS["conv2d"], torch.float32)
    scaled, again = forward([call])[0], forward([call])[0]
    gradient = gradient_call(call, scaled)
    assert torch.equal(scaled.weight, again.weight)
    for one, other in zip(backward([gradient])[0], backward([gradient])[0], strict=True):
        assert torch.equal(one, other)
