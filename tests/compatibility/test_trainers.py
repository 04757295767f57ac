"""Trainers: Lightning, Accelerate, TensorBoard.

These take seconds to import, so the tests that need them do, and not their collection.
"""

import logging

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import snorm_triton

# Lightning's own use of torch's pytrees.
pytestmark = pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning")


def discriminator_of(sn):
    return sn.apply(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)))


def discriminator_loss(discriminator, real, fake):
    return (1 - discriminator(real)).relu().mean() + (1 + discriminator(fake)).relu().mean()


def copy_of_state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_trained(sn, module, before):
    """Its weights, u and v have changed, and what evaluation uses is normalized."""
    for name, value in module.state_dict().items():
        assert value.isfinite().all()
        if not name.endswith("bias"):
            assert not torch.equal(value, before[name]), name
    module.train()
    with torch.no_grad():
        for _ in range(20):  # torch's hook starts from random u and v
            module(torch.randn(4, 6))
    for layer in module.eval():
        if isinstance(layer, nn.Linear):
            assert torch.linalg.matrix_norm(sn.weight(layer), 2).item() == pytest.approx(
                1, abs=0.05
            )


def gan_of(discriminator):
    import lightning

    class GAN(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.generator = nn.Linear(3, 6)
            self.discriminator = discriminator

        def configure_optimizers(self):
            return [torch.optim.Adam(m.parameters()) for m in (self.generator, self.discriminator)]

        def training_step(self, real, index):
            generator_optimizer, discriminator_optimizer = self.optimizers()
            fake = self.generator(torch.randn(len(real), 3))

            self.toggle_optimizer(discriminator_optimizer)
            discriminator_optimizer.zero_grad()
            self.manual_backward(discriminator_loss(self.discriminator, real, fake.detach()))
            discriminator_optimizer.step()
            self.untoggle_optimizer(discriminator_optimizer)

            self.toggle_optimizer(generator_optimizer)
            generator_optimizer.zero_grad()
            self.manual_backward(-self.discriminator(fake).mean())
            generator_optimizer.step()
            self.untoggle_optimizer(generator_optimizer)

    return GAN()


def sigmas_to_tensorboard():
    import lightning

    class LogSigmas(lightning.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_index):
            snorm_triton.log_sigmas(trainer.logger.experiment, module, step=batch_index)

    return LogSigmas()


@pytest.fixture
def fit(monkeypatch):
    """Two steps of Lightning's Trainer on the CPU; returns the trainer."""
    import lightning

    for name in ("lightning.pytorch", "lightning.fabric"):
        monkeypatch.setattr(logging.getLogger(name), "disabled", True)

    def run(module, **options):
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_epochs=1,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            log_every_n_steps=1,
            **{"logger": False, **options},
        )
        trainer.fit(module, DataLoader(torch.randn(8, 6), batch_size=4))
        return trainer

    return run


@pytest.mark.promise("A GAN in Lightning, its optimization by hand")
def test_lightning(sn, fit, tmp_path):
    gan = gan_of(discriminator_of(sn))
    before = copy_of_state(gan.discriminator)
    trainer = fit(gan)
    assert_trained(sn, gan.discriminator, before)
    trainer.save_checkpoint(tmp_path / "gan.ckpt")
    again = gan_of(discriminator_of(sn))
    again.load_state_dict(torch.load(tmp_path / "gan.ckpt", weights_only=True)["state_dict"])
    x = torch.randn(2, 6)
    assert torch.equal(again.discriminator.eval()(x), gan.discriminator(x))


@pytest.mark.promise("Every sigma in TensorBoard, by a Lightning callback", torch="no sigma")
def test_sigmas_in_tensorboard(sn, fit, tmp_path):
    from lightning.pytorch.loggers import TensorBoardLogger
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    gan = gan_of(discriminator_of(sn))
    logger = TensorBoardLogger(tmp_path)
    fit(gan, logger=logger, callbacks=[sigmas_to_tensorboard()])
    logger.experiment.close()
    events = EventAccumulator(logger.log_dir).Reload()
    for name, sigma in snorm_triton.sigmas(gan).items():
        steps = events.Scalars(f"sigma/{name}")
        assert [event.step for event in steps] == [0, 1]
        assert steps[-1].value == pytest.approx(sigma.item())


@pytest.fixture
def accelerator_of():
    """Accelerate keeps one state for the process: each test starts, and leaves, without."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState, PartialState

    def reset():
        for state in (AcceleratorState, PartialState, GradientState):
            state._reset_state()

    reset()
    yield lambda **options: Accelerator(cpu=True, **options)
    reset()


@pytest.mark.parametrize("mixed_precision", ["no", "bf16"])
@pytest.mark.promise("A loop in Accelerate, in float32 and in mixed precision, saved and resumed")
def test_accelerate(sn, accelerator_of, tmp_path, mixed_precision):
    accelerator = accelerator_of(mixed_precision=mixed_precision)
    plain = discriminator_of(sn)
    before = copy_of_state(plain)
    batches = DataLoader(torch.randn(8, 6), batch_size=4)
    model, optimizer, batches = accelerator.prepare(
        plain, torch.optim.Adam(plain.parameters()), batches
    )
    for real in batches:
        optimizer.zero_grad()
        accelerator.backward(discriminator_loss(model, real, torch.randn(4, 6)))
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    accelerator.save_state(tmp_path)
    after = copy_of_state(plain)
    model(torch.randn(4, 6)).sum().backward()
    optimizer.step()
    accelerator.load_state(tmp_path)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, after[name])
    assert_trained(sn, accelerator.unwrap_model(model), before)
