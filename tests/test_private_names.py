"""A torch without one of its private names: import and eager training go on."""

import json
import subprocess
import sys

# Where torch itself does without, in what the script does.
NAMES = [
    "torch._C._current_graph_task_id",
    "torch._C._autograd._top_saved_tensors_default_hooks",
    "torch._C._is_tracing",
    "torch._C._are_functorch_transforms_active",
    "torch._C._DisableFuncTorch",
    "torch._C._functorch.is_functorch_wrapped_tensor",
    "torch._C._functorch.is_batchedtensor",
    "torch._C._functorch.is_legacy_batchedtensor",
    "torch._C._functorch.maybe_get_level",
    "torch._C._functorch.maybe_get_bdim",
    "torch._C._functorch.get_unwrapped",
    "torch._foreach_copy_",
    "torch._foreach_add_",
    "torch.autograd.forward_ad._current_level",
    "torch.autograd.function._SingleLevelFunction",
    "torch.autograd.Function._compiled_autograd_key",
    "torch.compiler._is_exporting_flag",
    "torch.multiprocessing.reductions.StorageWeakRef",
    "torch.nn.utils.parametrizations._Orthogonal",
    "torch.nn.utils.parametrizations._SpectralNorm",
    "torch.nn.utils.parametrize._cache",
    "torch.utils._python_dispatch._disable_current_modes",
    "torch.utils._python_dispatch._get_current_dispatch_mode",
    "torch.utils.checkpoint._CheckpointFrame",
    "torch.utils.checkpoint._CachingTorchDispatchMode",
    "torch.utils.checkpoint._CachedTorchDispatchMode",
]
# torch's own training, or what it imports, needs these: they are hidden while we are imported.
HIDDEN = {
    "torch._C._functorch.get_unwrapped",
    "torch._C._functorch.is_batchedtensor",
    "torch._foreach_add_",
    "torch.compiler._is_exporting_flag",
    "torch.multiprocessing.reductions.StorageWeakRef",
    "torch.utils._python_dispatch._disable_current_modes",
    "torch.utils.checkpoint._CachedTorchDispatchMode",
    "torch.utils.checkpoint._CachingTorchDispatchMode",
    "torch._C._current_graph_task_id",
    "torch._C._autograd._top_saved_tensors_default_hooks",
    "torch._C._is_tracing",
    "torch._C._are_functorch_transforms_active",
    "torch.autograd.forward_ad._current_level",
    "torch.autograd.function._SingleLevelFunction",
    "torch.nn.utils.parametrizations._SpectralNorm",
    "torch.nn.utils.parametrize._cache",
    "torch.utils._python_dispatch._get_current_dispatch_mode",
}
# torch is imported once, before anything is computed; each name is missing in a process of its own.
SCRIPT = """
import importlib, io, json, os, sys, tempfile, traceback, warnings

import torch
import torch.nn.utils.parametrizations, torch.utils.checkpoint
import torch.multiprocessing.reductions, torch.utils._python_dispatch
import torch.autograd.forward_ad



def work(path, is_hidden):
    owner_path, _, name = path.rpartition(".")
    try:
        owner = importlib.import_module(owner_path)
    except ImportError:
        outer, _, inner = owner_path.rpartition(".")
        owner = getattr(importlib.import_module(outer), inner)
    removed = getattr(owner, name)
    is_own = name in vars(owner)
    if is_own:
        delattr(owner, name)
    warnings.simplefilter("ignore")
    import snorm_triton
    if is_hidden:
        setattr(owner, name, removed)

    for policy in ("access", "update"):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2))
        snorm_triton.apply_spectral_norm(model, power_iter=policy, backend="torch")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, foreach=False)
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.randn(4, 6)).square().mean().backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            output = model(torch.ones(1, 6))
        print(f"{output.sum().item():.5f}")
        print(*[f"{sigma.item():.5f}" for sigma in snorm_triton.sigmas(model).values()])


results = {}
for path, is_hidden in json.loads(sys.argv[1]).items():
    with tempfile.TemporaryFile("w+") as file:
        child = os.fork()
        if child == 0:
            sys.stdout = file
            try:
                work(path, is_hidden)
            except BaseException:
                traceback.print_exc(file=file)
            file.flush()
            os._exit(0)
        os.waitpid(child, 0)
        file.seek(0)
        results[path] = file.read()
print(json.dumps(results))
"""
NOTHING = "torch.rand"  # which none of it needs


def test_import_and_eager_training_work_without_any_one_of_them() -> None:
    names = {path: path in HIDDEN for path in (NOTHING, *NAMES)}
    command = [sys.executable, "-c", SCRIPT, json.dumps(names)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert finished.returncode == 0, finished.stderr
    outputs = json.loads(finished.stdout)
    expected = outputs[NOTHING]
    assert len([float(number) for number in expected.split()]) == 2 * 3  # an output, two sigmas
    assert {path: output for path, output in outputs.items() if output != expected} == {}
