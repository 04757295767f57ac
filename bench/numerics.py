"""How far a normalized weight and its gradient are from the textbook in float64, at worst.

`python -m bench.numerics` writes it to docs/numerics.md; a minute on one core. Ours in torch and in
the kernels, interpreted, beside torch's parametrization: random shapes, layouts and scales, one
power iteration from vectors that ten have brought near.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from snorm_triton import reference
from snorm_triton.functional import matrix_shape, spectral_normalize, state_dtype

PAGE = Path(__file__).parents[1] / "docs" / "numerics.md"
CASES = 200
ORDINARY = (-2.0, 1.0)  # decimal logarithms of the weights' size
EXTREME = (-30.0, 30.0)
ROWS = [
    ("weights of 0.01 to 10", torch.float32, ORDINARY),
    ("weights of 0.01 to 10", torch.float64, ORDINARY),
    ("weights of 0.01 to 10", torch.bfloat16, ORDINARY),
    ("weights of 0.01 to 10", torch.float16, ORDINARY),
    ("weights of 1e-30 to 1e30", torch.float32, EXTREME),
]


class Case(NamedTuple):
    weight: Tensor
    u: Tensor
    v: Tensor
    grad: Tensor


Result = tuple[Tensor, Tensor]  # the normalized weight and the gradient of the raw one


def cases(dtype: torch.dtype, scales: tuple[float, float]) -> Iterator[Case]:
    choose = Random(0)
    torch.manual_seed(0)
    for _ in range(CASES):
        sizes = [choose.randint(1, 64), choose.randint(1, 64)]
        sizes += [choose.randint(1, 4) for _ in range(choose.choice((0, 0, 1, 2)))]
        weight = torch.randn(sizes) * 10 ** choose.uniform(*scales)
        if len(sizes) == 4 and choose.random() < 0.5:
            weight = weight.contiguous(memory_format=torch.channels_last)
        weight = weight.to(dtype)
        M, N = matrix_shape(weight, 0)
        start = torch.randn(M), torch.randn(N)
        _, u, v, _ = reference.spectral_normalize(weight, *start, n_power_iterations=10)
        yield Case(weight, u, v, torch.randn(sizes).to(dtype))


def exact(case: Case) -> Result:
    weight = case.weight.double().requires_grad_()
    found = reference.spectral_normalize(weight, case.u, case.v)
    (grad,) = torch.autograd.grad(found.weight_sn, weight, case.grad.double())
    return found.weight_sn, grad


def ours(case: Case, backend: str) -> Result:
    weight = case.weight.clone().requires_grad_()
    u, v = (x.to(state_dtype(weight)) for x in (case.u, case.v))
    found = spectral_normalize(weight, u, v, backend=backend)
    (grad,) = torch.autograd.grad(found.weight_sn, weight, case.grad)
    return found.weight_sn, grad


def theirs(case: Case) -> Result:
    module = nn.Module()
    module.weight = nn.Parameter(case.weight.clone())
    parametrizations.spectral_norm(module)
    norm, raw = module.parametrizations.weight[0], module.parametrizations.weight.original
    norm._u.copy_(case.u)
    norm._v.copy_(case.v)
    weight = module.weight
    (grad,) = torch.autograd.grad(weight, raw, case.grad)
    return weight, grad


WAYS: dict[str, Callable[[Case], Result]] = {
    "ours on a CPU": lambda case: ours(case, "torch"),
    "our kernels, interpreted": lambda case: ours(case, "triton"),
    "torch's parametrization": theirs,
}


def worst(way: Callable[[Case], Result], dtype: torch.dtype, scales: tuple[float, float]) -> str:
    """The largest relative errors in norm, and of how many weights the result is not finite."""
    errors, broken = [0.0, 0.0], 0
    for case in cases(dtype, scales):
        results = way(case)
        if not all(result.isfinite().all() for result in results):
            broken += 1
            continue
        for i, (result, right) in enumerate(zip(results, exact(case), strict=True)):
            # A weight of one row or column has no gradient but that of rounding.
            scale = (right if i == 0 else case.grad.double() / case.weight.double().norm()).norm()
            error = (result.detach().double() - right.detach()).norm() / scale
            errors[i] = max(errors[i], float(error))
    text = " / ".join(f"{error:.0e}" for error in errors)
    if broken == CASES:
        return "not finite"
    return text + (f"; {broken} of {CASES} not finite" if broken else "")


def table() -> str:
    header = ["weights", "dtype", *WAYS]
    lines = [f"| {' | '.join(header)} |", "|" + " --- |" * len(header)]
    for name, dtype, scales in ROWS:
        found = [worst(way, dtype, scales) for way in WAYS.values()]
        kind = str(dtype).removeprefix("torch.")
        lines.append(" | ".join([f"| {name}", kind, *found]) + " |")
        print(lines[-1], flush=True)
    return "\n".join(lines)


def main() -> None:
    if os.environ.get("TRITON_INTERPRET") != "1":  # which Triton reads when kernels are defined
        os.environ["TRITON_INTERPRET"] = "1"
        os.execv(sys.executable, [sys.executable, "-W", "ignore", "-m", "bench.numerics"])
    before, marker, rest = PAGE.read_text().partition("<!-- bench.numerics -->\n")
    _, end, after = rest.partition("<!-- end -->")
    PAGE.write_text(before + marker + table() + "\n" + end + after)


if __name__ == "__main__":
    main()
