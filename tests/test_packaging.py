"""What an import brings along, what it must not, and what the built distribution holds."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest

import snorm_triton

PUBLIC_NAMES = {
    "OrthogonalParametrization",
    "SNDCGANDiscriminator",
    "SNDCGANGenerator",
    "SNResNetDiscriminator",
    "SNResNetGenerator",
    "SpectralNormParametrization",
    "SpectralNormWrapper",
    "WeightNormParametrization",
    "__version__",
    "apply_orthogonal",
    "apply_spectral_norm",
    "apply_weight_norm",
    "backend_report",
    "checkpoint_contexts",
    "convert_spectral_norm",
    "convert_state_dict",
    "convert_weight_norm",
    "fold",
    "functional",
    "left_out",
    "lipschitz",
    "log_sigmas",
    "orthogonal",
    "patch_torch",
    "refresh_spectral_norm",
    "remove_orthogonal",
    "remove_spectral_norm",
    "remove_weight_norm",
    "sigmas",
    "spectral_norm",
    "spectral_penalty",
    "weight_norm",
}

# The folder that holds snorm_triton: the checkout's root, or site-packages.
INSTALL_ROOT = Path(snorm_triton.__file__).resolve().parent.parent

NORMALIZE_A_LAYER = """
import torch, snorm_triton
torch.manual_seed(0)
layer = snorm_triton.spectral_norm(torch.nn.Linear(4, 3), n_power_iterations=50)
assert abs(torch.linalg.matrix_norm(layer.weight, 2).item() - 1) < 1e-4
"""


def run_python(code: str, path: list[Path], cwd: Path) -> str:
    """What `code` prints in a fresh interpreter that sees `path` first, and no other checkout."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    finished = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.strip()


def distribution() -> metadata.Distribution:
    try:
        return metadata.distribution("snorm-triton")
    except metadata.PackageNotFoundError:
        pytest.skip("snorm-triton is on the path but not installed")


def test_public_names_are_pinned_and_resolve() -> None:
    assert set(snorm_triton.__all__) == PUBLIC_NAMES
    assert len(snorm_triton.__all__) == len(PUBLIC_NAMES)
    missing = [name for name in snorm_triton.__all__ if not hasattr(snorm_triton, name)]
    assert not missing


def test_works_without_triton(tmp_path: Path) -> None:
    # None in sys.modules is how Python says that a module cannot be found.
    code = "import sys; sys.modules['triton'] = None" + NORMALIZE_A_LAYER
    run_python(code, [INSTALL_ROOT], tmp_path)


@pytest.mark.parametrize(
    ("triton", "reason"),
    [
        ("raise ImportError('libcuda.so is missing')", "ImportError: libcuda.so is missing"),
        ("__version__ = '2.0'", "AttributeError: .*knobs"),
    ],
    ids=["broken", "too old"],
)
def test_a_triton_that_cannot_be_used_is_a_reason(tmp_path: Path, triton: str, reason: str) -> None:
    (tmp_path / "triton.py").write_text(triton)
    code = f"""
import re, torch
import snorm_triton
from snorm_triton.ops import dispatch
choice = dispatch._select(torch.device("cuda"), torch.float32, False, "auto", "")
assert choice.backend == "torch" and re.search({reason!r}, choice.reason), choice
layer = torch.nn.Linear(3, 2)
try:
    snorm_triton.spectral_norm(layer, backend="triton")
except ValueError as error:
    assert re.search({reason!r}, str(error)), error
else:
    raise AssertionError
assert not hasattr(layer, "parametrizations")
"""
    run_python(code + NORMALIZE_A_LAYER, [tmp_path, INSTALL_ROOT], tmp_path)


def test_import_is_lean(tmp_path: Path) -> None:
    code = """
import sys, torch
before = set(sys.modules)
import snorm_triton
heavy = {"triton", "matplotlib", "sklearn", "tqdm", "torch._dynamo", "torch._inductor"}
print(*sorted(heavy & (set(sys.modules) - before)))
"""
    assert run_python(code, [INSTALL_ROOT], tmp_path) == ""


@pytest.mark.parametrize("ours_first", [False, True], ids=["foreign-first", "ours-first"])
def test_foreign_kernels_distribution_is_not_shadowed(tmp_path: Path, ours_first: bool) -> None:
    foreign = tmp_path / "site"
    (foreign / "kernels").mkdir(parents=True)
    (foreign / "kernels" / "__init__.py").write_text("ORIGIN = 'foreign'\n")
    code = "import kernels; assert kernels.ORIGIN == 'foreign', kernels" + NORMALIZE_A_LAYER
    if find_spec("triton") is not None:
        code += "import snorm_triton.kernels.power_step"
    path = [INSTALL_ROOT, foreign] if ours_first else [foreign, INSTALL_ROOT]
    run_python(code, path, tmp_path)


def test_version_is_the_distributions() -> None:
    assert snorm_triton.__version__ == distribution().version


def test_versions_agree() -> None:
    root = Path(__file__).parents[1]
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert project["version"] == snorm_triton.__version__
    citation = root / "CITATION.cff"
    if citation.exists():  # not beside the tests of an installed wheel
        assert f"\nversion: {project['version']}\n" in citation.read_text()
        assert f"\n## [{project['version']}]" in (root / "CHANGELOG.md").read_text()


def test_wheel_holds_the_kernels_and_no_top_level_kernels() -> None:
    record = distribution().read_text("RECORD") or ""
    files = {line.split(",")[0] for line in record.splitlines()}
    if "snorm_triton/__init__.py" not in files:
        pytest.skip("an editable install records no sources")
    assert {"snorm_triton/py.typed", "snorm_triton/kernels/power_step.py"} <= files
    top_level = {Path(file).parts[0] for file in files}
    assert {name for name in top_level if not name.endswith(".dist-info")} == {"snorm_triton"}
