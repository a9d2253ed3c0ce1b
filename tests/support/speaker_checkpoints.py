"""The networks of speaker diarization in PyTorch, with weights made up, as their authors save them.

Written from the published descriptions, to compare with what the conversions to ONNX make of them:
pyannote's PyanNet, and CAM++ of 3D-Speaker.
"""

# mypy: disable-error-code="misc"
# PyTorch is not always there, and then its classes have no type.

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn


class SincFilters(nn.Module):
    """80 band-pass filters of 251 taps, of which two share a band."""

    def __init__(self) -> None:
        super().__init__()
        bands = torch.linspace(30, 7_000, 41)
        self.low_hz_ = nn.Parameter(bands[:-1, None])
        self.band_hz_ = nn.Parameter(bands.diff()[:, None])
        self.register_buffer("window_", torch.hamming_window(251, periodic=False)[:125])
        self.register_buffer("n_", 2 * math.pi * torch.arange(-125.0, 0.0)[None] / 16_000)

    def forward(self, x: Any) -> Any:
        low = 50 + self.low_hz_.abs()
        high = (low + 50 + self.band_hz_.abs()).clamp(50, 8_000)
        half = self.n_ / 2
        even = ((high * self.n_).sin() - (low * self.n_).sin()) / half * self.window_
        odd = ((low * self.n_).cos() - (high * self.n_).cos()) / half * self.window_
        band = 2 * (high - low)
        evens = torch.cat([even, band, even.flip(1)], 1)
        odds = torch.cat([odd, torch.zeros_like(band), -odd.flip(1)], 1)
        filters = torch.cat([evens / band, odds / band])
        return nn.functional.conv1d(x, filters[:, None], stride=10)


class SincNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        first = nn.Module()
        first.filterbank = SincFilters()
        self.wav_norm1d = nn.InstanceNorm1d(1, affine=True)
        self.conv1d = nn.ModuleList([first, nn.Conv1d(80, 60, 5), nn.Conv1d(60, 60, 5)])
        self.norm1d = nn.ModuleList(nn.InstanceNorm1d(n, affine=True) for n in (80, 60, 60))

    def forward(self, x: Any) -> Any:
        x = self.wav_norm1d(x)
        for layer, norm in enumerate(self.norm1d):
            x = self.conv1d[layer](x) if layer else self.conv1d[0].filterbank(x).abs()
            x = nn.functional.leaky_relu(norm(nn.functional.max_pool1d(x, 3)))
        return x


class PyanNet(nn.Module):
    """Samples of shape (N, 1, T) to log probabilities of shape (N, frames, 7)."""

    def __init__(self) -> None:
        super().__init__()
        self.sincnet = SincNet()
        self.lstm = nn.LSTM(60, 128, num_layers=4, bidirectional=True, batch_first=True)
        self.linear = nn.ModuleList([nn.Linear(256, 128), nn.Linear(128, 128)])
        self.classifier = nn.Linear(128, 7)

    def forward(self, x: Any) -> Any:
        x, _ = self.lstm(self.sincnet(x).transpose(1, 2))
        for linear in self.linear:
            x = nn.functional.leaky_relu(linear(x))
        return self.classifier(x).log_softmax(-1)


class Residual(nn.Module):
    def __init__(self, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(32, 32, 3, (stride, 1), 1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 32, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(32)
        self.shortcut = nn.Sequential()
        if stride > 1:
            conv = nn.Conv2d(32, 32, 1, (stride, 1), bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(32))

    def forward(self, x: Any) -> Any:
        inner = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (inner + self.shortcut(x)).relu()


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.layer1 = nn.Sequential(Residual(2), Residual(1))
        self.layer2 = nn.Sequential(Residual(2), Residual(1))
        self.conv2 = nn.Conv2d(32, 32, 3, (2, 1), 1, bias=False)
        self.bn2 = nn.BatchNorm2d(32)

    def forward(self, x: Any) -> Any:
        x = self.layer2(self.layer1(self.bn1(self.conv1(x)).relu()))
        return self.bn2(self.conv2(x)).relu().flatten(1, 2)


def normalized(size: int, *, affine: bool = True) -> nn.Sequential:
    made = nn.Sequential()
    made.add_module("batchnorm", nn.BatchNorm1d(size, affine=affine))
    return made


class Convolved(nn.Module):
    """A convolution beside a batch normalization, which comes before it or after it."""

    def __init__(self, conv: nn.Conv1d, norm: nn.Sequential, *, norm_first: bool) -> None:
        super().__init__()
        self.linear = conv
        self.nonlinear = norm
        self.norm_first = norm_first

    def forward(self, x: Any) -> Any:
        if self.norm_first:
            return self.linear(self.nonlinear(x).relu())
        return self.nonlinear(self.linear(x))


class Gated(nn.Module):
    """A convolution times a gate made of the mean of each 100 steps and that of all."""

    def __init__(self, dilation: int) -> None:
        super().__init__()
        self.linear_local = nn.Conv1d(128, 32, 3, 1, dilation, dilation, bias=False)
        self.linear1 = nn.Conv1d(128, 64, 1)
        self.linear2 = nn.Conv1d(64, 32, 1)

    def forward(self, x: Any) -> Any:
        means = torch.cat(
            [part.mean(-1, keepdim=True).expand_as(part) for part in x.split(100, -1)], -1
        )
        gate = self.linear2(self.linear1(means + x.mean(-1, keepdim=True)).relu()).sigmoid()
        return self.linear_local(x) * gate


class Dense(nn.Module):
    def __init__(self, size: int, dilation: int) -> None:
        super().__init__()
        self.nonlinear1 = normalized(size)
        self.linear1 = nn.Conv1d(size, 128, 1, bias=False)
        self.nonlinear2 = normalized(128)
        self.cam_layer = Gated(dilation)

    def forward(self, x: Any) -> Any:
        inner = self.nonlinear2(self.linear1(self.nonlinear1(x).relu())).relu()
        return torch.cat([x, self.cam_layer(inner)], 1)


class CamPlusPlus(nn.Module):
    """Filter banks of shape (N, T, 80) to embeddings of shape (N, 192)."""

    def __init__(self) -> None:
        super().__init__()
        self.head = Head()
        self.xvector = nn.Sequential()
        tdnn = nn.Conv1d(320, 128, 5, 2, 2, bias=False)
        self.xvector.add_module("tdnn", Convolved(tdnn, normalized(128), norm_first=False))
        self.xvector.add_module("relu", nn.ReLU())
        size = 128
        for number, (layers, dilation) in enumerate(((12, 1), (24, 2), (16, 2)), start=1):
            block = nn.Sequential()
            for layer in range(1, layers + 1):
                block.add_module(f"tdnnd{layer}", Dense(size, dilation))
                size += 32
            self.xvector.add_module(f"block{number}", block)
            half = nn.Conv1d(size, size // 2, 1, bias=False)
            transit = Convolved(half, normalized(size), norm_first=True)
            self.xvector.add_module(f"transit{number}", transit)
            size //= 2
        self.xvector.add_module("out_nonlinear", normalized(size))
        last = nn.Conv1d(2 * size, 192, 1, bias=False)
        self.dense = Convolved(last, normalized(192, affine=False), norm_first=False)
        self.xvector.add_module("dense", self.dense)

    def forward(self, x: Any) -> Any:
        x = self.head(x.transpose(1, 2)[:, None])
        for name, part in self.xvector.named_children():
            if name != "dense":
                x = part(x)
        x = x.relu()
        statistics = torch.cat([x.mean(-1), x.std(-1)], -1)
        return self.dense(statistics[..., None]).squeeze(-1)


def make(network: type[nn.Module], path: Path) -> nn.Module:
    """A network with weights made up, which ``path`` has as well."""
    torch.manual_seed(1)
    made = network()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.1)
        if isinstance(module, nn.LSTM | nn.Linear):  # or what they give hardly depends on the audio
            for weight in module.parameters():
                weight.data *= 3
    made.eval()
    state = {
        name: value for name, value in made.state_dict().items() if not name.startswith("dense.")
    }
    torch.save({"format_version": 1, "state_dict": state}, path)
    return made
