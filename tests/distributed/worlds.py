"""Processes on the CPU that stand for the ranks of a distributed run, kept from test to test."""

import importlib.util
import inspect
import multiprocessing
import pickle
import sys
import tempfile
import traceback
import warnings
from datetime import timedelta
from pathlib import Path

PRELOADED = ["torch.distributed.fsdp", "torch.distributed.tensor", "torch._dynamo", "snorm_triton"]
TIMEOUT = 30  # seconds, for a scenario and for any one communication of it


class World:
    """``size`` ranks; ``run`` gives each of them the same function of a test file."""

    def __init__(self, size):
        self.size = size
        self.ranks = []

    def run(self, scenario, *args):
        """What ``scenario(*args)`` returns on each rank; raises what it raised on the first."""
        if not self.ranks:
            self.start()
        call = pickle.dumps((inspect.getfile(scenario), scenario.__qualname__, args))
        for _, connection in self.ranks:
            connection.send_bytes(call)
        outcomes = []
        for _, connection in self.ranks:
            try:
                if not connection.poll(TIMEOUT + 10):
                    raise TimeoutError(f"a rank does not return from {scenario.__qualname__}")
                outcomes.append(pickle.loads(connection.recv_bytes()))
            except (EOFError, TimeoutError):
                self.stop()
                raise
        errors = [error for _, error in outcomes if error is not None]
        if errors:
            if len(errors) < self.size or len(set(map(type, errors))) > 1:
                self.stop()  # they may be out of step
            raise errors[0]
        return [result for result, _ in outcomes]

    def start(self):
        # One process imports torch; the ranks are forks of it.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self.folder = tempfile.TemporaryDirectory()
        for rank in range(self.size):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=serve, args=(rank, self.size, self.folder.name, theirs), daemon=True
            )
            process.start()
            theirs.close()
            self.ranks.append((process, ours))

    def stop(self):
        for _, connection in self.ranks:
            connection.close()
        for process, _ in self.ranks:
            process.join(3)
            process.kill()
            process.join()
        if self.ranks:
            self.folder.cleanup()
        self.ranks = []


def serve(rank, size, folder, connection):
    """The life of a rank: to run what it is sent until the connection ends."""
    import pytest
    import torch
    import torch._dynamo
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=TIMEOUT),
    )
    while True:
        try:
            file, name, args = pickle.loads(connection.recv_bytes())
        except (EOFError, ConnectionResetError):
            return
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                # torch.compile hides it, but for where it is an error.
                warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a")
                torch.manual_seed(0)
                torch._dynamo.reset()  # what was compiled for others counts towards a limit
                outcome = getattr(module_of(file), name)(*args), None
        except (Exception, pytest.fail.Exception) as error:
            error.add_note(f"on rank {rank}:\n{''.join(traceback.format_exc())}")
            outcome = None, error
        connection.send_bytes(pickled(outcome))


def module_of(file):
    """A test file, which is no module that could be imported by its name."""
    name = f"scenarios_of_{Path(file).stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def pickled(outcome):
    try:
        return pickle.dumps(outcome)
    except Exception:
        result, error = outcome
        text = f"no pickle of {result!r}" if error is None else "\n".join(error.__notes__)
        return pickle.dumps((None, RuntimeError(text)))
