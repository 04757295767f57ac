"""What MkDocs makes besides pages: the tutorial as a notebook."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

TUTORIAL = Path(__file__).parent / "tutorial.md"
NOTEBOOK = "tutorial.ipynb"
OF_THE_SITE = re.compile(r" ?<!-- site -->.*?<!-- end -->|\{ \w+=\d+ \}", re.S)


def on_files(files: Any, config: Any) -> Any:
    """Add the notebook to what the site holds."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, NOTEBOOK, content=notebook(TUTORIAL.read_text())))
    return files


def notebook(page: str) -> str:
    """The Markdown of a page as a Jupyter notebook: its Python blocks are cells that run."""
    cells = []
    for index, part in enumerate(re.split(r"^```python\n(.*?)^```\n", page, flags=re.M | re.S)):
        is_code = index % 2 == 1
        text = part if is_code else OF_THE_SITE.sub("", part)
        if text.strip():
            cell = {"cell_type": "markdown", "id": f"cell-{index}", "metadata": {}}
            if is_code:
                cell |= {"cell_type": "code", "execution_count": None, "outputs": []}
            cells.append(cell | {"source": text.strip().splitlines(keepends=True)})
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    about = {"metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps({"cells": cells, **about}, indent=1) + "\n"
