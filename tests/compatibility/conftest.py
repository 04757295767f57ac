"""What users do with a normalized model, tried on ours and on both of torch's own norms.

A test of a promise asks for `sn`, a spectral norm, `wn`, a weight norm, or `oo`, an orthogonal
parametrization, and runs with each. Its mark says what the user does, and what becomes of it with
the `hook`, with the `parametrization`, or with both of `torch`: nothing where that works as well; a
few words and the exception where it fails; the words alone where there is nothing to try. But for
the last, the run fails where that is untrue. `--compatibility FILE` writes the table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import snorm_triton

PROMISE = "promise"
WORKS = ("works", None)
# Promised, and not kept yet or not tried: these stand in the table, without a test that ran.
NOT_YET = [
    ("DataParallel over several GPUs", "not tried", "not tried"),
]


class Keys(NamedTuple):
    """Where a layer and its state dict have the weight before normalization, u and v."""

    original: str
    u: str
    v: str


@dataclass(frozen=True)
class SpectralNorm:
    """A spectral norm, by the calls and the values that each has."""

    name: str
    spectral_norm: Callable[..., Any]
    remove: Callable[..., Any]
    keys: Keys

    @property
    def is_hook(self) -> bool:
        return self.name == "hook"

    def apply(self, model: nn.Module) -> nn.Module:
        """Normalize the layers of a model."""
        for module in list(model.modules()):
            if isinstance(module, nn.Linear | nn.modules.conv._ConvNd | nn.Embedding):
                self.spectral_norm(module)
        return model

    def original(self, layer: nn.Module) -> nn.Parameter:
        return attrgetter(self.keys.original)(layer)

    def vectors(self, layer: nn.Module) -> tuple[Tensor, Tensor]:
        return attrgetter(self.keys.u, self.keys.v)(layer)

    def weight(self, layer: nn.Module) -> Tensor:
        """What one more access gives; the hook computes it in a forward alone, so that is run."""
        if self.is_hook:
            layer(torch.zeros_like(self.original(layer)[:1]))
        return layer.weight


PARAMETRIZED = Keys(
    "parametrizations.weight.original",
    "parametrizations.weight.0._u",
    "parametrizations.weight.0._v",
)
OURS = SpectralNorm(
    "ours", snorm_triton.spectral_norm, snorm_triton.remove_spectral_norm, PARAMETRIZED
)
OF_TORCH = [  # in the order of the table
    SpectralNorm(
        "hook",
        nn.utils.spectral_norm,
        nn.utils.remove_spectral_norm,
        Keys("weight_orig", "weight_u", "weight_v"),
    ),
    SpectralNorm(
        "parametrization",
        parametrizations.spectral_norm,
        parametrize.remove_parametrizations,
        PARAMETRIZED,
    ),
]


@dataclass(frozen=True)
class WeightNorm:
    """A weight norm, by its call and the names of g and v."""

    name: str
    weight_norm: Callable[..., Any]
    keys: tuple[str, str]

    def weight(self, layer: nn.Module) -> Tensor:
        """What one more access gives; the hook computes it in a forward alone, so that is run."""
        if self.name == "hook":
            layer(torch.zeros_like(layer.get_parameter("weight_v")[:1]))
        return layer.weight


@dataclass(frozen=True)
class Orthogonal:
    """An orthogonal parametrization, by its call."""

    name: str
    orthogonal: Callable[..., Any]


SCALED = ("parametrizations.weight.original0", "parametrizations.weight.original1")
# By the fixture that a test asks for: ours and those of torch, in the order of the table.
NORMS: dict[str, list[Any]] = {
    "sn": [OURS, *OF_TORCH],
    "wn": [
        WeightNorm("ours", snorm_triton.weight_norm, SCALED),
        WeightNorm("hook", nn.utils.weight_norm, ("weight_g", "weight_v")),
        WeightNorm("parametrization", parametrizations.weight_norm, SCALED),
    ],
    "oo": [
        Orthogonal("ours", snorm_triton.orthogonal),
        Orthogonal("parametrization", parametrizations.orthogonal),
    ],
}


def claim(mark: pytest.Mark, name: str) -> tuple[str, type[Exception] | None]:
    """What becomes of a promise with one of torch's, and the exception where it fails."""
    claimed = mark.kwargs.get(name, mark.kwargs.get("torch", WORKS))
    return (claimed, None) if isinstance(claimed, str) else claimed


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("compatibility")
    if path is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Table(path))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    asked = [name for name in NORMS if name in metafunc.fixturenames]
    if not asked:
        return
    (mark,) = metafunc.definition.iter_markers(PROMISE)
    ours, *of_torch = NORMS[asked[0]]
    norms = [pytest.param(ours, id=ours.name)]
    for each in of_torch:
        outcome, raises = claim(mark, each.name)
        if raises is not None:
            fails = pytest.mark.xfail(raises=raises, reason=outcome, strict=True)
            norms.append(pytest.param(each, id=each.name, marks=fails))
        elif (outcome, raises) == WORKS:
            norms.append(pytest.param(each, id=each.name))
    metafunc.parametrize(asked[0], norms)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        mark = item.get_closest_marker(PROMISE)
        if mark is not None:
            section = (item.getparent(pytest.Module).obj.__doc__ or "").strip().splitlines()[0]
            file, line, _ = item.location  # whatever order they run in
            row = {
                "position": [file, line],
                "section": section,
                "test": item.nodeid.partition("[")[0],
                "feature": mark.args[0],
                "of_torch": [claim(mark, each.name)[0] for each in OF_TORCH],
            }
            item.user_properties.append((PROMISE, row))


def table_row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def header(*columns: str) -> list[str]:
    columns = ("what a user does", "torch's hook", "torch's parametrization", *columns)
    return [table_row(*columns), table_row(*["---"] * len(columns))]


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
            "What users do with a normalized model: with the legacy hook of torch "
            f"{torch.__version__.partition('+')[0]}, `torch.nn.utils.spectral_norm`, with its "
            "parametrization, `torch.nn.utils.parametrizations.spectral_norm`, and with ours; "
            "weight norm and orthogonal weights have sections of their own. "
            "Every row is a test of that name, which tries each; where one of torch's fails, the "
            "test demands that too. `make compatibility` writes this page.",
        ]
        section = None
        for row in sorted(self.rows.values(), key=lambda row: row["position"]):
            if row["section"] != section:
                section = row["section"]
                lines += ["", f"## {section.rstrip('.')}", ""]
                lines += header("ours", "test")
            file, _, name = row["test"].partition("::")
            test = f"`{Path(file).name}::{name}`"
            lines.append(table_row(row["feature"], *row["of_torch"], "works", test))
        lines += ["", "## Not yet", "", *header("ours")]
        lines += [table_row(feature, *[theirs] * 2, ours) for feature, theirs, ours in NOT_YET]
        return "\n".join(lines) + "\n"
