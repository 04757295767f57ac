"""What becomes of a module with a weight norm, and of a model of such."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils import weight_norm as torchs_hook

from snorm_triton import (
    WeightNormParametrization,
    apply_spectral_norm,
    apply_weight_norm,
    backend_report,
    convert_state_dict,
    convert_weight_norm,
    fold,
    patch_torch,
    remove_weight_norm,
    spectral_norm,
    weight_norm,
)
from snorm_triton.checkpoints.files import convert_file


def hooked(module, *args, **options):
    with warnings.catch_warnings(action="ignore"):  # it is deprecated
        return torchs_hook(module, *args, **options)


def vocoder():
    return nn.Sequential(
        nn.Conv1d(8, 6, 3, padding=1),
        nn.LeakyReLU(),
        nn.ConvTranspose1d(6, 4, 4, 2, 1),
        nn.Sequential(nn.Conv1d(4, 4, 3, padding=1), nn.LeakyReLU()),
        nn.Conv1d(4, 1, 7, padding=3),
    )


def step(model, x):
    """Outputs and gradients of a step of training."""
    output = model(x)
    grads = torch.autograd.grad(output.square().mean(), list(model.parameters()))
    return [output.detach(), *grads]


@pytest.mark.parametrize("foreach", [False, True])
def test_a_model_trains_as_torchs(foreach, backend):
    torch.manual_seed(0)
    ours = vocoder()
    theirs = copy.deepcopy(ours)
    apply_weight_norm(ours, foreach=foreach, backend=backend)
    for layer in list(theirs.modules()):
        if hasattr(layer, "weight"):
            parametrizations.weight_norm(layer)
    x = torch.randn(2, 8, 5)
    for mine, its in zip(step(ours, x), step(theirs, x), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-6)


def test_what_is_written_before_the_first_forward_stays():
    for write in (
        lambda layer: nn.init.normal_(layer.weight, 0, 0.02),
        lambda layer: layer.weight.data.normal_(0, 0.02),
        lambda layer: nn.init.normal_(layer.weight.data, 0, 0.02),
    ):
        layer = weight_norm(nn.Conv1d(64, 64, 7))
        write(layer)
        output = layer(torch.zeros(1, 64, 9))
        assert output.isfinite().all()
        assert 0.019 < layer.weight.std() < 0.021
        torch.testing.assert_close(layer.weight_g.flatten(), layer.weight_v.flatten(1).norm(dim=1))


def test_a_change_in_place_that_is_lost_is_told():
    layer = weight_norm(nn.Linear(3, 2))
    layer(torch.zeros(1, 3))
    nn.init.zeros_(layer.weight)
    with pytest.warns(UserWarning, match="was changed in place .* module.weight = tensor"):
        layer(torch.zeros(1, 3))


def test_assigning_sets_g_and_v():
    layer = weight_norm(nn.Linear(3, 2))
    with torch.no_grad():
        layer.weight = torch.tensor([[3.0, 4, 0], [0, 0, 0]])
    assert layer.weight_g.tolist() == [[5.0], [0.0]]
    assert layer.weight.tolist() == [[3.0, 4, 0], [0, 0, 0]]


def test_reset_parameters_initializes_the_weight():
    layer = weight_norm(nn.Linear(300, 200))
    with torch.no_grad():
        layer.weight = torch.zeros(200, 300)
    layer.reset_parameters()
    assert 0.9 / 300**0.5 < layer.weight.abs().max() < 1.1 / 300**0.5
    layer(torch.zeros(1, 300))


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "file"]
)
def test_copies_are_independent(copied):
    model = apply_weight_norm(vocoder(), foreach=True)
    x = torch.randn(1, 8, 5)
    expected = model(x)
    twin = copied(model)
    assert torch.equal(twin(x), expected)
    remove_weight_norm(twin, recursive=True)
    torch.testing.assert_close(twin(x), expected)
    with torch.no_grad():
        twin[0].weight.zero_()
    assert torch.equal(model(x), expected)


def test_lazy_modules(lazy_kind):
    torch.manual_seed(1)
    plain = lazy_kind.make()
    lazy = weight_norm(copy.deepcopy(plain))
    inputs = lazy_kind.inputs()
    torch.manual_seed(2)
    expected = plain(*inputs)
    torch.manual_seed(2)
    torch.testing.assert_close(lazy(*inputs), expected)
    assert isinstance(lazy.parametrizations.weight[0], WeightNormParametrization)
    other = weight_norm(lazy_kind.make())
    assert not other.load_state_dict(lazy.state_dict()).missing_keys
    torch.testing.assert_close(other(*inputs), expected)


def test_checkpoints_of_torchs_hook_load():
    torch.manual_seed(3)
    old, new = hooked(nn.Conv1d(4, 3, 5)), weight_norm(nn.Conv1d(4, 3, 5))
    saved = old.state_dict()
    assert {"weight_g", "weight_v"} <= saved.keys()
    assert not new.load_state_dict(saved).missing_keys
    x = torch.randn(2, 4, 9)
    torch.testing.assert_close(new(x), old(x))


def test_a_checkpoint_that_does_not_fit_changes_nothing():
    layer = weight_norm(nn.Linear(4, 3))
    before = copy.deepcopy(layer.state_dict())
    wrong = {**layer.state_dict(), "parametrizations.weight.original0": torch.ones(2, 1)}
    wrong["parametrizations.weight.original1"] = torch.zeros(3, 4)
    with pytest.raises(RuntimeError, match=r"size mismatch for parametrizations.weight.original0"):
        layer.load_state_dict(wrong)
    for key, value in layer.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("to", ["ours", "torch"])
def test_conversion_keeps_parameters_and_outputs(to):
    torch.manual_seed(4)
    model = vocoder()
    hooked(model[0])
    parametrizations.weight_norm(model[2])
    weight_norm(model[4])
    x = torch.randn(1, 8, 5)
    expected = model(x)
    kept = {id(p) for p in model.parameters()}
    assert convert_weight_norm(model, to=to) is model
    assert {id(p) for p in model.parameters()} == kept
    torch.testing.assert_close(model(x), expected)
    kinds = {type(model[i].parametrizations.weight[0]) for i in (0, 2, 4)}
    assert len(kinds) == 1
    assert (kinds == {WeightNormParametrization}) == (to == "ours")
    again = io.BytesIO()
    torch.save(model.state_dict(), again)
    again.seek(0)
    assert not model.load_state_dict(torch.load(again)).missing_keys


def test_fold_bakes_every_kind_in():
    torch.manual_seed(5)
    model = vocoder()
    hooked(model[0]), parametrizations.weight_norm(model[2]), weight_norm(model[4])
    spectral_norm(weight_norm(model[3][0]))
    model.eval()
    x = torch.randn(1, 8, 5)
    expected = model(x)
    assert fold(model) == ["0.weight", "2.weight", "3.0.weight", "4.weight"]
    torch.testing.assert_close(model(x), expected)
    assert model.state_dict().keys() == vocoder().state_dict().keys()


def test_torch_is_patched():
    torch.manual_seed(6)
    old, new = hooked(nn.Linear(4, 3)), parametrizations.weight_norm(nn.Linear(4, 3))
    x = torch.randn(2, 4)
    expected = [old(x), new(x)]
    with patch_torch():
        torch.testing.assert_close([old(x), new(x)], expected)
        with torch.no_grad():
            old.weight_v[0] = 0
            new.parametrizations.weight.original1[0] = 0
        for layer in (old, new):
            layer(x).sum().backward()
            assert all(p.grad.isfinite().all() for p in layer.parameters())
    assert new(x).isnan().any()


def test_spectral_norm_on_top_of_weight_norm():
    layer = spectral_norm(weight_norm(nn.Linear(5, 4)), n_power_iterations=50)
    layer(torch.randn(1, 5)).sum().backward()
    assert abs(torch.linalg.matrix_norm(layer.weight, 2) - 1) < 1e-4
    assert layer.parametrizations.weight.original0.grad is not None
    with pytest.raises(ValueError, match="take that off before"):
        remove_weight_norm(layer)
    with pytest.raises(ValueError, match="a weight norm must be the first"):
        weight_norm(layer)


def test_an_unchanged_weight_is_computed_once_in_evaluation(monkeypatch):
    layer = weight_norm(nn.Linear(5, 4)).eval()
    with torch.no_grad():
        first = layer.weight
        assert layer.weight.data_ptr() == first.data_ptr()
        layer.parametrizations.weight.original0.mul_(2)
        torch.testing.assert_close(layer.weight, 2 * first)
        layer.parametrizations.weight.original1.data.mul_(-1)
        torch.testing.assert_close(layer.weight, -2 * first)
    assert layer.weight.requires_grad
    layer.train()
    layer.weight.sum().backward()
    assert layer.parametrizations.weight[0].prepared is None


def test_parametrize_cached():
    layer = weight_norm(nn.Linear(5, 4))
    with parametrize.cached():
        assert layer.weight is layer.weight


def test_selection_and_report():
    model = nn.Sequential(nn.Linear(4, 4), nn.Embedding(3, 4), hooked(nn.Linear(4, 4)))
    apply_weight_norm(model, backend="torch")
    assert [each.name for each in backend_report(model)] == ["0.weight"]
    assert isinstance(model[1].weight, nn.Parameter)
    with pytest.warns(UserWarning, match="apply_weight_norm has normalized nothing"):
        apply_weight_norm(nn.ReLU())
    apply_spectral_norm(model, include_types=nn.Embedding)
    assert len(backend_report(model)) == 2


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: weight_norm(nn.Linear(3, 2), dim=2), IndexError, r"dim must be in \[-2, 1\]"),
        (lambda: weight_norm(nn.Linear(3, 2), dim="0"), ValueError, "dim must be an integer"),
        (lambda: weight_norm(nn.Linear(3, 2), "nothing"), ValueError, "not a parameter of Linear"),
        (lambda: weight_norm(nn.Linear(3, 2), backend="cuda"), ValueError, "backend must be one"),
        (lambda: weight_norm(nn.LSTM(2, 2), "weight"), ValueError, "not a parameter of LSTM"),
        (lambda: weight_norm(torch.ones(2)), TypeError, "module must be a torch.nn.Module"),
        (lambda: weight_norm(integers()), ValueError, "torch.int64; it must be one of"),
        (lambda: remove_weight_norm(nn.Linear(3, 2)), ValueError, "no weight norm"),
        (lambda: remove_weight_norm(vocoder(), recursive=True), ValueError, "no weight norm"),
        (lambda: convert_weight_norm(vocoder()), ValueError, "has no weight norm"),
        (lambda: convert_weight_norm(vocoder(), to="hook"), ValueError, "to must be 'ours'"),
        (lambda: apply_weight_norm(vocoder(), name="weight"), TypeError, "takes names"),
        (lambda: apply_weight_norm(vocoder(), eps=1), TypeError, "unknown option 'eps'"),
    ],
)
def test_bad_input_is_told_in_a_sentence(call, error, message):
    with pytest.raises(error, match=message):
        call()


def integers():
    layer = nn.Linear(3, 2)
    layer.weight = nn.Parameter(torch.ones(2, 3, dtype=torch.int64), requires_grad=False)
    return layer


def test_a_refused_model_is_unchanged():
    model = nn.Sequential(nn.Linear(3, 3), spectral_norm(nn.Linear(3, 3)))
    keys = list(model.state_dict())
    with pytest.raises(ValueError, match="a weight norm must be the first"):
        apply_weight_norm(model)
    assert list(model.state_dict()) == keys


@pytest.mark.parametrize("dim", [0, 1, None], ids=str)
def test_state_dicts_of_the_older_hook_and_back(dim, tmp_path):
    torch.manual_seed(7)
    old = nn.Sequential(hooked(nn.Conv1d(4, 3, 5), dim=dim), nn.ReLU(), nn.Linear(2, 2))
    new = nn.Sequential(weight_norm(nn.Conv1d(4, 3, 5), dim=dim), nn.ReLU(), nn.Linear(2, 2))
    saved = old.state_dict()
    converted = convert_state_dict(saved, norm="weight_norm")
    assert converted.keys() == new.state_dict().keys()
    assert not new.load_state_dict(converted).missing_keys
    back = convert_state_dict(new.state_dict(), "legacy", norm="weight_norm")
    assert back.keys() == saved.keys()
    assert all(torch.equal(back[key], saved[key]) for key in saved)
    torch.save({"generator": new.state_dict()}, tmp_path / "new.pt")
    assert convert_file(tmp_path / "new.pt", tmp_path / "old.pt", "legacy", "weight_norm") == [
        "generator: 0.weight"
    ]
    assert not old.load_state_dict(torch.load(tmp_path / "old.pt")["generator"]).missing_keys


def test_other_things_named_g_are_no_weight_norms():
    others = {"weight_g": torch.ones(3), "weight_v": torch.ones(3, 4), "w_g": torch.ones(2)}
    assert convert_state_dict(others, norm="weight_norm") == others


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_fold_leaves_parameters_of_their_own(context):
    model = apply_weight_norm(vocoder(), foreach=True).eval()
    with context():
        model(torch.randn(1, 8, 5))
        fold(model)
    weights = [p for name, p in model.named_parameters() if name.endswith("weight")]
    assert len(weights) == 4
    assert len({weight.untyped_storage().data_ptr() for weight in weights}) == 4
    model(torch.randn(1, 8, 5)).sum().backward()


def test_folding_keeps_what_is_frozen_frozen():
    layer = weight_norm(nn.Linear(3, 2)).requires_grad_(False)
    fold(layer)
    assert isinstance(layer.weight, nn.Parameter)
    assert not layer.weight.requires_grad


@pytest.mark.parametrize("norm", [weight_norm, spectral_norm])
def test_a_replica_has_its_originals_elsewhere(norm):
    """As DataParallel makes one."""
    layer = norm(nn.Linear(3, 2)).eval()
    replica = layer._replicate_for_data_parallel()
    parametrizations = layer.parametrizations.weight._replicate_for_data_parallel()
    for name, original in layer.parametrizations.weight._parameters.items():
        setattr(parametrizations, name, original.detach())
    replica._modules["parametrizations"] = nn.ModuleDict()
    replica._modules["parametrizations"]._modules["weight"] = parametrizations
    torch.testing.assert_close(replica.weight, layer.weight)
