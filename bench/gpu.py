"""Tests and benchmarks on a GPU, step by step: whatever fails, the others leave what they measured.

python -m bench.gpu RESULTS                        all steps, into one folder
python -m bench.gpu RESULTS --steps tests layers   some of them
python -m bench.gpu --list                         what they are
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from threading import Thread
from time import monotonic
from typing import IO, Any

from bench.steps import LOG, STEPS, Settings, Step, all_steps, outcome

ROOT = Path(__file__).parents[1]
GRACE = 10  # seconds that an interrupted step has to write what it knows
Write = Callable[[bytes], None]


class Log:
    """Whatever is said or printed, at once in the file and on the screen."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file

    def write(self, output: bytes) -> None:
        self.file.write(output)
        with suppress(OSError):  # who reads the screen may be gone
            sys.stdout.buffer.write(output)
            sys.stdout.buffer.flush()

    def say(self, line: str) -> None:
        self.write(f"{line}\n".encode())


def started(command: list[str]) -> subprocess.Popen[bytes]:
    """In a process group of its own, which can be ended as a whole."""
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        process_group=0,
    )


def signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def interrupt(process: subprocess.Popen[bytes]) -> None:
    """pytest writes its results when it is interrupted."""
    signal_group(process, signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        process.wait(GRACE)


def copy_output(process: subprocess.Popen[bytes], write: Write) -> None:
    with process.stdout as pipe:
        while output := os.read(pipe.fileno(), 65536):
            write(output)


def run(command: list[str], limit: float, write: Write) -> int | str:
    """The exit status, or why there is none; none of its children is left."""
    try:
        process = started(command)
    except OSError as error:
        return f"did not start: {error}"
    reader = Thread(target=copy_output, args=(process, write), daemon=True)
    try:
        reader.start()
        status: int | str = process.wait(limit)
    except subprocess.TimeoutExpired:
        interrupt(process)
        status = f"killed after {limit:g} s"
    except KeyboardInterrupt:
        interrupt(process)
        raise
    finally:
        signal_group(process, signal.SIGKILL)
        process.wait()
        reader.join(GRACE)
    if isinstance(status, int) and status < 0:
        return f"ended by {signal.Signals(-status).name}"
    return status


def failed(status: int | str) -> bool:
    return status != 0 and "not there" not in str(status)


class Runner:
    def __init__(self, results: Path, log: Log, about: dict[str, Any], limit: float | None) -> None:
        self.results, self.log, self.about, self.limit = results, log, about, limit
        self.outcomes: list[tuple[Step, int | str, float]] = []

    def step(self, step: Step) -> None:
        limit = min(step.limit, self.limit or step.limit)
        self.log.say(f"\n=== {step.name}: {step.shows}; at most {limit:g} s\n{printed(step)}")
        if step.writes:  # what an earlier run left there is not of this one
            (self.results / step.writes).unlink(missing_ok=True)
        start, begun = datetime.now(), monotonic()
        status: int | str = "interrupted"
        try:
            if step.program and not shutil.which(step.program):
                status = f"{step.program} is not there"
            else:
                status = run(step.command, limit, self.log.write)
        finally:
            self.record(step, status, start, monotonic() - begun)

    def record(self, step: Step, status: int | str, start: datetime, seconds: float) -> None:
        self.outcomes.append((step, status, seconds))
        self.log.say(f"=== {step.name}: {outcome(status)}, {seconds:.1f} s")
        entry = {"step": step.name, "command": printed(step), "status": status}
        line = {**entry, "seconds": round(seconds, 1), "datetime": start.isoformat(), **self.about}
        with (self.results / STEPS).open("a") as file:
            file.write(json.dumps(line) + "\n")

    def summary(self) -> None:
        self.log.say("")
        for step, status, seconds in self.outcomes:
            self.log.say(f"  {step.name:16}{seconds:8.1f} s  {outcome(status)}")
        sizes = [f"{file.name} {file.stat().st_size:,}" for file in sorted(self.results.iterdir())]
        self.log.say(f"  {self.results} holds, in bytes: {', '.join(sizes)}")


def printed(step: Step) -> str:
    return shlex.join(step.command)


def folder(path: Path) -> Path:
    """It, made where it is missing; exits where nothing can be written there."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with (path / LOG).open("a"):
            return path.resolve()
    except OSError as error:
        sys.exit(f"RESULTS must be a folder that can be written to, got {path}: {error.strerror}")


def conditions(device: str | None, log: IO[bytes]) -> dict[str, Any]:
    """Asked for in another process: this one imports nothing that a fault could break."""
    command = [sys.executable, "-m", "bench.conditions", *(["--device", device] if device else [])]
    try:
        asked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        error = asked.stderr.strip() or f"{shlex.join(command)} ended with {asked.returncode}"
    except subprocess.TimeoutExpired:
        asked, error = None, f"{shlex.join(command)} did not answer in 120 s"
    if asked is None or asked.returncode:
        log.write(f"{error}\n".encode())
        sys.exit(error)
    return json.loads(asked.stdout.splitlines()[-1])  # whatever an import may print


def parse(arguments: list[str]) -> argparse.Namespace:
    names = [step.name for step in all_steps(Settings(Path()))]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="?", default=Path(".benchmarks/gpu"))
    parser.add_argument("--steps", nargs="+", choices=names, default=names, metavar="STEP")
    parser.add_argument("--list", action="store_true", help="print the steps and run none")
    parser.add_argument("--device", help="cpu: rehearse without a GPU, the kernels interpreted")
    parser.add_argument("--seconds", type=float, help="for each benchmark")
    parser.add_argument("-k", dest="select", help="which tests and benchmarks, as pytest's -k")
    parser.add_argument("--limit", type=float, help="seconds that no step may exceed")
    return parser.parse_args(arguments)


def main() -> int:
    arguments = parse(sys.argv[1:])
    results = arguments.results if arguments.list else folder(arguments.results)
    settings = Settings(results, arguments.device, arguments.seconds, arguments.select)
    chosen = [step for step in all_steps(settings) if step.name in arguments.steps]
    if arguments.list:
        for step in chosen:
            print(f"{step.name}: {step.shows}; at most {step.limit} s\n  {printed(step)}")
        return 0
    # In the background a shell has interrupts ignored, by steps too, which end by them at a limit.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        with (results / LOG).open("ab", buffering=0) as file:
            about = conditions(arguments.device, file)
            runner = Runner(results, Log(file), about, arguments.limit)
            for step in chosen:
                runner.step(step)
            runner.summary()
    except KeyboardInterrupt:
        print(f"interrupted; what was measured is in {results}", file=sys.stderr)
        return 130
    return int(any(failed(status) for _, status, _ in runner.outcomes))


if __name__ == "__main__":
    sys.exit(main())
