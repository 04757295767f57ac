"""`doctor`: what this machine computes with, whether that is right, and what it takes."""

import argparse
from collections.abc import Callable
from importlib.util import find_spec

import torch

from ..doctor import checks, machine, timing
from ..doctor.operations import OPERATIONS, tolerance

RIGHT, WRONG = "ok", "WRONG"


def add_to(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    parser = add_parser(
        "doctor",
        help="check versions, devices and every kernel on this machine, and time an access",
        description="Fails where a backend and the textbook in float64 differ by more than "
        "rounding: for continuous integration. The kernels run on the GPU, or in Triton's "
        "interpreter where there is none.",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> str | None:
    """Print it all; a sentence where something is wrong."""
    try:
        found = machine.devices()
    except ValueError as error:
        return str(error)
    versions = machine.versions()
    width = 2 + max(len(name) for name in versions)
    for name, version in versions.items():
        print(f"{name:{width}}{version}")
    for device in found:
        print(f"\n{device.device!s:{width}}{device.name}")
        print(f"{'':{width}}backend {device.choice.backend}: {device.choice.reason}")
    is_impossible = all(device.choice.backend == "none" for device in found)
    wrong = sum([_check(*each) for each in _to_check(found)])
    for device in found:
        if device.choice.backend != "none":
            _time(device)
    if wrong:
        return "1 operation is wrong" if wrong == 1 else f"{wrong} operations are wrong"
    if is_impossible:
        return f"no device can be computed on: {found[0].choice.reason}"
    print("\nall is well")
    return None


def _to_check(found: list[machine.Device]) -> list[tuple[str, torch.device, bool]]:
    """Backends and devices to check them on, and whether the kernels are interpreted there."""
    cpu, *others = [device.device for device in found]
    chosen = [("torch on a CPU", cpu, False), *(("torch", device, False) for device in others)]
    on_triton = [each.device for each in found if each.choice.backend == "triton"]
    on_gpu = [("triton", device, False) for device in on_triton if device != cpu]
    if on_gpu:
        return chosen + on_gpu
    if find_spec("triton") is None:
        print("\ntriton is not installed: torch computes everything, and no kernel is checked")
        return chosen
    return [*chosen, ("triton", cpu, True)]


def _check(backend: str, device: torch.device, interpreted: bool) -> int:
    """Print how far each operation is from the reference; how many are wrong."""
    how = f"{backend}, interpreted" if interpreted else f"{backend} on {device.type}"
    dtypes = [str(dtype).removeprefix("torch.") for dtype in checks.dtypes(interpreted)]
    title = f"relative error, {how if backend != 'torch on a CPU' else backend}"
    print(f"\n{title:36}" + "".join(f"{dtype:>10}" for dtype in dtypes))
    wrong, kernels = 0, {each.name: each.kernels for each in OPERATIONS}
    for outcome in checks.outcomes(backend, device, interpreted):
        errors = "".join(f"{outcome.errors.get(dtype, torch.nan):10.1e}" for dtype in dtypes)
        says = outcome.failure or (RIGHT if outcome.is_right else WRONG)
        names = ", ".join(kernels.get(outcome.operation, ())) if backend == "triton" else ""
        print(f"{outcome.operation:36}{errors}  {says:6}{names}".rstrip(), flush=True)
        wrong += not outcome.is_right
    allowed = [f"{tolerance(getattr(torch, dtype)):10.1e}" for dtype in dtypes]
    print(f"{'allowed':36}{''.join(allowed)}")
    return wrong


def _time(device: machine.Device) -> None:
    times = timing.measure(device.device)
    megabytes = times.weight_bytes / 1e6
    print(f"\ntime on {device.device}, medians of runs in turns")
    print(
        f"  host, a weight of {timing.SMALL[1]}x{timing.SMALL[0]}x3x3: "
        f"{1e6 * times.access:.0f} µs an access; torch's parametrization "
        f"{1e6 * times.torch_access:.0f} µs"
    )
    print(
        f"  a weight of {megabytes:.1f} MB: {1e3 * times.forward:.2f} ms, "
        f"{times.forward / times.copy:.1f} copies; with its gradient {1e3 * times.both:.2f} ms, "
        f"{times.both / times.copy:.1f} copies of {1e3 * times.copy:.2f} ms"
    )
