"""Networks such as people write themselves: one class for each idea, in the manner in which it is usually written."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from examples import Case, Example, floats, images, together, tokens

CASES: list[Case] = []


def network(name: str, example: Example) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Enter a class of networks, which is built without arguments, under a name."""

    def enter(cls: type[nn.Module]) -> type[nn.Module]:
        CASES.append(Case("hand-written", name, cls, example))
        return cls

    return enter


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution with batch norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


# -- blocks of convolutional networks


@network("cbam", images(32))
class Cbam(nn.Module):
    """Attention along channels, then along places, both from a mean and a maximum."""

    def __init__(self, width: int = 32):
        super().__init__()
        self.stem = conv(3, width)
        self.mlp = nn.Sequential(nn.Linear(width, width // 4), nn.ReLU(), nn.Linear(width // 4, width))
        self.spatial = nn.Conv2d(2, 1, 7, padding=3)
        self.body = conv(width, width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        b, c, _, _ = x.shape
        scale = self.mlp(F.adaptive_avg_pool2d(x, 1).view(b, c)) + self.mlp(F.adaptive_max_pool2d(x, 1).view(b, c))
        x = x * torch.sigmoid(scale).view(b, c, 1, 1)
        places = torch.cat([torch.mean(x, dim=1, keepdim=True), torch.max(x, dim=1, keepdim=True)[0]], dim=1)
        x = x * torch.sigmoid(self.spatial(places))
        return self.head(self.body(x).mean([2, 3]))


@network("squeeze_excite", images(32))
class SqueezeExcite(nn.Module):
    def __init__(self, width: int = 32):
        super().__init__()
        self.stem = conv(3, width)
        self.gate = nn.Sequential(nn.Conv2d(width, 8, 1), nn.SiLU(), nn.Conv2d(8, width, 1), nn.Hardsigmoid())
        self.body = conv(width, width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.body(x)
        x = x + y * self.gate(F.adaptive_avg_pool2d(y, 1)).expand_as(y)
        return self.head(torch.flatten(F.adaptive_avg_pool2d(x, (1, 1)), 1))


@network("temporal_shift", lambda batch: (torch.randn(batch, 4, 3, 32, 32),))
class TemporalShift(nn.Module):
    """Shifts a part of the channels in time, writing into a tensor of zeros."""

    def __init__(self, width: int = 32):
        super().__init__()
        self.stem, self.body, self.head = conv(3, width), conv(width, width), nn.Linear(width, 10)

    def shift(self, x: Tensor, frames: int, fold: int) -> Tensor:
        n, c, h, w = x.size()
        x = x.view(n // frames, frames, c, h, w)
        out = torch.zeros_like(x)
        out[:, :-1, :fold] = x[:, 1:, :fold]
        out[:, 1:, fold : 2 * fold] = x[:, :-1, fold : 2 * fold]
        out[:, :, 2 * fold :] = x[:, :, 2 * fold :]
        return out.view(n, c, h, w)

    def forward(self, x: Tensor) -> Tensor:
        batch, frames = x.shape[:2]
        x = self.stem(x.flatten(0, 1))
        x = x + self.body(self.shift(x, frames, x.size(1) // 8))
        return self.head(x.mean((2, 3))).view(batch, frames, -1).mean(1)


@network("ghost", images(32))
class Ghost(nn.Module):
    """Half of the channels are made by cheap operations from the other half."""

    def __init__(self, width: int = 32):
        super().__init__()
        self.stem = conv(3, width)
        self.primary, self.cheap = conv(width, width // 2, 1), conv(width // 2, width // 2, groups=width // 2)
        self.project = nn.Conv2d(width, width, 1)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        first = self.primary(x)
        out = torch.cat([first, self.cheap(first)], dim=1)[:, : x.shape[1], :, :]
        return self.head((x + self.project(out)).mean((-2, -1)))


@network("channel_shuffle", images(32))
class ChannelShuffle(nn.Module):
    """Splits the channels, works on a half, and shuffles."""

    def __init__(self, width: int = 32):
        super().__init__()
        self.stem, self.branch = (
            conv(3, width),
            nn.Sequential(conv(width // 2, width // 2, 1), conv(width // 2, width // 2)),
        )
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.stem(x).chunk(2, dim=1)
        x = torch.cat((left, self.branch(right)), 1)
        b, c, h, w = x.shape
        x = x.view(b, 2, c // 2, h, w).transpose(1, 2).contiguous().view(b, -1, h, w)
        return self.head(x.mean((2, 3)))


@network("partial_in_place", images(32))
class PartialInPlace(nn.Module):
    """Works on some of the channels, and writes the result into them."""

    def __init__(self, width: int = 32):
        super().__init__()
        self.stem, self.part, self.point = conv(3, width), nn.Conv2d(8, 8, 3, padding=1), conv(width, width, 1)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = x.clone()
        y[:, :8, :, :] = self.part(y[:, :8, :, :])
        y = self.point(y)
        half = y.shape[1] // 2
        y[:, :half] += y[:, half:]
        return self.head(y.mean((2, 3)))


@network("weight_standardization", images(32))
class WeightStandardization(nn.Module):
    class Conv(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            weight = self.weight
            mean = weight.mean(dim=1, keepdim=True).mean(dim=2, keepdim=True).mean(dim=3, keepdim=True)
            weight = weight - mean
            std = weight.view(weight.size(0), -1).std(dim=1).view(-1, 1, 1, 1) + 1e-5
            return F.conv2d(x, weight / std.expand_as(weight), self.bias, self.stride, self.padding)

    def __init__(self, width: int = 32):
        super().__init__()
        self.first, self.norm = self.Conv(3, width, 3, padding=1), nn.GroupNorm(8, width)
        self.second, self.head = self.Conv(width, width, 3, padding=1), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.second(F.relu(self.norm(self.first(x))))).mean((2, 3)))


@network("hand_written_batch_norm", images(32))
class HandWrittenBatchNorm(nn.Module):
    class Norm(nn.Module):
        def __init__(self, width: int):
            super().__init__()
            self.gamma, self.beta = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
            self.register_buffer("mean", torch.zeros(width))
            self.register_buffer("var", torch.ones(width))

        def forward(self, x: Tensor) -> Tensor:
            mean, var = self.mean, self.var
            if self.training:
                mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
                with torch.no_grad():
                    self.mean.mul_(0.9).add_(0.1 * mean)
                    self.var.mul_(0.9).add_(0.1 * var)
            x = (x - mean[None, :, None, None]) / torch.sqrt(var[None, :, None, None] + 1e-5)
            return x * self.gamma.view(1, -1, 1, 1) + self.beta.view(1, -1, 1, 1)

    def __init__(self, width: int = 32):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, width, 3, padding=1), self.Norm(width)
        self.next, self.head = nn.Conv2d(width, width, 3, padding=1), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.next(F.relu(self.norm(self.conv(x))))).mean((2, 3)))


@network("dynamic_convolution", images(32))
class DynamicConvolution(nn.Module):
    """The kernel is a mixture, one for each sample, by grouping samples."""

    def __init__(self, width: int = 16, experts: int = 4):
        super().__init__()
        self.stem = conv(3, width)
        self.route = nn.Linear(width, experts)
        self.weight = nn.Parameter(torch.randn(experts, width, width, 3, 3) * 0.1)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        b, c, h, w = x.shape
        mix = torch.softmax(self.route(x.mean((2, 3))), dim=1)
        weight = (mix @ self.weight.flatten(1)).view(b * c, c, 3, 3)
        out = F.conv2d(x.reshape(1, b * c, h, w), weight, padding=1, groups=b).view(b, c, h, w)
        return self.head(F.relu(out).mean((2, 3)))


@network("inception_block", images(32))
class InceptionBlock(nn.Module):
    def __init__(self, width: int = 32):
        super().__init__()
        self.stem = conv(3, width)
        self.branches = nn.ModuleList(
            [
                conv(width, 8, 1),
                nn.Sequential(conv(width, 8, 1), conv(8, 16)),
                nn.Sequential(conv(width, 4, 1), conv(4, 8, 5)),
            ]
        )
        self.pooled = nn.Sequential(nn.MaxPool2d(3, 1, 1), conv(width, 8, 1))
        self.head = nn.Linear(40, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([branch(x) for branch in self.branches] + [self.pooled(x)], 1)
        return self.head(x.mean((2, 3)))


@network("dense_connections", images(32))
class DenseConnections(nn.Module):
    def __init__(self, growth: int = 8):
        super().__init__()
        self.stem = conv(3, 16)
        self.layers = nn.ModuleList([conv(16 + n * growth, growth) for n in range(3)])
        self.head = nn.Linear(16 + 3 * growth, 10)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return self.head(F.avg_pool2d(torch.cat(features, 1), 32).flatten(1))


# -- from images to images


@network("unet", images(32))
class UNet(nn.Module):
    """Skips are concatenated, after being padded to the same size."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.down = nn.ModuleList([conv(3, width), conv(width, 2 * width), conv(2 * width, 4 * width)])
        self.up = nn.ModuleList(
            [nn.ConvTranspose2d(4 * width, 2 * width, 2, 2), nn.ConvTranspose2d(2 * width, width, 2, 2)]
        )
        self.join = nn.ModuleList([conv(4 * width, 2 * width), conv(2 * width, width)])
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for layer in self.down:
            x = layer(F.max_pool2d(x, 2) if skips else x)
            skips.append(x)
        skips.pop()
        for up, join in zip(self.up, self.join, strict=True):
            x, skip = up(x), skips.pop()
            rows, columns = skip.size(2) - x.size(2), skip.size(3) - x.size(3)
            x = F.pad(x, [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2])
            x = join(torch.cat([skip, x], dim=1))
        return self.head(x)


@network("attention_unet", images(32))
class AttentionUNet(nn.Module):
    def __init__(self, width: int = 16):
        super().__init__()
        self.first, self.second = conv(3, width), conv(width, 2 * width, stride=2)
        self.query, self.key, self.psi = nn.Conv2d(2 * width, 8, 1), nn.Conv2d(width, 8, 1, 1), nn.Conv2d(8, 1, 1)
        self.join, self.head = conv(3 * width, width), nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.first(x)
        low = F.interpolate(self.second(skip), size=skip.shape[2:], mode="bilinear", align_corners=True)
        gate = torch.sigmoid(self.psi(F.relu(self.query(low) + self.key(skip))))
        return torch.sigmoid(self.head(self.join(torch.cat((skip * gate, low), 1))))


@network("feature_pyramid", images(64))
class FeaturePyramid(nn.Module):
    """Three levels of a detector, whose heads are shared, and the boxes of all levels in one tensor."""

    def __init__(self, width: int = 16, classes: int = 5):
        super().__init__()
        self.stages = nn.ModuleList(
            [conv(3, width, stride=4), conv(width, 2 * width, stride=2), conv(2 * width, 4 * width, stride=2)]
        )
        self.lateral = nn.ModuleList([nn.Conv2d(width * 2**n, width, 1) for n in range(3)])
        self.tower, self.cls, self.box = conv(width, width), nn.Conv2d(width, classes, 1), nn.Conv2d(width, 4, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        top, outputs = None, []
        for lateral, feature in zip(reversed(self.lateral), reversed(features), strict=True):
            top = lateral(feature) if top is None else lateral(feature) + F.interpolate(top, scale_factor=2.0)
            outputs.append(self.tower(top))
        flat = [(self.cls(y).flatten(2), self.box(y).flatten(2)) for y in outputs]
        return {
            "scores": torch.cat([cls.permute(0, 2, 1) for cls, _ in flat], 1),
            "boxes": torch.cat([box.permute(0, 2, 1).exp() for _, box in flat], 1),
        }


@network("auxiliary_head", images(64))
class AuxiliaryHead(nn.Module):
    """Gives a second output while it is trained."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.low, self.high = conv(3, width, stride=2), conv(width, 2 * width, stride=2)
        self.head, self.aux = nn.Conv2d(2 * width, 4, 1), nn.Conv2d(width, 4, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        size = x.shape[-2:]
        low = self.low(x)
        result = {"out": F.interpolate(self.head(self.high(low)), size=size, mode="bilinear", align_corners=False)}
        if self.training:
            result["aux"] = F.interpolate(self.aux(low), size=size, mode="bilinear", align_corners=False)
        return result


@network("super_resolution", images(24))
class SuperResolution(nn.Module):
    def __init__(self, width: int = 32):
        super().__init__()
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(width, width, 3, 1, 1), nn.PReLU(), nn.Conv2d(width, width, 3, 1, 1))
                for _ in range(2)
            ]
        )
        self.tail = nn.Sequential(
            nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2), nn.Conv2d(width, 3, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x - 0.45)
        skip = x
        for block in self.body:
            x = x + 0.1 * block(x)
        return self.tail(x + skip) + 0.45


@network("style_generator", floats((16,)))
class StyleGenerator(nn.Module):
    """A constant, modulated by a mapped noise, whose weights are demodulated."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.mapping = nn.Sequential(nn.Linear(16, 32), nn.LeakyReLU(0.2), nn.Linear(32, 32), nn.LeakyReLU(0.2))
        self.constant = nn.Parameter(torch.randn(1, width, 4, 4))
        self.affine, self.weight = nn.Linear(32, width), nn.Parameter(torch.randn(1, width, width, 3, 3))
        self.rgb = nn.Conv2d(width, 3, 1)

    def forward(self, z: Tensor) -> Tensor:
        style = self.affine(self.mapping(F.normalize(z, dim=1)))
        b, c = style.shape
        weight = self.weight * (style.view(b, 1, c, 1, 1) + 1)
        weight = weight * torch.rsqrt(weight.pow(2).sum([2, 3, 4]) + 1e-8).view(b, c, 1, 1, 1)
        x = F.interpolate(self.constant.repeat(b, 1, 1, 1), scale_factor=2, mode="nearest").view(1, b * c, 8, 8)
        x = F.conv2d(x, weight.view(b * c, c, 3, 3), padding=1, groups=b).view(b, c, 8, 8)
        return torch.tanh(self.rgb(F.leaky_relu(x, 0.2)))


@network("dcgan", floats((16,)))
class Dcgan(nn.Module):
    def __init__(self, width: int = 16):
        super().__init__()
        self.project = nn.Linear(16, 4 * width * 16)
        self.up = nn.Sequential(
            nn.BatchNorm2d(4 * width),
            nn.ConvTranspose2d(4 * width, 2 * width, 4, 2, 1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(True),
            nn.ConvTranspose2d(2 * width, 3, 4, 2, 1),
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.up(self.project(z).view(z.size(0), -1, 4, 4)).tanh()


@network("spectral_norm_discriminator", images(32))
class SpectralNormDiscriminator(nn.Module):
    def __init__(self, width: int = 16):
        super().__init__()
        spectral = parametrizations.spectral_norm
        self.body = nn.Sequential(
            spectral(nn.Conv2d(3, width, 4, 2, 1)),
            nn.LeakyReLU(0.2),
            spectral(nn.Conv2d(width, 2 * width, 4, 2, 1)),
            nn.LeakyReLU(0.2),
        )
        self.head = spectral(nn.Linear(2 * width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).sum((2, 3))).squeeze(1)


@network("convolutional_autoencoder", images(32))
class ConvolutionalAutoencoder(nn.Module):
    def __init__(self, width: int = 16):
        super().__init__()
        self.encode = nn.Sequential(
            conv(3, width, stride=2), conv(width, 2 * width, stride=2), nn.Flatten(), nn.Linear(2 * width * 64, 12)
        )
        self.decode = nn.Sequential(
            nn.Linear(12, 2 * width * 64), nn.Unflatten(1, (2 * width, 8, 8)), nn.Upsample(scale_factor=2)
        )
        self.out = nn.Sequential(
            conv(2 * width, width), nn.Upsample(scale_factor=2), nn.Conv2d(width, 3, 3, padding=1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        code = self.encode(x)
        return self.out(self.decode(code)), code


@network("variational_autoencoder", floats((48,)))
class VariationalAutoencoder(nn.Module):
    """Draws from what it has encoded while it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.mean, self.log = nn.Linear(48, 32), nn.Linear(32, 8), nn.Linear(32, 8)
        self.decode = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 48))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = F.relu(self.encode(x))
        mean, log = self.mean(hidden), self.log(hidden)
        z = mean
        if self.training:
            std = torch.exp(0.5 * log)
            z = mean + torch.randn_like(std) * std
        return torch.sigmoid(self.decode(z)), mean, log


@network("codebook", images(32))
class Codebook(nn.Module):
    """A quantizing autoencoder whose codebook follows by an exponential moving average."""

    def __init__(self, width: int = 16, codes: int = 24):
        super().__init__()
        self.encode, self.decode = (
            nn.Sequential(conv(3, 32, stride=2), nn.Conv2d(32, width, 1)),
            nn.ConvTranspose2d(width, 3, 2, 2),
        )
        self.register_buffer("codes", torch.randn(codes, width))
        self.register_buffer("counts", torch.ones(codes))
        self.register_buffer("sums", self.codes.clone())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.encode(x).permute(0, 2, 3, 1).contiguous()
        flat = z.view(-1, z.shape[-1])
        distances = flat.pow(2).sum(1, keepdim=True) - 2 * flat @ self.codes.t() + self.codes.pow(2).sum(1)
        nearest = torch.argmin(distances, dim=1)
        if self.training:
            chosen = F.one_hot(nearest, self.codes.shape[0]).type(flat.dtype)
            with torch.no_grad():
                self.counts.mul_(0.9).add_(chosen.sum(0), alpha=0.1)
                self.sums.mul_(0.9).add_(chosen.t() @ flat, alpha=0.1)
                self.codes.copy_(self.sums / (self.counts + 1e-5).unsqueeze(1))
        quantized = F.embedding(nearest, self.codes).view(z.shape)
        loss = F.mse_loss(quantized.detach(), z)
        quantized = z + (quantized - z).detach()
        return self.decode(quantized.permute(0, 3, 1, 2)), loss


# -- sequences


@network("bidirectional_lstm", tokens(12, 50))
class BidirectionalLstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm = (
            nn.Embedding(50, 24),
            nn.LSTM(24, 16, num_layers=2, batch_first=True, bidirectional=True),
        )
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        output, (hidden, _) = self.lstm(self.embed(x))
        return self.head(output[:, -1] + torch.cat([hidden[-2], hidden[-1]], dim=1))


@network("lstm_cells", floats((6, 16)))
class LstmCells(nn.Module):
    """A loop over time, in which states are kept by hand."""

    def __init__(self, width: int = 24):
        super().__init__()
        self.width, self.cell, self.gru = width, nn.LSTMCell(16, width), nn.GRUCell(width, width)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.zeros(x.size(0), self.width, device=x.device)
        cell, other = torch.zeros_like(hidden), torch.zeros_like(hidden)
        outputs = []
        for step in x.unbind(1):
            hidden, cell = self.cell(step, (hidden, cell))
            other = self.gru(hidden, other)
            outputs.append(self.head(other))
        return torch.stack(outputs, 1)


@network("crnn", images(32, 1))
class Crnn(nn.Module):
    """Reads text: columns of a feature map are a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.cnn = nn.Sequential(conv(1, 16), nn.MaxPool2d(2), conv(16, 32), nn.MaxPool2d((4, 1)))
        self.rnn, self.head = nn.GRU(32 * 4, 24, bidirectional=True), nn.Linear(48, 11)

    def forward(self, x: Tensor) -> Tensor:
        x = self.cnn(x)
        b, c, h, w = x.size()
        x = x.view(b, c * h, w).permute(2, 0, 1)
        return F.log_softmax(self.head(self.rnn(x)[0]), dim=2)


@network("wavenet", floats((1, 64)))
class WaveNet(nn.Module):
    """Gated dilated convolutions with a skip from every layer."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.start = nn.Conv1d(1, width, 1)
        self.filters = nn.ModuleList([nn.Conv1d(width, width, 2, dilation=2**n) for n in range(3)])
        self.gates = nn.ModuleList([nn.Conv1d(width, width, 2, dilation=2**n) for n in range(3)])
        self.skips = nn.ModuleList([nn.Conv1d(width, 2 * width, 1) for _ in range(3)])
        self.residuals = nn.ModuleList([nn.Conv1d(width, width, 1) for _ in range(3)])
        self.end = nn.Sequential(nn.ReLU(), nn.Conv1d(2 * width, 2 * width, 1), nn.ReLU(), nn.Conv1d(2 * width, 8, 1))

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.start(x), None
        for filtered, gate, skip, residual in zip(self.filters, self.gates, self.skips, self.residuals, strict=True):
            y = torch.tanh(filtered(x)) * torch.sigmoid(gate(x))
            s = skip(y)
            total = s if total is None else total[:, :, -s.size(2) :] + s
            x = residual(y) + x[:, :, -y.size(2) :]
        return self.end(total)


@network("temporal_convolution", floats((4, 48)))
class TemporalConvolution(nn.Module):
    """Causal convolutions with weight norm, cut off at the end."""

    def __init__(self, width: int = 24):
        super().__init__()
        norm = parametrizations.weight_norm
        self.convs = nn.ModuleList(
            [norm(nn.Conv1d(4 if n == 0 else width, width, 3, padding=2 * 2**n, dilation=2**n)) for n in range(3)]
        )
        self.down, self.head = nn.Conv1d(4, width, 1), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x)
        for n, layer in enumerate(self.convs):
            x = F.relu(layer(x)[:, :, : -2 * 2**n].contiguous())
        return self.head((x + skip)[:, :, -1])


@network("language_model", tokens(12, 50))
class LanguageModel(nn.Module):
    """A decoder with a causal mask, whose head shares its weight with the embedding."""

    class Block(nn.Module):
        def __init__(self, width: int, heads: int):
            super().__init__()
            self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
            self.register_buffer("mask", torch.tril(torch.ones(64, 64)).view(1, 1, 64, 64))

        def forward(self, x: Tensor) -> Tensor:
            b, t, c = x.size()
            q, k, v = self.qkv(self.norm1(x)).split(c, dim=2)
            q, k, v = (y.view(b, t, self.heads, c // self.heads).transpose(1, 2) for y in (q, k, v))
            attention = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
            attention = attention.masked_fill(self.mask[:, :, :t, :t] == 0, float("-inf"))
            y = (F.softmax(attention, dim=-1) @ v).transpose(1, 2).contiguous().view(b, t, c)
            x = x + self.out(y)
            return x + self.mlp(self.norm2(x))

    def __init__(self, width: int = 32):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(50, width), nn.Embedding(64, width)
        self.blocks, self.norm = nn.ModuleList([self.Block(width, 4) for _ in range(2)]), nn.LayerNorm(width)
        self.head = nn.Linear(width, 50, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(0, x.size(1), dtype=torch.long, device=x.device)
        x = self.tokens(x) + self.positions(places)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


@network("rotary_grouped_query", floats((12, 32)))
class RotaryGroupedQuery(nn.Module):
    """Attention with rotary positions, in which several heads share a key."""

    def __init__(self, width: int = 32, heads: int = 4, keys: int = 2):
        super().__init__()
        self.heads, self.keys, self.size = heads, keys, width // heads
        self.q, self.kv, self.o = (
            nn.Linear(width, width),
            nn.Linear(width, 2 * keys * self.size),
            nn.Linear(width, width),
        )
        self.norm, self.gate, self.up, self.down = (
            nn.RMSNorm(width),
            nn.Linear(width, 64),
            nn.Linear(width, 64),
            nn.Linear(64, width),
        )

    def rotate(self, x: Tensor) -> Tensor:
        frequencies = 1.0 / (10000 ** (torch.arange(0, self.size, 2, device=x.device).float() / self.size))
        angles = torch.outer(torch.arange(x.shape[2], device=x.device).float(), frequencies)
        angles = torch.cat((angles, angles), dim=-1)
        first, second = x.chunk(2, dim=-1)
        return x * angles.cos() + torch.cat((-second, first), dim=-1) * angles.sin()

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        y = self.norm(x)
        q = self.q(y).view(b, t, self.heads, self.size).transpose(1, 2)
        k, v = self.kv(y).view(b, t, 2, self.keys, self.size).permute(2, 0, 3, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(self.rotate(q), self.rotate(k), v, is_causal=True, enable_gqa=True)
        x = x + self.o(out.transpose(1, 2).reshape(b, t, c))
        return x + self.down(F.silu(self.gate(x)) * self.up(x))


@network("encoder_layers", floats((12, 32)))
class EncoderLayers(nn.Module):
    """torch's own encoder, with a token for the class."""

    def __init__(self, width: int = 32):
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder, self.cls, self.head = (
            nn.TransformerEncoder(layer, 2, enable_nested_tensor=False),
            nn.Parameter(torch.randn(1, 1, width)),
            nn.Linear(width, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.cls.expand(x.size(0), -1, -1), x], dim=1)
        return self.head(self.encoder(x)[:, 0])


@network("sequence_to_sequence", floats((10, 32), (6, 32)))
class SequenceToSequence(nn.Module):
    def __init__(self, width: int = 32):
        super().__init__()
        self.transformer = nn.Transformer(width, 4, 1, 1, 64, dropout=0.0, batch_first=True)
        self.head = nn.Linear(width, 20)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(target.size(1), device=target.device)
        return self.head(self.transformer(source, target, tgt_mask=mask))


@network("linear_attention", floats((12, 32)))
class LinearAttention(nn.Module):
    """Written with einsum and without softmax."""

    def __init__(self, width: int = 32, heads: int = 4):
        super().__init__()
        self.heads, self.norm, self.qkv, self.out = (
            heads,
            nn.LayerNorm(width),
            nn.Linear(width, 3 * width, bias=False),
            nn.Linear(width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = (y.view(b, n, self.heads, -1) for y in self.qkv(self.norm(x)).chunk(3, -1))
        q, k = F.elu(q) + 1, F.elu(k) + 1
        context = torch.einsum("bnhd,bnhe->bhde", k, v)
        scale = 1 / (torch.einsum("bnhd,bhd->bnh", q, k.sum(1)) + 1e-6)
        return x + self.out(torch.einsum("bnhd,bhde,bnh->bnhe", q, context, scale).reshape(b, n, c))


@network("attention_pooling", floats((12, 24)))
class AttentionPooling(nn.Module):
    """Several instances, of which a gated attention makes one."""

    def __init__(self, width: int = 32):
        super().__init__()
        self.embed, self.v, self.u, self.w = (
            nn.Linear(24, width),
            nn.Linear(width, 16),
            nn.Linear(width, 16),
            nn.Linear(16, 1),
        )
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = F.relu(self.embed(x))
        weights = torch.softmax(
            self.w(torch.tanh(self.v(hidden)) * torch.sigmoid(self.u(hidden))).transpose(2, 1), dim=2
        )
        return self.head(torch.bmm(weights, hidden).squeeze(1)), weights


@network("mixer", images(32))
class Mixer(nn.Module):
    def __init__(self, width: int = 32, patches: int = 16):
        super().__init__()
        self.embed = nn.Conv2d(3, width, 8, 8)
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(2)])
        self.places = nn.Sequential(nn.Linear(patches, 24), nn.GELU(), nn.Linear(24, patches))
        self.channels = nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = x + self.places(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        return self.head((x + self.channels(self.norms[1](x))).mean(dim=1))


# -- other shapes of networks


@network("siamese", floats((3, 32, 32), (3, 32, 32)))
class Siamese(nn.Module):
    def __init__(self, width: int = 16):
        super().__init__()
        self.trunk = nn.Sequential(
            conv(3, width, stride=2), conv(width, 2 * width, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.project, self.head = nn.Linear(2 * width, 12), nn.Linear(4 * width, 1)

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, b = self.trunk(first), self.trunk(second)
        similar = F.cosine_similarity(self.project(a), self.project(b), dim=1)
        return (
            similar,
            F.pairwise_distance(self.project(a), self.project(b)),
            self.head(torch.cat([torch.abs(a - b), a * b], 1)),
        )


@network("dense_mixture_of_experts", floats((24,)))
class DenseMixtureOfExperts(nn.Module):
    def __init__(self, experts: int = 4):
        super().__init__()
        self.experts = nn.ModuleList(
            [nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 16)) for _ in range(experts)]
        )
        self.gate, self.head = nn.Linear(24, experts), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        gates = F.softmax(self.gate(x), dim=-1)
        outputs = torch.stack([expert(x) for expert in self.experts], dim=1)
        return self.head(F.relu((gates.unsqueeze(-1) * outputs).sum(1)))


@network("top_k_mixture_of_experts", floats((24,)))
class TopKMixtureOfExperts(nn.Module):
    """Every expert runs; all gates but the highest are zero."""

    def __init__(self, experts: int = 4):
        super().__init__()
        self.up, self.down = (
            nn.Parameter(torch.randn(experts, 24, 32) * 0.1),
            nn.Parameter(torch.randn(experts, 32, 16) * 0.1),
        )
        self.gate, self.head = nn.Linear(24, experts), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.gate(x)
        values, places = logits.topk(2, dim=-1)
        gates = torch.zeros_like(logits).scatter(-1, places, values.softmax(-1))
        hidden = F.relu(torch.einsum("bi,eih->beh", x, self.up))
        return self.head(torch.einsum("beh,eho,be->bo", hidden, self.down, gates))


@network("lora", floats((12, 32)))
class Lora(nn.Module):
    """Low-rank updates beside frozen weights."""

    class Linear(nn.Module):
        def __init__(self, inputs: int, outputs: int, rank: int = 4):
            super().__init__()
            self.base = nn.Linear(inputs, outputs).requires_grad_(False)
            self.lora_a, self.lora_b = (
                nn.Parameter(torch.randn(rank, inputs) * 0.1),
                nn.Parameter(torch.randn(outputs, rank) * 0.1),
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.base(x) + (x @ self.lora_a.T @ self.lora_b.T) * 0.5

    def __init__(self, width: int = 32):
        super().__init__()
        self.up, self.down, self.head = self.Linear(width, 64), self.Linear(64, width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x + self.down(F.gelu(self.up(x)))).mean(1))


@network("detection_transformer", images(64))
class DetectionTransformer(nn.Module):
    """Queries look at a feature map with positions of sines, which are made in the forward."""

    def __init__(self, width: int = 32, queries: int = 5):
        super().__init__()
        self.backbone = nn.Sequential(conv(3, 16, stride=4), conv(16, width, stride=4))
        self.queries = nn.Embedding(queries, width)
        self.encoder = nn.TransformerEncoderLayer(width, 4, 64, dropout=0.0, batch_first=True)
        self.decoder = nn.TransformerDecoderLayer(width, 4, 64, dropout=0.0, batch_first=True)
        self.classes, self.boxes = (
            nn.Linear(width, 6),
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4)),
        )

    def positions(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        ones = torch.ones(b, h, w, device=x.device)
        rows, columns = ones.cumsum(1, dtype=torch.float32), ones.cumsum(2, dtype=torch.float32)
        scale = torch.arange(c // 2, dtype=torch.float32, device=x.device)
        scale = 10000 ** (2 * torch.div(scale, 2, rounding_mode="floor") / (c // 2))
        rows, columns = rows[..., None] / scale, columns[..., None] / scale
        rows = torch.stack((rows[..., 0::2].sin(), rows[..., 1::2].cos()), dim=4).flatten(3)
        columns = torch.stack((columns[..., 0::2].sin(), columns[..., 1::2].cos()), dim=4).flatten(3)
        return torch.cat((rows, columns), dim=3).flatten(1, 2)

    def forward(self, x: Tensor) -> dict[str, Any]:
        features = self.backbone(x)
        memory = self.encoder(features.flatten(2).transpose(1, 2) + self.positions(features))
        hidden = self.decoder(self.queries.weight.unsqueeze(0).repeat(x.shape[0], 1, 1), memory)
        return {"pred_logits": self.classes(hidden), "pred_boxes": self.boxes(hidden).sigmoid()}


def _graph(batch: int) -> tuple[Tensor, Tensor]:
    return torch.randn(5 * batch, 12), torch.randint(0, 5 * batch, (2, 11 * batch))


@network("graph_convolution", _graph)
class GraphConvolution(nn.Module):
    """Messages along edges are summed at their ends."""

    def __init__(self, width: int = 24):
        super().__init__()
        self.embed, self.message, self.update, self.head = (
            nn.Linear(12, width),
            nn.Linear(2 * width, width),
            nn.Linear(2 * width, width),
            nn.Linear(width, 3),
        )

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        x = F.relu(self.embed(x))
        source, target = edges
        messages = F.relu(self.message(torch.cat([x[source], x[target]], dim=-1)))
        total = torch.zeros_like(x).index_add(0, target, messages)
        return self.head(F.relu(self.update(torch.cat([x, total], dim=-1))))


@network("dense_graph_attention", floats((6, 12), (6, 6)))
class DenseGraphAttention(nn.Module):
    def __init__(self, width: int = 24):
        super().__init__()
        self.embed, self.left, self.right, self.head = (
            nn.Linear(12, width),
            nn.Linear(width, 1),
            nn.Linear(width, 1),
            nn.Linear(width, 3),
        )

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        hidden = self.embed(x)
        scores = F.leaky_relu(self.left(hidden) + self.right(hidden).transpose(1, 2), 0.2)
        scores = torch.where(adjacency > 0, scores, torch.full_like(scores, -9e15))
        return F.log_softmax(self.head(F.elu(torch.matmul(F.softmax(scores, dim=2), hidden))), dim=2)


@network("capsules", images(20, 1))
class Capsules(nn.Module):
    """Votes are routed by agreement, three times."""

    def __init__(self, width: int = 16, classes: int = 4, size: int = 6):
        super().__init__()
        self.stem, self.primary = conv(1, width, 5, 2), nn.Conv2d(width, 16, 5, 2)
        self.votes = nn.Parameter(torch.randn(1, 36, classes, size, 4) * 0.1)

    @staticmethod
    def squash(x: Tensor) -> Tensor:
        square = (x**2).sum(-1, keepdim=True)
        return square * x / ((1.0 + square) * torch.sqrt(square + 1e-8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.primary(self.stem(x))
        x = self.squash(x.view(x.size(0), -1, 4))
        votes = (self.votes @ x[:, :, None, :, None]).squeeze(-1)
        logits = torch.zeros(*votes.size()[:3], 1, device=x.device)
        for step in range(3):
            out = self.squash((F.softmax(logits, dim=2) * votes).sum(dim=1, keepdim=True))
            if step < 2:
                logits = logits + (votes * out).sum(dim=-1, keepdim=True)
        return out.squeeze(1).norm(dim=-1)


@network("nerf", floats((3,), (3,)))
class Nerf(nn.Module):
    """Sines of positions, with the input again half-way."""

    def __init__(self, width: int = 32):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(27, width), nn.Linear(width, width), nn.Linear(width + 27, width)])
        self.density, self.feature = nn.Linear(width, 1), nn.Linear(width, width)
        self.view, self.rgb = nn.Linear(width + 15, 16), nn.Linear(16, 3)
        self.register_buffer("bands", 2.0 ** torch.arange(4))

    def encode(self, x: Tensor, bands: int) -> Tensor:
        return torch.cat([x] + [f(x * self.bands[n]) for n in range(bands) for f in (torch.sin, torch.cos)], -1)

    def forward(self, points: Tensor, directions: Tensor) -> Tensor:
        points, directions = self.encode(points, 4), self.encode(directions, 2)
        hidden = points
        for n, layer in enumerate(self.layers):
            hidden = F.relu(layer(torch.cat([points, hidden], -1) if n == 2 else hidden))
        density = self.density(hidden)
        hidden = F.relu(self.view(torch.cat([self.feature(hidden), directions], -1)))
        return torch.cat([torch.sigmoid(self.rgb(hidden)), density], -1)


@network("siren", floats((20, 2)))
class Siren(nn.Module):
    def __init__(self, width: int = 32):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, width), nn.Linear(width, width)])
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.sin(30 * layer(x))
        return self.head(x)


@network("pointnet", floats((3, 24)))
class PointNet(nn.Module):
    """Points are turned by a matrix of their own, and the largest of every feature counts."""

    def __init__(self, width: int = 32):
        super().__init__()
        self.turn = nn.Sequential(nn.Conv1d(3, width, 1), nn.BatchNorm1d(width), nn.ReLU())
        self.matrix = nn.Linear(width, 9)
        self.features = nn.Sequential(
            nn.Conv1d(3, width, 1), nn.BatchNorm1d(width), nn.ReLU(), nn.Conv1d(width, 2 * width, 1)
        )
        self.head = nn.Sequential(nn.Linear(2 * width, 16), nn.ReLU(), nn.Linear(16, 4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        b = x.size(0)
        turned = torch.max(self.turn(x), 2, keepdim=True)[0].view(b, -1)
        matrix = self.matrix(turned) + torch.eye(3, device=x.device).view(1, 9).repeat(b, 1)
        matrix = matrix.view(-1, 3, 3)
        x = torch.bmm(x.transpose(2, 1), matrix).transpose(2, 1)
        x = torch.max(self.features(x), 2, keepdim=False)[0]
        return self.head(x), matrix


@network("nearest_neighbors", floats((24, 3)))
class NearestNeighbors(nn.Module):
    """Edges of a point cloud lead to the nearest, which depend on the input."""

    def __init__(self, width: int = 24, neighbors: int = 4):
        super().__init__()
        self.neighbors, self.edge, self.head = (
            neighbors,
            nn.Sequential(nn.Conv2d(6, width, 1), nn.ReLU()),
            nn.Linear(width, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        places = torch.cdist(x, x).topk(self.neighbors, dim=-1, largest=False)[1]
        base = torch.arange(0, b, device=x.device).view(-1, 1, 1) * n
        near = x.reshape(b * n, c)[(places + base).view(-1)].view(b, n, self.neighbors, c)
        edges = torch.cat((near - x.unsqueeze(2), x.unsqueeze(2).expand(-1, -1, self.neighbors, -1)), dim=3)
        return self.head(self.edge(edges.permute(0, 3, 1, 2)).max(dim=-1)[0].mean(-1))


@network("kolmogorov_arnold", floats((8,)))
class KolmogorovArnold(nn.Module):
    """Every edge has a function of its own, a sum of radial ones."""

    class Layer(nn.Module):
        def __init__(self, inputs: int, outputs: int, grid: int = 5):
            super().__init__()
            self.register_buffer("grid", torch.linspace(-2, 2, grid))
            self.base, self.norm = nn.Linear(inputs, outputs), nn.LayerNorm(inputs)
            self.spline = nn.Parameter(torch.randn(outputs, inputs, grid) * 0.1)

        def forward(self, x: Tensor) -> Tensor:
            basis = torch.exp(-((self.norm(x)[..., None] - self.grid) ** 2))
            return F.linear(basis.flatten(-2), self.spline.flatten(1)) + self.base(F.silu(x))

    def __init__(self, width: int = 24):
        super().__init__()
        self.layers = nn.Sequential(self.Layer(8, width), self.Layer(width, width), self.Layer(width, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@network("tabular_transformer", together(tokens(4, 10), floats((3,))))
class TabularTransformer(nn.Module):
    """Columns of categories and of numbers are tokens."""

    def __init__(self, width: int = 24):
        super().__init__()
        self.categories = nn.ModuleList([nn.Embedding(10, width) for _ in range(4)])
        self.scale, self.shift = nn.Parameter(torch.randn(3, width)), nn.Parameter(torch.randn(3, width))
        self.attention, self.norm = nn.MultiheadAttention(width, 4, batch_first=True), nn.LayerNorm(width)
        self.head = nn.Linear(width, 2)

    def forward(self, categories: Tensor, numbers: Tensor) -> Tensor:
        columns = [embed(categories[:, n]) for n, embed in enumerate(self.categories)]
        x = torch.cat([torch.stack(columns, 1), numbers.unsqueeze(-1) * self.scale + self.shift], dim=1)
        x = self.norm(x + self.attention(x, x, x, need_weights=False)[0])
        return self.head(x.mean(1))


@network("factorization_machine", tokens(6, 30))
class FactorizationMachine(nn.Module):
    """Pairs of fields by a difference of squares, beside a deep part."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.linear, self.embed, self.bias = (
            nn.EmbeddingBag(30, 1, mode="sum"),
            nn.Embedding(30, width),
            nn.Parameter(torch.zeros(1)),
        )
        self.deep = nn.Sequential(nn.Linear(6 * width, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, x: Tensor) -> Tensor:
        fields = self.embed(x)
        pairs = 0.5 * (fields.sum(1).pow(2) - fields.pow(2).sum(1)).sum(1, keepdim=True)
        return torch.sigmoid(self.linear(x) + pairs + self.deep(fields.flatten(1)) + self.bias).squeeze(-1)


@network("fourier_operator", images(16, 2))
class FourierOperator(nn.Module):
    """Low frequencies are mixed by complex weights."""

    def __init__(self, width: int = 12, modes: int = 4):
        super().__init__()
        self.modes, self.lift, self.skip, self.project = (
            modes,
            nn.Conv2d(2, width, 1),
            nn.Conv2d(width, width, 1),
            nn.Conv2d(width, 1, 1),
        )
        self.weight = nn.Parameter(torch.randn(width, width, modes, modes, dtype=torch.cfloat) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lift(x)
        spectrum = torch.fft.rfft2(x)
        out = torch.zeros_like(spectrum)
        low = spectrum[:, :, : self.modes, : self.modes]
        out[:, :, : self.modes, : self.modes] = torch.einsum("bixy,ioxy->boxy", low, self.weight)
        return self.project(F.gelu(torch.fft.irfft2(out, s=x.shape[-2:]) + self.skip(x)))


@network("diffusion_step", together(images(16), lambda batch: (torch.randint(0, 100, (batch,)),)))
class DiffusionStep(nn.Module):
    """A residual network that is told the time by sines."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.stem, self.time = (
            nn.Conv2d(3, width, 3, padding=1),
            nn.Sequential(nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 2 * width)),
        )
        self.norm, self.body, self.out = (
            nn.GroupNorm(4, width),
            nn.Conv2d(width, width, 3, padding=1),
            nn.Conv2d(width, 3, 3, padding=1),
        )

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        half = 8
        angles = time.float()[:, None] * torch.exp(-math.log(10000) * torch.arange(half, device=x.device) / half)[None]
        scale, shift = self.time(torch.cat([angles.sin(), angles.cos()], -1))[:, :, None, None].chunk(2, dim=1)
        x = self.stem(x)
        return self.out(x + self.body(F.silu(self.norm(x) * (1 + scale) + shift)))


@network("actor_critic", images(36, 4))
class ActorCritic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(4, 16, 8, 4), nn.ReLU(), nn.Conv2d(16, 32, 4, 2), nn.ReLU(), nn.Flatten())
        self.hidden, self.value, self.advantage = nn.Linear(32 * 9, 48), nn.Linear(48, 1), nn.Linear(48, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = F.relu(self.hidden(self.trunk(x / 255.0)))
        value, advantage = self.value(hidden), self.advantage(hidden)
        return value + advantage - advantage.mean(dim=1, keepdim=True), F.softmax(advantage, dim=-1)


@network("loss_in_forward", together(images(32), lambda batch: (torch.randint(0, 10, (batch,)),)))
class LossInForward(nn.Module):
    def __init__(self, width: int = 16):
        super().__init__()
        self.body, self.head = (
            nn.Sequential(conv(3, width, stride=2), conv(width, 2 * width, stride=2)),
            nn.Linear(2 * width, 10),
        )

    def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.head(self.body(x).mean((2, 3)))
        return F.cross_entropy(logits, labels, label_smoothing=0.1), logits


@network("spatial_transformer", images(28, 1))
class SpatialTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.local = nn.Sequential(
            nn.Conv2d(1, 8, 7), nn.MaxPool2d(2), nn.ReLU(True), nn.Conv2d(8, 10, 5), nn.MaxPool2d(2), nn.ReLU(True)
        )
        self.theta = nn.Sequential(nn.Linear(90, 32), nn.ReLU(True), nn.Linear(32, 6))
        self.body, self.head = conv(1, 16, stride=2), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        theta = self.theta(self.local(x).view(-1, 10 * 3 * 3)).view(-1, 2, 3)
        grid = F.affine_grid(theta, list(x.size()), align_corners=False)
        return F.log_softmax(self.head(self.body(F.grid_sample(x, grid, align_corners=False)).mean((2, 3))), dim=1)


@network("segmentation_with_unpooling", images(32))
class SegmentationWithUnpooling(nn.Module):
    def __init__(self, width: int = 16):
        super().__init__()
        self.encode, self.middle, self.decode, self.head = (
            conv(3, width),
            conv(width, width),
            conv(width, width),
            nn.Conv2d(width, 4, 1),
        )
        self.pool, self.unpool = nn.MaxPool2d(2, 2, return_indices=True), nn.MaxUnpool2d(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x, places = self.pool(self.encode(x))
        return self.head(self.decode(self.unpool(self.middle(x), places)))


@network("cross_stage_partial", images(32))
class CrossStagePartial(nn.Module):
    """As the blocks of YOLO: split, append, concatenate."""

    def __init__(self, width: int = 32):
        super().__init__()
        self.stem, self.enter = conv(3, width), conv(width, width, 1)
        self.blocks, self.leave = (
            nn.ModuleList([conv(width // 2, width // 2) for _ in range(2)]),
            conv(2 * width, width, 1),
        )
        self.pool, self.head = nn.MaxPool2d(5, 1, 2), nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.enter(self.stem(x)).split(16, 1))
        y.extend(block(y[-1]) for block in self.blocks)
        x = self.leave(torch.cat(y, 1))
        return self.head(torch.cat((x, self.pool(x)), 1).mean((2, 3)))


@network("early_layers_frozen", images(32))
class EarlyLayersFrozen(nn.Module):
    """Stays in evaluation mode in its first part, whatever mode it is put in."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.frozen, self.body, self.head = (
            conv(3, width).requires_grad_(False),
            conv(width, width),
            nn.Linear(width, 10),
        )

    def train(self, mode: bool = True) -> EarlyLayersFrozen:
        super().train(mode)
        self.frozen.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.frozen(x)
        return self.head(self.body(x).mean((2, 3)))
