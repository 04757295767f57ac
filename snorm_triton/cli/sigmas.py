"""`sigmas`: the singular values of a checkpoint's weights, as a table and a picture."""

import argparse
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..checkpoints.formats import SAFETENSORS, TORCH
from ..checkpoints.placing import check_target, put_in_place
from ..spectra.values import Spectrum, spectrum
from ..spectra.weights import weights_of

PICTURES = (".png", ".svg", ".pdf")
HEADER = ("weight", "shape", "norm", "layout", "raw max", "min", "used max", "min", "rank")
LEFT = 4  # columns of words


def add_to(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    parser = add_parser(
        "sigmas",
        help="the singular values of the weights of a checkpoint, raw and normalized",
        description="Of each weight of two dimensions or more, by singular value decomposition: "
        "the largest and the smallest value, raw and as evaluation uses it, and the stable rank "
        "|W|_F^2 / sigma^2. Takes state dicts, and dicts of them, in the layout of torch's hook, "
        "torch's parametrization, ours, or plain; reads tensors only.",
    )
    parser.add_argument("checkpoint", type=Path, help=".safetensors, or torch's format")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them: .png, .svg or .pdf")
    parser.add_argument(
        "--transposed",
        nargs="+",
        default=[],
        metavar="NAME",
        help="weights without a norm whose outputs are dimension 1, as of ConvTranspose: names, "
        "or patterns such as 'up.*'",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> str | None:
    """Print the table, and draw; a sentence where it cannot be done."""
    source, plot = arguments.checkpoint, arguments.plot
    try:
        if plot is not None:
            _check_plot(plot)
        reader = SAFETENSORS if source.suffix == ".safetensors" else TORCH
        contents = reader.read(source).value
        spectra = _print_table(contents, arguments)
        if plot is not None:
            from ..spectra.picture import draw

            form = plot.suffix.removeprefix(".")
            put_in_place(plot, lambda file: draw(file, form, spectra, source.name))
            print(f"\ndrawn in {plot}")
    except ValueError as error:
        return str(error)
    except RecursionError:
        return f"{source} holds dicts too deep in one another"
    except OSError as error:
        return f"{error.filename or source}: {error.strerror}"
    return None


def _print_table(contents: Any, arguments: argparse.Namespace) -> list[Spectrum]:
    """A line for each weight, as it comes; read twice, so that one at a time is held in float64."""
    names = [weight.name for weight in weights_of(contents, arguments.transposed)]
    if not names:
        raise ValueError(f"{arguments.checkpoint} holds no weight of two dimensions or more")
    width = max(len(name) for name in (HEADER[0], *names))
    print(_line(HEADER, width))
    spectra = []
    for weight in weights_of(contents, arguments.transposed):
        spectra.append(spectrum(weight))
        print(_line(_cells(spectra[-1]), width), flush=True)
    return spectra


def _check_plot(plot: Path) -> None:
    if plot.suffix not in PICTURES:
        raise ValueError(f"--plot must end in {', '.join(PICTURES)}, got {plot}")
    if find_spec("matplotlib") is None:
        raise ValueError("--plot needs the package matplotlib: pip install matplotlib")
    check_target(plot)


def _cells(found: Spectrum) -> tuple[str, ...]:
    shape = "x".join(map(str, found.shape))
    values = [f"{found.raw[0]:.4g}", f"{found.raw[-1]:.3g}"]
    used = found.normalized
    values += ["not known", ""] if used is None else [f"{used[0]:.4f}", f"{used[-1]:.3g}"]
    return found.name, shape, found.norm, found.layout, *values, f"{found.stable_rank:.1f}"


def _line(cells: tuple[str, ...], width: int) -> str:
    widths = (width, 16, 8, 15, 9, 9, 9, 9, 6)
    padded = [
        cell.ljust(size) if place < LEFT else cell.rjust(size)
        for place, (cell, size) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(padded).rstrip()
