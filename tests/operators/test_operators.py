"""Every family of operators between two layers: what is prunable there, and that removing it is right."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torchorbit
from tests.models import Computes
from tests.orbits.helpers import kinds

pytestmark = pytest.mark.numeric

X = torch.randn(2, 3, 8, 8)
T = torch.randn(2, 6, 12)
INDICES = torch.randint(0, 10, (2, 5))


def images(mid, out=8, **members):
    """A convolution to eight channels, something in the middle, and a convolution from ``out`` channels."""
    model = Computes(
        lambda self, x: self.head(mid(self, self.stem(x))),
        stem=nn.Conv2d(3, 8, 1),
        head=nn.Conv2d(out, 4, 1),
        **members,
    )
    return model, X


def tokens(forward, x=T, **members):
    return Computes(forward, **members), x


def conv(*args, **options):
    return nn.Conv2d(*args, **options)


def swapped(self, y):
    z = y * 1
    z[:, :, 0] = y[:, :, 1]
    return z


def written(self, y):
    z = y * 1
    z[:, :4] = 0.5
    return z


def halves(self, y):
    z = y.new_empty(y.shape[0], 16, 8, 8)
    z[:, :8] = y
    z[:, 8:] = self.c(y)
    return z


def exchanged(self, y):
    z = torch.zeros_like(y)
    z[:, :4] = y[:, 4:]
    z[:, 4:] = y[:, :4]
    return z


def strided(self, y):
    z = y * 1
    z[:, ::2] = self.c(y)
    return z


def one_written(self, y):
    z = y * 1
    z[:, 3] = self.c(y)[:, 0]
    return z


def at_positions(self, y):
    z = y * 1
    z[:, [6, 0, 3]] = self.c(y)
    return z


def shifted_in_time(self, y):
    z = torch.zeros_like(y)
    z[:-1, :2] = y[1:, :2]
    z[1:, 2:4] = y[:-1, 2:4]
    z[:, 4:] = y[:, 4:]
    return z


def masked(self, y):
    z = y * 1
    z[z < 0] = 0.1
    return z


def masked_by_two(self, y):
    z = y * 1
    z[(z < 0) & ~(y > -0.2).expand_as(y)] = torch.tensor(0.1, dtype=y.dtype)
    return z


def numbered(self, y):
    z = y * 1
    z[(y.sum((1, 2, 3)) > 0).long()] = 0.0
    return z


def masked_samples(self, y):
    z = y * 1
    z[y.sum((1, 2, 3)) < 0] = 0.0
    return z


def masked_rows(self, y):
    z = y.permute(0, 2, 3, 1) * 1
    z[z.sum(-1) < 0] = y.mean((2, 3))[0]
    return z.permute(0, 3, 1, 2)


def angles(width):
    return torch.arange(8.0)[:, None] / 100 ** (2 * (torch.arange(width) // 2) / width)


def sines(self, y):
    angle = angles(8)
    places = torch.stack((angle[:, 0::2].sin(), angle[:, 1::2].cos()), -1).flatten(1)
    return y + places.t()[None, :, :, None].to(y.dtype)


def paired_sines(self, y):
    rows = y.mean((1, 3))[..., None] / 100 ** (2 * (torch.arange(8) // 2) / 8).to(y.dtype)
    places = torch.stack((rows[..., 0::2].sin(), rows[..., 1::2].cos()), -1).flatten(2)
    return y + places.transpose(1, 2)[..., None]


def used_twice(self, y):
    scale = torch.linspace(1, 2, 8, dtype=y.dtype)
    return y * scale[:, None, None] + scale.cumsum(0)[:, None, None]


#: Name -> (model and input, width and reading of every orbit).
CASES = {
    # elementwise
    "relu": (images(lambda self, y: y.relu()), [(8, 0)]),
    "exp, which is one at zero": (images(lambda self, y: y.exp()), [(8, 0)]),
    "two branches": (images(lambda self, y: y * self.c(y), c=conv(8, 8, 1)), [(8, 0)]),
    "where": (images(lambda self, y: torch.where(y > 0, y, self.c(y)), c=conv(8, 8, 1)), [(8, 0)]),
    "prelu": (images(lambda self, y: self.p(y), p=nn.PReLU(8)), [(8, 0)]),
    "scale": (images(lambda self, y: y * self.g[:, None, None], g=nn.Parameter(torch.randn(8))), [(8, 0)]),
    "gate": (
        images(lambda self, y: y * self.b(self.a(y.mean((2, 3), True)).relu()).sigmoid(), a=conv(8, 3, 1), b=conv(3, 8, 1)),
        [(3, 0), (8, 0)],
    ),
    "one channel for all": (images(lambda self, y: y * self.a(y).sigmoid(), a=conv(8, 1, 1)), [(8, 0)]),
    # normalization
    "softmax": (images(lambda self, y: y.softmax(1)), [(8, 0)]),
    "log softmax": (images(lambda self, y: F.log_softmax(y, 1)), [(8, 0)]),
    "Softmax2d": (images(lambda self, y: self.s(y), s=nn.Softmax2d()), [(8, 0)]),
    "Softmin over space": (images(lambda self, y: self.s(y), s=nn.Softmin(2)), [(8, 0)]),
    "Softmin over channels": (images(lambda self, y: self.s(y), s=nn.Softmin(1)), []),
    "normalize": (images(lambda self, y: F.normalize(y, dim=1)), [(8, 0)]),
    "local response": (images(lambda self, y: self.n(y), n=nn.LocalResponseNorm(3)), [(8, 0)]),
    "instance": (images(lambda self, y: self.n(y), n=nn.InstanceNorm2d(8, affine=True)), [(8, 0)]),
    "layer, of channels and space": (images(lambda self, y: self.n(y), n=nn.LayerNorm([8, 8, 8])), [(8, 0)]),
    "layer, channels last": (
        images(lambda self, y: self.n(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), n=nn.LayerNorm(8)),
        [(8, 0)],
    ),
    "rms": (images(lambda self, y: self.n(y.movedim(1, -1)).movedim(-1, 1), n=nn.RMSNorm(8)), [(8, 0)]),
    # reductions over channels
    "mean and variance": (
        images(lambda self, y: (y - y.mean(1, True)) / (y.var(1, keepdim=True) + 1e-3).sqrt()),
        [(8, 0)],
    ),
    "std": (images(lambda self, y: y / (y.std(1, keepdim=True) + 1)), [(8, 0)]),
    "var_mean": (images(lambda self, y: (y - torch.var_mean(y, 1, keepdim=True)[1]).relu()), [(8, 0)]),
    "amax": (images(lambda self, y: y * y.amax(1, keepdim=True)), [(8, 0)]),
    "amin": (images(lambda self, y: y * y.amin(1, keepdim=True)), [(8, 0)]),
    "prod": (images(lambda self, y: y + y.prod(1, keepdim=True)), [(8, 0)]),
    "logsumexp": (images(lambda self, y: y * y.logsumexp(1, keepdim=True)), [(8, 0)]),
    "norm": (images(lambda self, y: y * y.norm(dim=1, keepdim=True)), [(8, 0)]),
    "max along channels": (images(lambda self, y: y * y.max(1, keepdim=True)[0]), [(8, 0)]),
    "min along channels": (images(lambda self, y: y * torch.min(y, 1).values[:, None]), [(8, 0)]),
    "max of all": (images(lambda self, y: y / (1 + y.max())), [(8, 0)]),
    "max along channels, and where": (images(lambda self, y: y * y.max(1, keepdim=True)[1]), []),
    "gate by the mean and the largest": (
        images(
            lambda self, y: y * self.g(torch.cat([y.mean(1, True), torch.max(y, 1, True)[0]], 1)).sigmoid(),
            g=conv(2, 1, 3, padding=1),
        ),
        [(8, 0)],
    ),
    # views
    "squeeze of a dimension that is longer than one": (images(lambda self, y: y.squeeze(1)), [(8, 0)]),
    "squeeze of several": (images(lambda self, y: y[:, :, None].squeeze((1, 2))), [(8, 0)]),
    "squeeze of all": (
        images(lambda self, y: self.c(y.mean((2, 3), True)).squeeze()[:, :, None, None], c=conv(8, 8, 1)),
        [(8, 0), (8, 0)],
    ),
    "unflatten": (images(lambda self, y: self.u(y).sum(1), out=4, u=nn.Unflatten(1, (2, 4))), [(2, 1), (4, 0)]),
    "flip": (images(lambda self, y: y.flip(1)), [(8, 0)]),
    "roll": (images(lambda self, y: y.roll(1, 1)), [(8, 0)]),
    "roll back": (images(lambda self, y: torch.roll(y, -3, dims=(1,))), [(8, 0)]),
    "roll of channels, twice, and space": (images(lambda self, y: y.roll((11, 2, -1), (1, 2, 1))), [(8, 0)]),
    "roll of all elements": (images(lambda self, y: y.roll(3)), []),
    "roll of space": (images(lambda self, y: y.roll((1, 2), (2, 3))), [(8, 0)]),
    "repeat": (images(lambda self, y: y.repeat(1, 2, 1, 1), out=16), [(8, 0)]),
    "repeat_interleave to a length": (
        images(lambda self, y: y.repeat_interleave(2, 1, output_size=16), out=16),
        [(8, 0)],
    ),
    "repeat_interleave": (images(lambda self, y: y.repeat_interleave(2, 1), out=16), [(8, 0)]),
    "expand": (images(lambda self, y: y[:, :1].expand(-1, 8, -1, -1) * self.c(y), c=conv(8, 8, 1)), [(7, 0), (8, 0)]),
    "expand of a parameter": (
        images(lambda self, y: y * self.v[None, :, None, None].expand(y.shape[0], 8, 1, 1), v=nn.Parameter(torch.randn(8))),
        [(8, 0)],
    ),
    "channel shuffle": (images(lambda self, y: self.s(y), s=nn.ChannelShuffle(4)), [(2, 0), (4, 1)]),
    "unfold and fold": (images(lambda self, y: F.fold(F.unfold(y, 3, padding=1), (8, 8), 3, padding=1)), [(8, 0)]),
    # joining and taking apart
    "three chunks": (
        images(lambda self, y: torch.cat([y.chunk(3, 1)[2], y.chunk(3, 1)[0]], 1), out=5),
        [(2, 0), (3, 0), (3, 0)],
    ),
    "narrow": (images(lambda self, y: y.narrow(1, 2, 4), out=4), [(4, 0), (4, 0)]),
    "narrow from the end": (images(lambda self, y: y.narrow(1, -3, 3), out=3), [(3, 0), (5, 0)]),
    "slice from the end": (images(lambda self, y: y[:, -3:], out=3), [(3, 0), (5, 0)]),
    "stack beside": (images(lambda self, y: torch.stack([y, self.c(y)], 2).flatten(1, 2), out=16, c=conv(8, 8, 1)), [(8, 0)]),
    "stack above": (images(lambda self, y: torch.stack([y, self.c(y)], 1).flatten(1, 2), out=16, c=conv(8, 8, 1)), [(8, 0)]),
    "pad with channels": (images(lambda self, y: F.pad(y, (0, 0, 0, 0, 1, 3)), out=12), [(4, 0), (8, 0)]),
    "pad and add": (
        images(lambda self, y: F.pad(y, (0, 0, 0, 0, 1, 3)) + self.c(y), out=12, c=conv(8, 12, 1)),
        [(4, 0), (8, 0)],
    ),
    "pad around": (
        Computes(
            lambda self, x: self.head(F.pad(self.stem(x).mean((2, 3))[:, None], (2, 2), mode="circular")[:, 0]),
            stem=conv(3, 8, 1), head=nn.Linear(12, 3),
        ),
        [(8, 0)],
    ),
    "zeros beside": (
        images(lambda self, y: torch.cat([y, y.new_zeros(y.shape[0], 3, 8, 8)], 1), out=11),
        [(3, 0), (8, 0)],
    ),
    "reflection": (images(lambda self, y: self.p(y), p=nn.ReflectionPad2d(1)), [(8, 0)]),
    # indexing
    "positions in any order": (images(lambda self, y: y[:, [1, 0, 3, 2, 5, 4, 7, 6]]), [(8, 0)]),
    "some positions, one twice": (images(lambda self, y: y[:, [3, 3, -1]], out=3), [(2, 0), (6, 0)]),
    "positions in a buffer": (images(lambda self, y: y[:, self.p], p=torch.randperm(8)), [(8, 0)]),
    "positions that are computed": (images(lambda self, y: y[:, torch.arange(8).view(2, 4).t().flatten()]), [(8, 0)]),
    "index_select": (images(lambda self, y: y.index_select(1, self.p), p=torch.randperm(8)), [(8, 0)]),
    "positions that an input decides": (images(lambda self, y: y[:, y.mean((0, 2, 3)).argsort()]), []),
    "one position, and another dimension by position": (images(lambda self, y: y[:, [1, 0], [0, 1]][:, :, None], out=2), []),
    "gather in space": (images(lambda self, y: y.gather(2, y.argsort(2))), [(8, 0)]),
    "adding at positions in space": (
        images(lambda self, y: y.index_add(2, torch.tensor([0, 2, 5]), self.c(y)[:, :, :3]), c=conv(8, 8, 1)),
        [(8, 0)],
    ),
    "adding at positions of channels": (images(lambda self, y: y.index_add(1, torch.tensor([0, 2]), y[:, 2:4])), []),
    "cumsum": (images(lambda self, y: y.cumsum(1)), []),
    "cumsum over space": (images(lambda self, y: y.cumsum(2)), [(8, 0)]),
    "writing rows": (images(swapped), [(8, 0)]),
    "writing channels": (images(written), [(4, 0), (4, 0)]),
    "writing half and half": (images(halves, out=16, c=conv(8, 8, 1)), [(8, 0), (8, 0)]),
    "writing channels from others": (images(exchanged), [(4, 0)]),
    "writing every other channel": (images(strided, c=conv(8, 4, 1)), [(4, 0), (4, 0)]),
    "writing one channel": (images(one_written, c=conv(8, 1, 1)), [(7, 0)]),
    "writing channels at positions": (images(at_positions, c=conv(8, 3, 1)), [(3, 0), (5, 0)]),
    "writing channels of some samples": (images(shifted_in_time), [(2, 0), (2, 0), (4, 0)]),
    "writing where a mask holds": (images(masked), [(8, 0)]),
    "writing where a mask of masks holds": (images(masked_by_two), [(8, 0)]),
    "writing where a mask of samples holds": (images(masked_samples), [(8, 0)]),
    "writing rows of values where a mask holds": (images(masked_rows), [(8, 0)]),
    "writing where a mask that was made a number says": (images(numbered), [(8, 0)]),
    "positions of groups and of what is in them": (
        images(lambda self, y: y.unflatten(1, (2, 4))[:, [1, 0, 1], self.p], out=3, p=torch.tensor([3, 0, 2])), []
    ),
    # constants that are made in forward
    "positions as sines": (images(sines), [(8, 0)]),
    "positions as sines, in pairs": (images(paired_sines), [(4, 0)]),
    "a constant of each channel": (images(lambda self, y: y * torch.linspace(1, 2, 8)[:, None, None]), [(8, 0)]),
    "a constant of each channel, used twice": (images(used_twice), [(8, 0)]),
    "a constant matrix": (
        images(lambda self, y: torch.einsum("bihw,ij->bjhw", y, (torch.eye(8) + torch.linspace(0, 1, 8)).to(y.dtype))),
        [(8, 0)],
    ),
    "embedding": (
        tokens(lambda self, i: self.o(self.e(i)), x=INDICES, e=nn.Embedding(10, 6), o=nn.Linear(6, 3)),
        [(6, 0)],
    ),
    # space
    "pooling": (images(lambda self, y: F.max_pool2d(F.avg_pool2d(y, 2), 2)), [(8, 0)]),
    "LPPool2d": (images(lambda self, y: self.p(y), p=nn.LPPool2d(2, 2)), [(8, 0)]),
    "LPPool1d": (
        tokens(lambda self, x: self.b(self.p(self.a(x))), a=nn.Conv1d(6, 8, 1), b=nn.Conv1d(8, 4, 1), p=nn.LPPool1d(2, 2)),
        [(8, 0)],
    ),
    "interpolation": (images(lambda self, y: F.interpolate(y, scale_factor=2, mode="bilinear")), [(8, 0)]),
    "fourier": (images(lambda self, y: torch.fft.fft2(y).real), [(8, 0)]),
    # convolutions
    "transposed": (images(lambda self, y: self.t(y), out=6, t=nn.ConvTranspose2d(8, 6, 2, 2)), [(6, 0), (8, 0)]),
    "transposed in groups": (
        images(lambda self, y: self.t(y), out=12, t=nn.ConvTranspose2d(8, 12, 2, 2, groups=4)),
        [(2, 0), (3, 0), (4, 1)],
    ),
    "transposed depthwise": (images(lambda self, y: self.t(y), t=nn.ConvTranspose2d(8, 8, 2, 2, groups=8)), [(8, 0)]),
    "transposed depthwise, twice as many": (
        images(lambda self, y: self.t(y), out=16, t=nn.ConvTranspose2d(8, 16, 2, 2, groups=8)),
        [(2, 0), (8, 1)],
    ),
    "along channels": (
        images(
            lambda self, y: y * self.e(y.mean((2, 3))[:, None]).sigmoid().transpose(1, 2)[..., None],
            e=nn.Conv1d(1, 1, 3, padding=1),
        ),
        [(8, 0)],
    ),
    "in three dimensions": (
        tokens(lambda self, x: self.b(self.a(x[:, None])), x=X, a=nn.Conv3d(1, 6, 1), b=nn.Conv3d(6, 3, 1)),
        [(6, 0)],
    ),
    # products
    "bilinear": (
        tokens(
            lambda self, x: self.o(self.b(self.a(x), self.c(x))),
            a=nn.Linear(12, 5), c=nn.Linear(12, 4), b=nn.Bilinear(5, 4, 6), o=nn.Linear(6, 3),
        ),
        [(4, 0), (5, 0), (6, 0)],
    ),
    "einsum": (
        tokens(
            lambda self, x: self.o(torch.einsum("bnc,bmc,bmd->bnd", self.q(x), self.k(x), self.v(x))),
            q=nn.Linear(12, 7), k=nn.Linear(12, 7), v=nn.Linear(12, 9), o=nn.Linear(9, 3),
        ),
        [(7, 0), (9, 0)],
    ),
    "outer product": (
        tokens(
            lambda self, x: self.o(torch.einsum("bnc,bnd->bcd", self.q(x), self.k(x)).flatten(1)),
            q=nn.Linear(12, 4), k=nn.Linear(12, 5), o=nn.Linear(20, 3),
        ),
        [(4, 1), (5, 0)],
    ),
    "addmm": (
        tokens(
            lambda self, x: self.o(torch.addmm(self.b, self.i(x[:, 0]), self.w)),
            i=nn.Linear(12, 6), b=nn.Parameter(torch.randn(7)), w=nn.Parameter(torch.randn(6, 7)), o=nn.Linear(7, 3),
        ),
        [(6, 0), (7, 0)],
    ),
    "tensordot": (
        tokens(
            lambda self, x: self.o(torch.tensordot(self.i(x), self.w, dims=([2], [1]))),
            i=nn.Linear(12, 6), w=nn.Parameter(torch.randn(7, 6)), o=nn.Linear(7, 3),
        ),
        [(6, 0), (7, 0)],
    ),
    "cdist": (
        tokens(
            lambda self, x: self.o(torch.cdist(self.i(x), self.w)),
            i=nn.Linear(12, 6), w=nn.Parameter(torch.randn(7, 6)), o=nn.Linear(7, 3),
        ),
        [(6, 0), (7, 0)],
    ),
    "cosine similarity": (
        tokens(
            lambda self, x: self.o(self.c(self.i(x)[:, :, None], self.w)),
            i=nn.Linear(12, 6), w=nn.Parameter(torch.randn(7, 6)), o=nn.Linear(7, 3), c=nn.CosineSimilarity(-1),
        ),
        [(6, 0), (7, 0)],
    ),
    "distance": (
        tokens(
            lambda self, x: self.o(F.pairwise_distance(self.i(x)[:, :, None], self.w)),
            i=nn.Linear(12, 6), w=nn.Parameter(torch.randn(7, 6)), o=nn.Linear(7, 3),
        ),
        [(6, 0), (7, 0)],
    ),
    "a weight of norm and direction": (
        tokens(
            lambda self, x: self.o(F.linear(self.i(x), torch._weight_norm(self.v, self.g))),
            i=nn.Linear(12, 6), v=nn.Parameter(torch.randn(7, 6)), g=nn.Parameter(torch.randn(7, 1)), o=nn.Linear(7, 3),
        ),
        [(6, 0), (7, 0)],
    ),
    "a bag of embeddings": (
        tokens(
            lambda self, x: self.o(self.e(x)), INDICES,
            e=nn.EmbeddingBag(10, 6, mode="mean", padding_idx=2), o=nn.Linear(6, 3),
        ),
        [(6, 0)],
    ),
    "unpooling": (
        images(lambda self, y: F.max_unpool2d(*F.max_pool2d(y, 2, return_indices=True), 2)), [(8, 0)],
    ),
    "unpooling with the positions of others": (
        images(
            lambda self, y: F.max_unpool2d(F.avg_pool2d(self.c(y), 2), F.max_pool2d(y, 2, return_indices=True)[1], 2),
            c=conv(8, 8, 1),
        ),
        [(8, 0)],
    ),
    "the conjugate transpose": (images(lambda self, y: (y.flatten(2).mH * 2).mH.unflatten(2, (8, 8))), [(8, 0)]),
    "differences of tokens": (tokens(lambda self, x: self.o(torch.diff(self.i(x), dim=1)), i=nn.Linear(12, 6), o=nn.Linear(6, 3)), [(6, 0)]),
    "differences of channels": (tokens(lambda self, x: self.o(torch.diff(self.i(x))), i=nn.Linear(12, 6), o=nn.Linear(5, 3)), []),
    "quantized numbers": (images(lambda self, y: torch.fake_quantize_per_tensor_affine(y.float(), 0.1, 3, -128, 127).to(y.dtype)), [(8, 0)]),
    "written, filled and copied positions": (
        images(lambda self, y: y.index_fill(2, torch.tensor([1]), 2.0).index_copy(3, torch.tensor([0, 2]), self.c(y)[..., :2]), c=conv(8, 8, 1)),
        [(8, 0)],
    ),
    "written rows": (images(lambda self, y: y.select_scatter(self.c(y)[:, :, 0], 2, 1).slice_scatter(y[..., :2], 3, 1, 3), c=conv(8, 8, 1)), [(8, 0)]),
    "written channels": (images(lambda self, y: y.select_scatter(y[:, 0], 1, 2)), []),
    "reduced at positions": (
        images(lambda self, y: y.scatter_reduce(3, torch.zeros_like(y, dtype=torch.long), self.c(y), "amax"), c=conv(8, 8, 1)),
        [(8, 0)],
    ),
    "determinants, one for each channel": (
        images(lambda self, y: y * torch.linalg.det(y[..., :2, :2])[..., None, None] + torch.slogdet(y)[1][..., None, None]), [(8, 0)],
    ),
    "a loss": (tokens(lambda self, x: self.o(self.i(x)) + F.mse_loss(self.i(x), self.j(x)), i=nn.Linear(12, 6), j=nn.Linear(12, 6), o=nn.Linear(6, 3)), []),
    "broadcast tensors": (
        images(lambda self, y: torch.add(*torch.broadcast_tensors(y, self.c(y.mean((2, 3), True)))), c=conv(8, 8, 1)), [(8, 0)],
    ),
    "a p-norm pool of volumes": (
        tokens(lambda self, x: self.o(F.lp_pool3d(self.i(x), 2, 2)), torch.randn(2, 3, 4, 4, 4), i=nn.Conv3d(3, 6, 1), o=nn.Conv3d(6, 2, 1)),
        [(6, 0)],
    ),
    "channels attend to channels": (
        images(lambda self, y: ((y.flatten(2) @ y.flatten(2).mT).softmax(-1) @ y.flatten(2)).unflatten(2, (8, 8))),
        [(8, 0)],
    ),
    # recurrent
    "RNN": (
        tokens(
            lambda self, x: self.o(self.l(self.a(x))[0]),
            a=nn.Linear(12, 8),
            l=nn.RNN(8, 6, batch_first=True),
            o=nn.Linear(6, 3),
        ),
        [(6, 0), (8, 0)],
    ),
    "LSTM of one unit": (
        tokens(
            lambda self, x: self.o(self.l(self.a(x))[0]),
            a=nn.Linear(12, 8),
            l=nn.LSTM(8, 1, batch_first=True, bidirectional=True),
            o=nn.Linear(2, 3),
        ),
        [(8, 0)],
    ),
    "LSTM": (
        tokens(
            lambda self, x: self.o(self.l(self.a(x))[0]),
            a=nn.Linear(12, 8), l=nn.LSTM(8, 6, 2, batch_first=True, bidirectional=True), o=nn.Linear(12, 3),
        ),
        [(6, 0), (8, 0)],
    ),
    "GRU's last state": (
        tokens(
            lambda self, x: self.o(self.l(self.a(x))[1][-1]),
            a=nn.Linear(12, 8), l=nn.GRU(8, 6, 2, batch_first=True), o=nn.Linear(6, 3),
        ),
        [(6, 0), (8, 0)],
    ),
    "a step of an LSTM": (
        tokens(
            lambda self, x: self.o(self.c(self.a(x[:, 0]), (self.h(x[:, 1]), self.h(x[:, 2])))[0]),
            a=nn.Linear(12, 8), h=nn.Linear(12, 6), c=nn.LSTMCell(8, 6), o=nn.Linear(6, 3),
        ),
        [(6, 0), (8, 0)],
    ),
    "steps of a GRU, which begin with zeros": (
        tokens(
            lambda self, x: self.o(self.c(self.a(x[:, 1]), self.c(self.a(x[:, 0])))),
            a=nn.Linear(12, 8), c=nn.GRUCell(8, 6), o=nn.Linear(6, 3),
        ),
        [(6, 0), (8, 0)],
    ),
    "a step of a recurrent layer of one unit": (
        tokens(
            lambda self, x: self.o(self.c(self.a(x[:, 1]), self.h(x[:, 0]))),
            a=nn.Linear(12, 8), h=nn.Linear(12, 1), c=nn.RNNCell(8, 1, nonlinearity="relu"), o=nn.Linear(1, 3),
        ),
        [(8, 0)],
    ),
    "LSTM with projections": (
        tokens(
            lambda self, x: self.o(self.l(self.a(x))[0]),
            a=nn.Linear(12, 8), l=nn.LSTM(8, 6, batch_first=True, proj_size=4), o=nn.Linear(4, 3),
        ),
        [],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_between_two_layers(name):
    given, expected = CASES[name]
    model, x = given if isinstance(given, tuple) else (given, X)
    x = x.double() if x.is_floating_point() else x
    dag = torchorbit.convert(model.double().eval(), x)
    orbits = torchorbit.find_orbits(dag)
    assert orbits.unruled == ()
    assert kinds(orbits) == expected
    checked = torchorbit.rules.check_rule(model, x)
    assert checked == sum(min(orbit.width, 8) for orbit in orbits) + bool(len(orbits))
    if not expected or name in ("mean and variance", "std", "var_mean"):  # one number has no variance
        return
    removed = {orbit: range(1, orbit.width) for orbit in orbits}
    pruned = torchorbit.remove_channels(dag, removed)
    assert torchorbit.verify_removal(dag, pruned, removed, x) < 1e-12
    # One channel is still a dimension: whatever is left computes for any number of samples.
    more = x.repeat(3, *[1] * (x.dim() - 1))
    with torch.no_grad():
        assert pruned(more).shape == dag(more).shape
