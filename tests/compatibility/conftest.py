"""What users do with a normalized model, tried on ours and on torch's own spectral norm.

A test of a promise asks for `sn`, a spectral norm, and runs twice. Its mark says what the user does
and what becomes of it with torch's: nothing where that works as well, `fails` with the exception in
`raises`, or `lacks` where torch has nothing to try. All three are claims: the run fails where one
does not hold. `--compatibility FILE` writes the table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm as torch_spectral_norm
from torch.nn.utils.parametrize import remove_parametrizations

import snorm_triton

PROMISE = "promise"
# Promised, and not kept yet or not tried: these stand in the table, without a test that ran.
NOT_YET: list[tuple[str, str, str]] = [
    ("The norm of the convolution, not of the reshaped weight", "1.5 for 3x3", "not built yet"),
    ("A soft bound: divide only where sigma exceeds it", "none", "not built yet"),
    ("DataParallel, CUDA graphs, autocast on a GPU", "not tried", "tests that need a GPU"),
]


@dataclass(frozen=True)
class SpectralNorm:
    """A spectral norm, by the calls that both have."""

    name: str
    spectral_norm: Callable[..., Any]
    remove: Callable[..., Any]

    @property
    def is_ours(self) -> bool:
        return self.name == "ours"

    def apply(self, model: nn.Module) -> nn.Module:
        """Normalize the layers of a model, each at its access."""
        for module in list(model.modules()):
            if isinstance(module, nn.Linear | nn.modules.conv._ConvNd | nn.Embedding):
                self.spectral_norm(module)
        return model


OURS = SpectralNorm("ours", snorm_triton.spectral_norm, snorm_triton.remove_spectral_norm)
TORCH = SpectralNorm("torch", torch_spectral_norm, remove_parametrizations)


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("compatibility")
    if path is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Table(path))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "sn" not in metafunc.fixturenames:
        return
    (mark,) = metafunc.definition.iter_markers(PROMISE)
    spectral_norms: list[Any] = [OURS]
    if "fails" in mark.kwargs:
        claim = pytest.mark.xfail(raises=mark.kwargs["raises"], strict=True)
        spectral_norms.append(pytest.param(TORCH, marks=claim))
    elif "lacks" not in mark.kwargs:
        spectral_norms.append(TORCH)
    metafunc.parametrize("sn", spectral_norms, ids=["ours", "torch"][: len(spectral_norms)])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        mark = item.get_closest_marker(PROMISE)
        if mark is not None:
            stock = mark.kwargs.get("fails") or mark.kwargs.get("lacks") or "works"
            section = (item.getparent(pytest.Module).obj.__doc__ or "").strip().splitlines()[0]
            test = item.nodeid.partition("[")[0]
            file, line, _ = item.location  # whatever order they run in
            row = {"position": [file, line], "section": section, "test": test}
            item.user_properties.append((PROMISE, {**row, "feature": mark.args[0], "stock": stock}))


class Table:
    """Gathers the promises of a run, and writes them down where all were kept."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, dict[str, Any]] = {}
        self.broken: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        row = dict(report.user_properties).get(PROMISE)
        if row is None:
            return
        if report.failed:
            self.broken.append(report.nodeid)
        elif report.when == "call" and (report.passed or hasattr(report, "wasxfail")):
            self.rows[row["test"]] = row

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.broken or not self.rows:
            session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED
        else:
            self.path.write_text(self.text())

    @pytest.hookimpl(trylast=True)  # what failed, and why, comes before
    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self.broken or not self.rows:
            which = ": " + ", ".join(self.broken) if self.broken else " or ran"
            terminalreporter.line(
                f"{self.path} was not written: not every promise was kept{which}", red=True
            )

    def text(self) -> str:
        lines = [
            "# Compatibility",
            "",
            "What users do with a normalized model: with "
            "`torch.nn.utils.parametrizations.spectral_norm` of torch "
            f"{torch.__version__.partition('+')[0]}, and with ours. Every row is a test of that "
            "name; where torch's fails, the test demands that too. `make compatibility` writes "
            "this page.",
        ]
        section = None
        for row in sorted(self.rows.values(), key=lambda row: row["position"]):
            if row["section"] != section:
                section = row["section"]
                lines += ["", f"## {section.rstrip('.')}", ""]
                lines += ["| what a user does | torch | ours | test |", "| --- | --- | --- | --- |"]
            file, _, name = row["test"].partition("::")
            test = f"`{Path(file).name}::{name}`"
            lines.append(f"| {row['feature']} | {row['stock']} | works | {test} |")
        lines += [
            "",
            "## Not yet",
            "",
            "| what a user does | torch | ours |",
            "| --- | --- | --- |",
        ]
        lines += [f"| {feature} | {stock} | {ours} |" for feature, stock, ours in NOT_YET]
        return "\n".join(lines) + "\n"
