"""Compile every kernel variant for every target, without a GPU, and print what it costs.

The variants are the launches that the launchers really make: they are run on meta tensors, and each
kernel call is caught and compiled instead. Fails if a kernel spills in a loop, takes more shared
memory than the target has, or takes the weight in less than 16 bytes at a time where its rows allow
that. ``--sampled``: each dtype for one target or two, and of most targets every
other variant, in a fifth of the time.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
import triton
from sass import (
    allows_widest,
    global_accesses,
    run_tool,
    spills_in_loops,
    summary,
    too_narrow,
)
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from snorm_triton.kernels import backend, config, launch, weight_norm_together
from snorm_triton.ops.calls import Call, Evaluate, GradientCall, Iterate, Replay, State
from snorm_triton.ops.matrix_view import MatrixView, in_matrix_layout
from snorm_triton.ops.rescaling import Rescaling
from snorm_triton.ops.row_scaling import RowScaling, RowScalingGradient

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# Bytes that one program may have there; on AMD's, loads in flight are not staged in them.
SHARED_MEMORY = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}
STAGED_IN = SHARED_MEMORY | {"gfx942": 0}
# Triton chooses the widths, alike for every target; disassembling takes longer than compiling.
DISASSEMBLED = "sm_90"
TRITON_TYPES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
}
# No target and no dtype has a kernel of its own.
SAMPLES = {
    "sm_80": ("fp16",),
    "sm_90": ("fp32", "bf16"),
    "sm_100": ("fp32",),
    "gfx942": ("fp64",),
}
POINTER_TYPES = {**TRITON_TYPES, torch.int64: "i64"}
# layout: shape, dim, channels_last
LAYOUTS = {
    "Linear 4096x4096": ((4096, 4096), 0, False),
    "Linear 512x16384": ((512, 16384), 0, False),
    "Linear 256x36864": ((256, 36864), 0, False),
    "Linear 3x5": ((3, 5), 0, False),
    "Linear 1x20480": ((1, 20480), 0, False),
    "Linear 20480x1": ((20480, 1), 0, False),
    "Linear 512x300": ((512, 300), 0, False),
    "Linear 101x100": ((101, 100), 0, False),
    "Conv2d 512-512 k3": ((512, 512, 3, 3), 0, False),
    "Conv2d 512-512 k3 channels_last": ((512, 512, 3, 3), 0, True),
    "Conv2d 2048-2048 k3 channels_last": ((2048, 2048, 3, 3), 0, True),
    "Conv2d 100-20 k3 channels_last": ((100, 20, 3, 3), 0, True),
    "ConvTranspose2d 1024-512 k4": ((1024, 512, 4, 4), 1, False),
    "ConvTranspose2d 2048-512 k4": ((2048, 512, 4, 4), 1, False),
    "ConvTranspose2d 512-256 k3": ((512, 256, 3, 3), 1, False),
    "ConvTranspose2d 512-256 k4 channels_last": ((512, 256, 4, 4), 1, True),
    "ConvTranspose1d 512-256 k2": ((512, 256, 2), 1, False),
    "ConvTranspose2d 35-67 k2": ((35, 67, 2, 2), 1, False),
    "ConvTranspose2d 512-256 k2": ((512, 256, 2, 2), 1, False),
    "Conv2d dim=2 channels_last": ((64, 32, 3, 3), 2, True),
}

# Of these shapes with a bound and a learned scale too, of which the layout is no matter.
RESCALED = ((3, 5), (101, 100))


@dataclass(frozen=True)
class Variant:
    """One kernel as one launch compiles it."""

    module: str
    kernel: str
    layout: str
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    aligned: tuple[str, ...]
    num_warps: int
    fuses: bool  # products into sums
    widest: bool  # the matrix's rows allow accesses of 16 bytes

    @property
    def dtype(self) -> str:
        """The narrowest that a pointer is of: the weight's own where the kernel reads it."""
        kinds = {kind.removeprefix("*") for _, kind in self.signature if kind.startswith("*")}
        return min(kinds & set(TRITON_TYPES.values()), key=lambda kind: int(kind.strip("bfp")))


def main(arguments: list[str]) -> int:
    samples = SAMPLES if "--sampled" in arguments else {}
    work = [
        (target, variant)
        for target, description in TARGETS.items()
        for number, variant in enumerate(
            launched_variants(description.warp_size, STAGED_IN[target])
        )
        if variant.dtype in samples.get(target, TRITON_TYPES.values())
        and (not samples or target == DISASSEMBLED or number % 2 == 0)
    ]
    width = max(len(variant.kernel) for _, variant in work)
    spilled = narrow = too_large = 0
    with ProcessPoolExecutor() as pool:
        for (target, variant), usage in zip(
            work, pool.map(compile_variant, work, chunksize=8), strict=True
        ):
            spilled += usage["spills"] > 0
            narrow += bool(usage["narrow"])
            too_large += usage["shared"] > SHARED_MEMORY[target]
            print(
                f"{target:7} {variant.kernel:{width}} {variant.dtype:4} {variant.layout:42}"
                f" warps {variant.num_warps:2}  registers {usage['registers']:3}"
                f"  shared {usage['shared']:6}  spills {usage['spills']}"
                f"  {usage['accesses']}{usage['narrow'] and '  TOO NARROW: ' + usage['narrow']}"
            )
    kernels = {variant.kernel for _, variant in work}
    print(
        f"{len(kernels)} kernels, {len(work)} variants on {', '.join(TARGETS)}"
        f" with Triton {triton.__version__}: {spilled or 'no'} spill{'s' if spilled > 1 else ''},"
        f" {narrow or 'none'} with narrow access of the weight,"
        f" {too_large or 'none'} with more shared memory than there is"
    )
    return 1 if spilled or narrow or too_large else 0


def launched_variants(warp_size: int, shared_memory: int) -> list[Variant]:
    """The distinct kernel variants of every layout and dtype, forward, evaluation and backward."""
    variants: dict[Variant, Variant] = {}
    for layout, (shape, dim, channels_last) in LAYOUTS.items():
        for dtype in TRITON_TYPES:
            with caught_launches(layout, warp_size, shared_memory) as caught:
                run_every_launcher(shape, dim, channels_last, dtype)
            for variant in caught:
                variants.setdefault(replace(variant, layout=""), variant)
    return list(variants.values())


def run_every_launcher(
    shape: tuple[int, ...], dim: int, channels_last: bool, dtype: torch.dtype
) -> None:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    weight = torch.empty(shape, dtype=dtype, device="meta").contiguous(memory_format=layout)
    weight, view = in_matrix_layout(weight, dim)
    state = torch.promote_types(dtype, torch.float32)
    u, v = (torch.empty(size, dtype=state, device="meta") for size in (view.M, view.N))
    sigma = u.new_empty(())
    live = State(u, v, sigma)
    steps = (Evaluate(1e-12), Iterate(2), Iterate(2, live), Replay(sigma))
    calls = [Call(weight, view, u, v, step, dtype) for step in steps]
    gradient = GradientCall(weight, weight, view, u, v, sigma)
    launch_calls(calls, gradient)
    if shape in RESCALED:
        rescaling = Rescaling(0.5, 1.0, torch.empty(1, dtype=dtype, device="meta"))
        rescaled = [call._replace(rescaling=rescaling) for call in calls]
        launch_calls(rescaled, gradient._replace(rescaling=rescaling))
    for rows in (view, MatrixView(1, 1, weight.numel())):
        scale_rows_and_back(weight, rows, torch.empty(rows.M, dtype=dtype, device="meta"))


def launch_calls(calls: list[Call], gradient: GradientCall) -> None:
    for small in (config.SMALL, 0):
        launch.forget()
        with mock.patch.object(config, "SMALL", small):
            for call in calls:
                backend.normalize(*call)
            backend.rescale_backward(*gradient)
    for call in calls:
        is_live = isinstance(call.step, Iterate) and call.step.live is not None
        backend.normalize_together([call] * 3, apart=not is_live)
    backend.rescale_backward_together([gradient] * 3)


def scale_rows_and_back(weight: Tensor, view: MatrixView, g: Tensor) -> None:
    norms = g.new_empty(view.M, dtype=torch.promote_types(weight.dtype, torch.float32))
    call = RowScaling(weight, view, g, weight.dtype)
    gradient = RowScalingGradient(weight, weight, view, g, norms)
    for times in (1, 3):
        weight_norm_together.scale_rows([call] * times)
        weight_norm_together.scale_rows_backward([gradient] * times)


@contextmanager
def caught_launches(layout: str, warp_size: int, shared_memory: int) -> Iterator[list[Variant]]:
    """Collect kernel calls instead of making them."""
    caught: list[Variant] = []

    def catch(kernel: JITFunction, grid: tuple[int, ...]) -> Any:
        return lambda **kwargs: caught.append(variant_of(kernel, layout, kwargs))

    launch.forget()
    with (
        mock.patch.object(JITFunction, "__getitem__", catch),
        mock.patch.object(launch, "warp_size", return_value=warp_size),
        mock.patch.object(launch, "shared_memory", return_value=shared_memory),
        mock.patch.object(launch, "on_device_of"),
    ):
        yield caught
    launch.forget()


def variant_of(kernel: JITFunction, layout: str, arguments: dict[str, Any]) -> Variant:
    """What Triton specializes a launch on: types, ones, multiples of 16 and constexprs."""
    num_warps = arguments.pop("num_warps", 4)
    fuses = arguments.pop("enable_fp_fusion", True)
    signature, constants, aligned = [], [], []
    for parameter in kernel.params:
        name, value = parameter.name, arguments[parameter.name]
        is_one = isinstance(value, int) and value == 1
        if parameter.is_constexpr or is_one or value is None:
            signature.append((name, "constexpr"))
            constants.append((name, value))
            continue
        if isinstance(value, torch.Tensor):
            signature.append((name, "*" + POINTER_TYPES[value.dtype]))
            aligned.append(name)
        elif isinstance(value, float):
            signature.append((name, "fp32"))
        else:
            signature.append((name, "i32" if value < 2**31 else "i64"))
            aligned.extend([name] if value % 16 == 0 else [])
    module, name = kernel.fn.__module__, kernel.fn.__name__
    itemsize = min(x.itemsize for x in arguments.values() if isinstance(x, torch.Tensor))
    takes_matrix = arguments.get("RESCALES", True) and name != "foreach_reduce"
    widest = takes_matrix and allows_widest(arguments, itemsize)
    compiled_as = tuple(signature), tuple(constants), tuple(aligned), num_warps, fuses, widest
    return Variant(module, name, layout, *compiled_as)


def compile_variant(work: tuple[str, Variant]) -> dict[str, Any]:
    target, variant = work
    kernel = getattr(sys.modules[variant.module], variant.kernel)
    index = {parameter.name: (parameter.num,) for parameter in kernel.params}
    source = ASTSource(
        kernel,
        signature=dict(variant.signature),
        constexprs={index[name]: value for name, value in variant.constants},
        attrs={index[name]: [["tt.divisibility", 16]] for name in variant.aligned},
    )
    options = {"num_warps": variant.num_warps, "enable_fp_fusion": variant.fuses}
    compiled = triton.compile(source, target=TARGETS[target], options=options)
    usage = nvidia_usage if target.startswith("sm_") else amd_usage
    costs = {"shared": compiled.metadata.shared, **usage(compiled.asm)}
    if target != DISASSEMBLED:
        return {**costs, "accesses": "", "narrow": ""}
    accesses = global_accesses(compiled.asm["cubin"])
    narrow = too_narrow(accesses, kernel) if variant.widest else []
    return {**costs, "accesses": summary(accesses), "narrow": summary(narrow)}


def nvidia_usage(asm: dict[str, Any]) -> dict[str, int]:
    """Registers and spills of a cubin: accesses of its stack in loops."""
    report = run_tool("cuobjdump", "-res-usage", cubin=asm["cubin"])
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", report)
    if found is None:
        raise RuntimeError(f"cuobjdump -res-usage printed no register count: {report!r}")
    registers, stack, local = map(int, found.groups())
    spills = spills_in_loops(asm["cubin"]) if stack or local else 0
    return {"registers": registers, "spills": spills}


def amd_usage(asm: dict[str, Any]) -> dict[str, int]:
    """Vector registers and spills of an AMD kernel, from its assembly's metadata."""

    def count(key: str) -> int:
        found = re.search(rf"\.{key}:\s+(\d+)", asm["amdgcn"])
        if found is None:
            raise RuntimeError(f"the assembly names no {key}")
        return int(found.group(1))

    spills = count("vgpr_spill_count") + count("sgpr_spill_count")
    return {"registers": count("vgpr_count"), "spills": spills}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
