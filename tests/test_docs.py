"""The examples in the docstrings run as they stand, and print what they say."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import snorm_triton

PACKAGE = Path(snorm_triton.__file__).parent


def documented_modules() -> list[str]:
    """Those with an example."""
    files = [file for file in PACKAGE.rglob("*.py") if ">>> " in file.read_text()]
    parts = [file.relative_to(PACKAGE.parent).with_suffix("").parts for file in files]
    return sorted(".".join(part) for part in parts)


@pytest.mark.parametrize("module", documented_modules())
def test_examples(module: str) -> None:
    # Without the module's own names: an example imports what it uses, as its reader must.
    finder, runner = doctest.DocTestFinder(exclude_empty=True), doctest.DocTestRunner()
    for example in finder.find(importlib.import_module(module), module, globs={}):
        runner.run(example)
    results = runner.summarize()
    assert results.attempted
    assert not results.failed


def test_tab_completion_shows_public_names_alone() -> None:
    for module in ("", ".functional", ".lipschitz", ".distributed"):
        found = importlib.import_module("snorm_triton" + module)
        assert dir(found) == sorted(found.__all__)
