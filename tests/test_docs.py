"""The examples in the docstrings run and print what they say."""

import doctest
import importlib

import pytest
import torch

import snorm_triton

MODULES = [
    "snorm_triton.api.orthogonal",
    "snorm_triton.api.spectral_norm",
    "snorm_triton.api.spectral_penalty",
    "snorm_triton.api.weight_norm",
    "snorm_triton.checkpoints.state_dicts",
    "snorm_triton.lipschitz.bound",
    "snorm_triton.lipschitz.containers",
    "snorm_triton.lipschitz.model",
    "snorm_triton.lipschitz.norm",
    "snorm_triton.modules.conversion",
    "snorm_triton.functional",
    "snorm_triton.modules.folding",
    "snorm_triton.modules.torch_patch",
    "snorm_triton.ops.convolution",
    "snorm_triton.ops.recomputation",
    "snorm_triton.reports",
    "snorm_triton.api.whole_models",
    "snorm_triton.selection",
    "snorm_triton.modules.spectral_norm",
    "snorm_triton.modules.weight_norm_conversion",
    "snorm_triton.models.sn_resnet",
    "snorm_triton.models.sn_dcgan",
]


@pytest.mark.parametrize("module", MODULES)
def test_examples(module):
    names = {"torch": torch, "nn": torch.nn, **vars(snorm_triton), **vars(snorm_triton.lipschitz)}
    failed, attempted = doctest.testmod(importlib.import_module(module), extraglobs=names)
    assert attempted
    assert not failed
