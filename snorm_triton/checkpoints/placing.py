"""A file that comes into place when it is complete."""

from __future__ import annotations

import glob
import os
import shutil
import stat
from collections.abc import Callable
from contextlib import suppress
from errno import ENOENT
from io import BufferedRandom, BufferedWriter
from pathlib import Path
from secrets import token_hex

try:
    import fcntl
except ImportError:  # on Windows, where nobody can remove a file that another process has open
    fcntl = None  # type: ignore[assignment]


def check_is_file(path: Path) -> None:
    """Raise ValueError for what is there and no regular file, OSError where nothing is there."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError(f"{path} is a folder, a device or a pipe, and not a file")


def check_target(target: Path) -> None:
    """Raise ValueError where a file would replace something else, OSError where none can be."""
    with suppress(FileNotFoundError):
        check_is_file(target)
    folder = _resolve(target).parent
    if not folder.is_dir():
        raise FileNotFoundError(ENOENT, os.strerror(ENOENT), str(folder))


def put_in_place(target: Path, write: Callable[[BufferedWriter], None]) -> None:
    """Write beside ``target``, on the same file system, and rename what is complete.

    What is not complete is removed at once, or after a kill when the same target is written again.
    """
    place = _resolve(target)
    _remove_partial(place)
    partial = place.with_name(f".{place.name}.{token_hex(4)}.partial")
    try:
        with partial.open("xb") as file:
            with suppress(OSError):  # a file system without locks: its partial files are left alone
                _lock(file)
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if place.exists():
            shutil.copymode(place, partial)
        partial.replace(place)
    except OSError as error:
        error.filename = str(target)  # and not a name that nobody has given
        raise
    finally:
        with suppress(OSError):
            partial.unlink()


def put_bytes(target: Path, content: bytes) -> None:
    """Write ``content`` as the file ``target``, which comes into place when it is complete."""

    def write(file: BufferedWriter) -> None:
        file.write(content)

    put_in_place(target, write)


def _resolve(target: Path) -> Path:
    """The path that a link leads to, whether or not it is there: Path.resolve raises on loops."""
    return Path(os.path.realpath(target))


def _remove_partial(place: Path) -> None:
    """Remove the partial files of processes that ended: nobody holds a lock on them."""
    pattern = glob.escape(f".{place.name}.") + "?" * 8 + ".partial"
    for partial in place.parent.glob(pattern):
        with suppress(OSError):
            with partial.open("r+b") as file:
                _lock(file)
            partial.unlink()


def _lock(file: BufferedWriter | BufferedRandom) -> None:
    """Lock a file until its process ends, or raise OSError where another process has done so."""
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
