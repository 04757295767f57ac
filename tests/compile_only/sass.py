"""How wide the loads and stores of a cubin are, which should be wider, and what its loops spill."""

from __future__ import annotations

import ast
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import triton

import snorm_triton

KERNELS = Path(snorm_triton.__file__).parent / "kernels"
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
WIDEST = 16  # bytes of one access by a thread
MATRICES = {"weight_ptr", "grad_ptr", "out_ptr"}  # what has as many elements as the weight
WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}


class Access(NamedTuple):
    """A load or store instruction of global memory, predicated or not."""

    direction: str  # "load" or "store"
    width: int  # bytes a thread
    pointers: frozenset[str]  # the names in the kernel that its line of source accesses
    line: str  # of source


def run_tool(tool: str, *options: str, cubin: bytes) -> str:
    """What one of the CUDA tools in Triton's wheel says of a cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(TOOLS / tool), *options, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def global_accesses(cubin: bytes) -> list[Access]:
    """Every global load and store of the kernel, by the line information in the cubin."""
    accesses, pointers, place = [], frozenset[str](), ""
    for line in run_tool("nvdisasm", "-g", "-c", "-ndf", cubin=cubin).splitlines():
        if source := re.search(r'//## File "([^"]+)", line (\d+)', line):
            name = Path(source[1]).name
            pointers = accessed_pointers(name).get(int(source[2]), frozenset())
            place = f"{name}:{source[2]}"
        elif found := re.search(r"\b(LDG|LDGSTS|STG)((?:\.\w+)*)\s", line):
            width = next((WIDTHS[x] for x in found[2].split(".") if x in WIDTHS), 4)
            direction = "store" if found[1] == "STG" else "load"
            accesses.append(Access(direction, width, pointers, place))
    return accesses


def spills_in_loops(cubin: bytes) -> int:
    """Accesses of the stack between a branch backwards and where it goes; all, if there is none.

    Where registers are few, ptxas puts a value or two away before a loop and takes them back after
    it, which costs nothing.
    """
    code = run_tool("cuobjdump", "-sass", cubin=cubin)
    found = re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", code, re.MULTILINE)
    instructions = [(int(address, 16), text) for address, text in found]
    branches = [(at, re.search(r"\bBRA\b.* 0x([0-9a-f]+)", text)) for at, text in instructions]
    targets = [(at, int(branch[1], 16)) for at, branch in branches if branch]
    loops = [range(to, at) for at, to in targets if to < at]
    if not instructions:
        raise RuntimeError("cuobjdump -sass printed no instruction")
    stack = [at for at, text in instructions if re.search(r"\b(LDL|STL)\b", text)]
    return sum(any(at in loop for loop in loops) for at in stack) if loops else len(stack)


@lru_cache
def accessed_pointers(name: str) -> dict[int, frozenset[str]]:
    """The names that tl.load and tl.store take on each line of a kernel file."""
    path = KERNELS / name
    found: dict[int, frozenset[str]] = {}
    for node in ast.walk(ast.parse(path.read_text())) if path.exists() else ():
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("tl.load", "tl.store"):
            base = next(x.id for x in ast.walk(node.args[0]) if isinstance(x, ast.Name))
            for line in range(node.lineno, (node.end_lineno or node.lineno) + 1):
                found[line] = found.get(line, frozenset()) | {base}
    return found


def summary(accesses: list[Access]) -> str:
    """How many there are of each width in bits, as "loads 8x128 1x32 stores 4x128"."""
    words = []
    for direction in ("load", "store"):
        widths = Counter(8 * x.width for x in accesses if x.direction == direction)
        words += [f"{direction}s"] * bool(widths)
        words += [f"{count}x{width}" for width, count in sorted(widths.items(), reverse=True)]
    return " ".join(words)


def allows_widest(arguments: Mapping[str, Any], itemsize: int) -> bool:
    """Whether a kernel with these arguments can access its matrices 16 bytes at a time.

    It takes a matrix as rows of the first nonzero one of ``numel``, ``columns``, ``Q`` and ``N``:
    where that many elements are a multiple of 16 bytes, every row begins at one. A kernel of many
    layers meets such rows, and others.
    """
    if "LAYERS" in arguments:
        return True
    sizes = (arguments.get(name) for name in ("numel", "columns", "Q", "N"))
    return next(filter(None, sizes), 1) * itemsize % WIDEST == 0


def too_narrow(accesses: list[Access], kernel: Any) -> list[Access]:
    """The accesses of a matrix that take less than 16 bytes, in a kernel that allows them.

    A kernel of many layers compiles a line for each kind of row: one of them must be wide.
    """
    names = kernel.fn.__code__.co_varnames
    of_many = "LAYERS" in names
    # A device function may give the name of a matrix to a vector: the kernel's own names count.
    matrices = MATRICES if of_many else MATRICES.intersection(names)
    found = [x for x in accesses if x.pointers & matrices]
    if matrices and not found:
        raise RuntimeError(f"no line of {kernel.fn.__name__} is known to access {matrices}")
    wide = {x.line for x in found if x.width >= WIDEST} if of_many else set()
    return [x for x in found if x.width < WIDEST and x.line not in wide]
