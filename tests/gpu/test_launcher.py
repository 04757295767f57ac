"""A launch past Triton's bookkeeping computes what Triton's own does, whatever changes between."""

import pytest
import torch
import triton

from snorm_triton.kernels import launch
from snorm_triton.kernels.rescale import divide_and_copy_state

pytestmark = pytest.mark.gpu
PLAIN = {"scale_ptr": None, "BOUND": 0.0, "SCALE": 1.0}
CASES = {
    "aligned": {},
    "off sixteen bytes": {"offset": 1},
    "bfloat16": {"dtype": torch.bfloat16},
    "an odd size": {"numel": 4095},
    "another stream": {"stream": True},
    "a hook": {"hook": True},
}


def division(device, offset=0, dtype=torch.float32, numel=4096):
    def piece(size, dtype=torch.float32):
        return torch.randn(size + offset, device=device).abs().to(dtype)[offset:]

    inputs = {
        "weight_ptr": piece(numel, dtype),
        "u_ptr": piece(64),
        "v_ptr": piece(64),
        "sigma_ptr": piece(1),
    }
    sizes = {"numel": numel, "M": 64, "N": 64, "FACTOR": 1, "BLOCK": 1024, "VECTOR_BLOCK": 256}
    outputs = {
        "out_ptr": torch.full_like(inputs["weight_ptr"], torch.nan),
        "new_u_ptr": torch.full_like(inputs["u_ptr"], torch.nan),
        "new_v_ptr": torch.full_like(inputs["v_ptr"], torch.nan),
        "new_sigma_ptr": torch.full_like(inputs["sigma_ptr"], torch.nan),
    }
    return {**inputs, **sizes, **PLAIN, **launch.ROUNDING}, outputs


def devices():
    return range(torch.cuda.device_count()) if torch.cuda.is_available() else ()


@pytest.mark.parametrize("first", CASES)
def test_results_are_those_of_tritons_own_launches(first):
    told = []
    hooks = triton.knobs.runtime.launch_enter_hook
    for device in devices():
        for name in (first, *CASES, first):
            changes = dict(CASES[name])
            stream = torch.cuda.Stream(device) if changes.pop("stream", False) else None
            is_hooked = changes.pop("hook", False)
            with torch.cuda.device(device), torch.cuda.stream(stream):
                arguments, outputs = division(device, **changes)
                expected = {name: value.clone() for name, value in outputs.items()}
                if is_hooked:
                    hooks.add(told.append)
                launch.run(divide_and_copy_state, 4, **arguments, **outputs)
                hooks.remove(told.append)
                divide_and_copy_state[(4,)](**arguments, **expected)
                torch.cuda.synchronize(device)
            for output, value in outputs.items():
                assert torch.equal(value, expected[output]), (device, name, output)
    assert bool(told) == bool(devices())


@pytest.mark.parametrize("name", CASES)
def test_a_launch_made_again_computes_what_tritons_own_does(name):
    for device in devices():
        changes = dict(CASES[name])
        stream = torch.cuda.Stream(device) if changes.pop("stream", False) else None
        changes.pop("hook", False)
        with torch.cuda.device(device), torch.cuda.stream(stream):
            arguments, outputs = division(device, **changes)
            made = launch.Launch(divide_and_copy_state, 4, tuple(outputs), **arguments)
            expected = {name: value.clone() for name, value in outputs.items()}
            divide_and_copy_state[(4,)](**arguments, **expected)
            for _ in range(4):
                again = {name: torch.full_like(value, torch.nan) for name, value in outputs.items()}
                made(again)
                torch.cuda.synchronize(device)
                for output, value in again.items():
                    assert torch.equal(value, expected[output]), (device, output)
