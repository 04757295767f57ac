"""`python -m snorm_triton doctor`: what it says, and that it finds a wrong kernel."""

from __future__ import annotations

import ast
from pathlib import Path
from unittest import mock

import pytest
import torch

from snorm_triton.cli import main as command_line
from snorm_triton.doctor import checks, machine, timing
from snorm_triton.doctor.operations import DTYPES, OPERATIONS, Operation, relative_error, tolerance
from snorm_triton.ops import dispatch, torch_any_device, torch_cpu

KERNELS = Path(checks.__file__).resolve().parents[1] / "kernels"
CPU = torch.device("cpu")
FAST = timing.Times(1e-4, 2e-4, 10**6, 2e-3, 4e-3, 1e-3)


def identify(operation: Operation) -> str:
    return operation.name.replace(", ", "-").replace(" ", "-")


@pytest.mark.parametrize("backend", [torch_cpu, torch_any_device], ids=["cpu", "any-device"])
@pytest.mark.parametrize("operation", OPERATIONS, ids=identify)
def test_torch_is_right(operation, backend):
    for dtype in DTYPES:
        assert operation.error(backend, CPU, dtype) <= tolerance(dtype)


@pytest.mark.interpreted
@pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")
@pytest.mark.parametrize("operation", OPERATIONS, ids=identify)
def test_the_kernels_are_right_and_those_that_are_named(operation, monkeypatch):
    from triton.runtime.interpreter import GridExecutor

    from snorm_triton.kernels import backend

    launched, launch = [], GridExecutor.__call__

    def recorded(self, *args, **kwargs):
        launched.append(self.fn.__name__)
        return launch(self, *args, **kwargs)

    monkeypatch.setattr(GridExecutor, "__call__", recorded)
    assert operation.error(backend, CPU, torch.float32) <= tolerance(torch.float32)
    assert launched == list(operation.kernels)


LAUNCHING = "launch.Launch", "Kernel"


def test_every_kernel_that_is_launched_is_checked():
    launched = set()
    for file in KERNELS.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in LAUNCHING:
                launched.add(ast.unparse(node.args[0]))
    # Chosen by the shape, or by the pass.
    launched -= {"power", "whole.function", "first.function", "second.function"}
    launched |= {"power_rows", "power_chunked"}
    assert launched == {name for operation in OPERATIONS for name in operation.kernels}


def test_an_error_that_rounding_does_not_explain_is_one():
    right = {"float32": 1e-7, "bfloat16": 1e-3}
    assert checks.Outcome("gradient", right).is_right
    for wrong in (1e-4, float("nan")):
        assert not checks.Outcome("gradient", right | {"float32": wrong}).is_right
    assert not checks.Outcome("gradient", {}, "RuntimeError: out of memory").is_right


def test_the_error_is_that_of_a_result_that_is_off():
    exact = torch.arange(1.0, 7.0)
    assert relative_error(exact.view(2, 3) * 1.5, exact) == pytest.approx(0.5)


def doctor(monkeypatch, capsys, outcomes):
    """The status, and what is printed, with these outcomes of every backend."""
    monkeypatch.setattr(checks, "outcomes", lambda *arguments: iter(outcomes))
    monkeypatch.setattr(timing, "measure", lambda device: FAST)
    status = command_line.main(["doctor"])
    return status, capsys.readouterr().out


def test_what_it_prints(monkeypatch, capsys):
    outcome = checks.Outcome("gradient", {"float32": 1e-8, "bfloat16": 1e-3})
    status, printed = doctor(monkeypatch, capsys, [outcome])
    assert status == 0
    assert f"torch         {torch.__version__}" in printed
    assert "backend torch: the weight is on the CPU" in printed
    assert "1.0e-08" in printed
    assert "grad_dot, grad_apply" in printed
    assert "100 µs an access; torch's parametrization 200 µs" in printed
    assert "2.0 copies; with its gradient 4.00 ms, 4.0 copies of 1.00 ms" in printed
    assert printed.endswith("all is well\n")


def test_it_fails_where_something_is_wrong(monkeypatch, capsys):
    wrong = checks.Outcome("gradient", {"float32": 0.5, "bfloat16": 1e-3})
    raised = checks.Outcome("replay", {}, "RuntimeError: out of memory")
    status, printed = doctor(monkeypatch, capsys, [wrong, raised])
    assert status == "4 operations are wrong"  # of torch, and of the kernels
    assert "WRONG" in printed
    assert "RuntimeError: out of memory" in printed


def test_a_backend_that_there_is_not_is_a_sentence(monkeypatch):
    for module in (dispatch, machine):
        monkeypatch.setattr(module, "DEFAULT_BACKEND", "cuda")
    status = command_line.main(["doctor"])
    assert status == "SNORM_TRITON_BACKEND must be one of auto, triton, torch, got 'cuda'"


def test_without_triton_torch_alone_is_checked(monkeypatch, capsys):
    monkeypatch.setattr("snorm_triton.cli.doctor.find_spec", lambda name: None)
    status, printed = doctor(monkeypatch, capsys, [checks.Outcome("gradient", {"float32": 1e-8})])
    assert status == 0
    assert "triton is not installed" in printed
    assert "grad_dot" not in printed


def test_operations_are_checked_in_a_process_of_their_own():
    found = list(checks.outcomes("torch on a CPU", CPU))
    assert [outcome.operation for outcome in found] == [each.name for each in OPERATIONS]
    assert all(outcome.is_right for outcome in found)


def test_a_process_that_ends_is_an_outcome():
    with mock.patch.object(checks.sys, "executable", "/bin/false"):
        (outcome,) = checks.outcomes("torch", CPU)
    assert outcome.failure == "the process ended with status 1"


def test_times_are_of_what_they_say():
    times = timing.measure(CPU, seconds=0.02)
    assert times.weight_bytes == 4 * 512 * 512 * 9
    assert min(times) > 0


@pytest.mark.parametrize("operation", OPERATIONS[:3], ids=identify)
def test_a_backend_that_is_wrong_is_found(operation):
    class Wrong:
        def normalize(self, *call):
            found = torch_cpu.normalize(*call)
            return found._replace(sigma=found.sigma * (1 + 1e-4))

    assert operation.error(torch_cpu, CPU, torch.float32) <= tolerance(torch.float32)
    assert not operation.error(Wrong(), CPU, torch.float32) <= tolerance(torch.float32)


def test_it_fails_where_no_backend_can_run(monkeypatch, capsys):
    monkeypatch.setattr(dispatch, "DEFAULT_BACKEND", "triton")
    monkeypatch.setattr(dispatch, "_interpreted", lambda: False)
    status, _ = doctor(monkeypatch, capsys, [checks.Outcome("gradient", {"float32": 1e-8})])
    assert status.startswith("no device can be computed on: SNORM_TRITON_BACKEND='triton' cannot")
