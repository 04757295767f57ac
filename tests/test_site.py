"""Every page of the site: its Python runs from top to bottom, and so do its commands."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from snorm_triton.cli import main as command_line

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"^(?P<indent> *)```(?P<language>\w+)\n(?P<code>.*?)^ *```$", re.M | re.S)
# What a reader waits for: fewer steps tell as well whether it runs.
SHORTER = {"steps = 1500\n": "steps = 3\n", "range(200)": "range(50)"}
NOT_RUN = {"console", "diff", "text"}


def pages() -> list[Path]:
    """Those that hold code; the measured results are tables."""
    return [
        page
        for page in sorted(DOCS.rglob("*.md"))
        if "results" not in page.parts and "```" in page.read_text()
    ]


def identify(page: Path) -> str:
    return str(page.relative_to(DOCS).with_suffix(""))


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder to write to, and a world of one rank, as torchrun has it."""
    plt = pytest.importorskip("matplotlib.pyplot", reason="the demo extra is not installed")
    plt.switch_backend("Agg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()
    plt.close("all")
    torch.compiler.reset()


@pytest.mark.parametrize("page", pages(), ids=identify)
@pytest.mark.usefixtures("alone")
@pytest.mark.filterwarnings(
    "ignore:.*(weight_norm|spectral_norm).* is deprecated:FutureWarning",
    "ignore:.*_all_gather_base:UserWarning",
)
def test_code_runs(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = page.read_text()
    names: dict[str, object] = {"__name__": page.stem}
    for block in BLOCK.finditer(text):
        code = textwrap.dedent(block["code"])
        if block["language"] == "python":
            for long, short in SHORTER.items():
                code = code.replace(long, short)
            lines_before = text.count("\n", 0, block.start("code"))
            exec(compile("\n" * lines_before + code, page, "exec"), names)
        elif block["language"] == "bash":
            for line in code.splitlines():
                assert line.startswith("python -m snorm_triton ")
                assert command_line.main(shlex.split(line)[3:]) == 0
        else:
            assert block["language"] in NOT_RUN


def test_every_block_says_its_language() -> None:
    for page in pages():
        fences = re.findall(r"^ *```(\w*)$", page.read_text(), re.M)
        assert all(fences[::2]), page
        assert not any(fences[1::2]), page


def test_the_tutorial_is_a_notebook_too() -> None:
    spec = importlib.util.spec_from_file_location("hooks", DOCS / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    page = hooks.TUTORIAL.read_text()
    cells = json.loads(hooks.notebook(page))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    blocks = [block["code"].strip() for block in BLOCK.finditer(page)]
    assert code == blocks
    assert len({cell["id"] for cell in cells}) == len(cells) > 2 * len(code) - 1
    prose = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] != "code")
    assert prose.startswith("# Tutorial")
    assert "<!--" not in prose
    assert "{ width" not in prose
