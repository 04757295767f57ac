"""Two vocoders' generators, whose every convolution users weight-normalize: 80 to 190 of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Norm = Callable[[nn.Module], nn.Module]
_SLOPE = 0.1


def _as_it_is(module: nn.Module) -> nn.Module:
    return module


class HiFiGAN(nn.Module):
    """The generator V1 of Kong et al. (2020, arXiv 2010.05646): mel spectrogram to waveform.

    ``channels=512`` is the paper's, of 78 convolutions. Input (B, 80, T), output (B, 1, 256 T).
    """

    def __init__(self, norm: Norm = _as_it_is, channels: int = 512) -> None:
        super().__init__()
        rates, kernels = (8, 8, 2, 2), (16, 16, 4, 4)
        self.before = norm(nn.Conv1d(80, channels, 7, padding=3))
        self.ups, self.blocks = nn.ModuleList(), nn.ModuleList()
        for rate, kernel in zip(rates, kernels, strict=True):
            up = nn.ConvTranspose1d(channels, channels // 2, kernel, rate, (kernel - rate) // 2)
            channels //= 2
            self.ups.append(norm(up))
            blocks = [_ReceptiveField(channels, width, norm) for width in (3, 7, 11)]
            self.blocks.append(nn.ModuleList(blocks))
        self.after = norm(nn.Conv1d(channels, 1, 7, padding=3))

    def forward(self, mel: Tensor) -> Tensor:
        x = self.before(mel)
        for up, blocks in zip(self.ups, self.blocks, strict=True):
            x = up(F.leaky_relu(x, _SLOPE))
            x = torch.stack([block(x) for block in blocks]).mean(0)
        return torch.tanh(self.after(F.leaky_relu(x)))


class _ReceptiveField(nn.Module):
    def __init__(self, channels: int, width: int, norm: Norm) -> None:
        super().__init__()
        conv = partial(nn.Conv1d, channels, channels, width, padding="same")
        self.dilated = nn.ModuleList([norm(conv(dilation=d)) for d in (1, 3, 5)])
        self.plain = nn.ModuleList([norm(conv()) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        for dilated, plain in zip(self.dilated, self.plain, strict=True):
            x = x + plain(F.leaky_relu(dilated(F.leaky_relu(x, _SLOPE)), _SLOPE))
        return x


class DACDecoder(nn.Module):
    """The decoder of the Descript audio codec: Kumar et al. (2023, arXiv 2306.06546).

    ``channels=1536`` is the paper's. Input (B, latent, T), output (B, 1, T times the rates).
    """

    def __init__(
        self,
        norm: Norm = _as_it_is,
        latent: int = 1024,
        channels: int = 1536,
        rates: Sequence[int] = (8, 8, 4, 2),
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [norm(nn.Conv1d(latent, channels, 7, padding=3))]
        for rate in rates:
            up = nn.ConvTranspose1d(channels, channels // 2, 2 * rate, rate, rate // 2)
            layers += [_Snake(channels), norm(up)]
            channels //= 2
            layers += [_Residual(channels, dilation, norm) for dilation in (1, 3, 9)]
        layers += [_Snake(channels), norm(nn.Conv1d(channels, 1, 7, padding=3)), nn.Tanh()]
        self.layers = nn.Sequential(*layers)

    def forward(self, latents: Tensor) -> Tensor:
        return self.layers(latents)


class _Residual(nn.Module):
    def __init__(self, channels: int, dilation: int, norm: Norm) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            _Snake(channels),
            norm(nn.Conv1d(channels, channels, 7, dilation=dilation, padding="same")),
            _Snake(channels),
            norm(nn.Conv1d(channels, channels, 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class _Snake(nn.Module):
    """``x + sin^2(a x) / a`` of Ziyin et al. (2020, arXiv 2006.08195)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.sin(self.alpha * x).square() / (self.alpha + 1e-9)
