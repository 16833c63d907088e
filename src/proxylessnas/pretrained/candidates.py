"""Candidates cut from a trained inverted bottleneck, and refitted by least squares.

A block may become narrower inside (fewer hidden channels), take a smaller kernel (the centre of
its own), or be left out. What remains is fitted to the block's output in closed form: the
projection is linear in the hidden activations h, so with their second moments over a few hundred
photos the best projection of any set of channels is the solution of a small linear system.

Which channels remain is decided by backward elimination: the channel whose removal costs least,
after all others are refitted, goes first. So the channels of a narrower candidate are among those
of every wider one, and one elimination serves all widths.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from proxylessnas.core.mixed import Residual, Zero
from proxylessnas.pretrained.least_squares import (
    RIDGE,
    Moments,
    elimination_order,
    fit_projection,
)
from proxylessnas.pretrained.networks import bottleneck
from proxylessnas.spaces.blocks import ConvBN, MBConv, Network
from proxylessnas.spaces.inverted import parse_choice

PHOTOS, LEAST_PHOTOS = 1024, 128  # of which moments are taken: at most, and where maps are large
PIXELS = 1 << 15  # of a block's input, over all photos: enough for a thousand channels
SHARES = (5 / 6, 2 / 3, 1 / 2, 1 / 3, 1 / 6)  # of the hidden channels
LEAST = 8  # hidden channels of the narrowest candidate
WIDE = 384  # hidden channels from which widths are multiples of 16
CHUNK = 32  # photos

# --- where fits come from ---


@torch.no_grad()
def block_inputs(network: Network, images: Iterable[Tensor]) -> list[Tensor]:
    """The inputs of every block, of as many images as its moments need.

    images: batches [batch, channels, height, width], as the network takes them. Maps of early
    blocks are large, and many pixels of few photos tell as much there as few pixels of many.
    """
    network.eval()
    inputs: list[list[Tensor]] = [[] for _ in network.blocks]
    count = 0
    for batch in images:
        x = network.stem(batch)
        for block, stored in zip(network.blocks, inputs, strict=True):
            if count < photos_for(x.shape[-2] * x.shape[-1]):
                stored.append(x)
            x = block(x)
        count += len(batch)
        if count >= PHOTOS:
            break
    return [torch.cat(stored) for stored in inputs]


def photos_for(pixels: int) -> int:
    """Photos from which the moments of a block are taken whose input has so many pixels."""
    return max(LEAST_PHOTOS, min(PHOTOS, PIXELS // pixels))


# --- moments ---


@torch.no_grad()
def moments_of(block: MBConv, inputs: Tensor, teacher: MBConv | None = None) -> Moments:
    """The moments of a block's hidden activations.

    inputs: [photos, channels, height, width]. teacher: whose output is the target; default: the
    block itself.
    """
    weight, bias = folded_projection(block)
    hidden_channels, out = weight.shape
    gram = torch.zeros(hidden_channels, hidden_channels, dtype=torch.float64)
    total = torch.zeros(hidden_channels, dtype=torch.float64)
    products, residuals = torch.zeros_like(weight), torch.zeros(out, dtype=torch.float64)
    count = 0
    for x in torch.split(inputs, CHUNK):
        h = as_rows(hidden(block, x))
        # Products of one chunk in float32, sums over chunks in float64.
        gram += (h.T @ h).double()
        total += h.double().sum(0)
        count += len(h)
        if teacher is not None:
            rest = as_rows(teacher(x)) - (h @ weight.float() + bias.float())
            products += (h.T @ rest).double()
            residuals += rest.double().sum(0)
    mean, rest_mean = total / count, residuals / count
    return Moments(
        gram=gram / count - torch.outer(mean, mean),
        mean=mean,
        weight=weight,
        residual=products / count - torch.outer(mean, rest_mean),
        target=mean @ weight + bias + rest_mean,
    )


def hidden(block: MBConv, x: Tensor) -> Tensor:
    """What the projection sees, [photos, hidden, height, width]."""
    maps: Tensor = nn.Sequential(*list(block)[:-1])(x)
    return maps


def as_rows(maps: Tensor) -> Tensor:
    """[photos, channels, height, width] to [pixels, channels]."""
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])


def folded_projection(block: MBConv) -> tuple[Tensor, Tensor]:
    """The projection and its normalisation as one affine map: ([hidden, out], [out]), float64."""
    conv, norm = block.project.conv, block.project.norm
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    weight = conv.weight.double()[:, :, 0, 0].T * scale
    return weight.detach(), (norm.bias.double() - norm.running_mean.double() * scale).detach()


# --- blocks ---


class BlockFits:
    """One trained block with the moments of its kernels, from which candidates are cut.

    block: of the teacher, in evaluation mode. inputs: see `block_inputs`.
    least: the narrowest hidden width that is asked for.
    """

    def __init__(self, block: nn.Module, inputs: Tensor, *, ridge: float = RIDGE) -> None:
        teacher = bottleneck(block)
        assert teacher is not None
        self.block, self.teacher, self.ridge = block, teacher, ridge
        self.least = min(LEAST, self.hidden_channels)
        self.whole: dict[int, MBConv] = {teacher.kernel: teacher}
        self.moments: dict[int, Moments] = {teacher.kernel: moments_of(teacher, inputs)}
        for kernel in range(teacher.kernel - 2, 1, -2):
            self.whole[kernel] = cropped(teacher, kernel, inputs)
            self.moments[kernel] = moments_of(self.whole[kernel], inputs, teacher)
        self.orders: dict[int, Tensor] = {}

    @property
    def hidden_channels(self) -> int:
        return self.teacher.project.conv.in_channels

    @property
    def can_narrow(self) -> bool:
        """Without an expanding convolution the hidden channels are the block's input."""
        return self.teacher.expand is not None

    def channels(self, kernel: int, width: int) -> Tensor:
        """The hidden channels that remain, in the block's order."""
        if width == self.hidden_channels:
            return torch.arange(width)
        if kernel not in self.orders:
            moments = self.moments[kernel]
            self.orders[kernel] = elimination_order(moments, self.least, self.ridge)
        return self.orders[kernel][:width].sort().values

    def candidate(self, kernel: int, width: int) -> MBConv:
        """The block with this kernel and so many hidden channels, in evaluation mode."""
        if (kernel, width) == (self.teacher.kernel, self.hidden_channels):
            return copy.deepcopy(self.teacher)
        return narrowed(
            self.whole[kernel], self.moments[kernel], self.channels(kernel, width), self.ridge
        )

    def candidates(self, shares: Sequence[float] = SHARES) -> dict[str, nn.Module]:
        """Name -> branch, see `candidate_names`."""
        return {
            name: Zero() if name == "zero" else self.candidate(*parse_choice(name))
            for name in candidate_names(self.block, shares, self.least)
        }


def candidate_names(
    block: nn.Module, shares: Sequence[float] = SHARES, least: int = LEAST
) -> list[str]:
    """A block's candidates: itself first, then per kernel from wide to narrow, `zero` last.

    Widths are multiples of 8, or of 16 where the block is wide.
    """
    layers = bottleneck(block)
    if layers is None:
        return []
    full = layers.project.conv.in_channels
    widths = {rounded_width(share * full, full) for share in shares if layers.expand is not None}
    widths = {width for width in widths if min(least, full) <= width < full}
    named = [
        f"k{kernel}_w{width}"
        for kernel in (layers.kernel, *range(layers.kernel - 2, 1, -2))
        for width in (full, *sorted(widths, reverse=True))
    ]
    return [*named, "zero"] if isinstance(block, Residual) else named


def rounded_width(width: float, full: int) -> int:
    """The nearest multiple of 8, or of 16 of many hidden channels; runtimes compute in these."""
    step = 16 if full >= WIDE else 8
    return min(full, max(step, round(width / step) * step))


@torch.no_grad()
def cropped(block: MBConv, kernel: int, inputs: Tensor) -> MBConv:
    """The block with the centre of its depthwise kernel, normalised by statistics of its own."""
    new = blank(block, kernel, block.project.conv.in_channels).eval()
    _copy(block, new)
    edge = (block.kernel - kernel) // 2
    new.depthwise.conv.weight.copy_(
        block.depthwise.conv.weight[:, :, edge : edge + kernel, edge : edge + kernel]
    )
    # The sum over fewer pixels has another mean and variance: with those of the whole kernel,
    # every activation behind it would be shifted and scaled.
    *before, norm, _ = new.depthwise
    assert isinstance(norm, nn.BatchNorm2d)
    expand = new.expand or nn.Identity()
    convolved = [nn.Sequential(expand, *before)(x) for x in torch.split(inputs, CHUNK)]
    variance, mean = torch.var_mean(torch.cat(convolved), (0, 2, 3), correction=0)
    assert norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
    return new


@torch.no_grad()
def narrowed(block: MBConv, moments: Moments, channels: Tensor, ridge: float = RIDGE) -> MBConv:
    """The block with these hidden channels alone and the projection refitted."""
    new = blank(block, block.kernel, len(channels))
    _copy(block, new, channels)
    weight = fit_projection(moments, channels, ridge)
    project = new.project
    project.conv.weight.copy_(weight.T[:, :, None, None])
    # As a normalisation behind the convolution, so that candidates are built and trained as any
    # other block: it subtracts the mean and gives back the variance it divides by.
    norm, mean = project.norm, moments.mean[channels] @ weight
    gram = moments.gram[channels][:, channels]
    variance = ((weight.T @ gram) * weight.T).sum(1).clamp_min(0.0)
    assert norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
    norm.weight.copy_((variance + norm.eps).sqrt())
    norm.bias.copy_(moments.target)
    return new.eval()


def blank(block: MBConv, kernel: int, width: int) -> MBConv:
    """A block between the same ends, of another kernel and hidden width, with fresh weights."""
    depthwise, project = block.depthwise, block.project
    expand = block.expand
    return MBConv(
        (expand or depthwise).conv.in_channels,
        project.conv.out_channels,
        kernel=kernel,
        inner=None if expand is None else width,
        stride=depthwise.conv.stride[0],
        activation=depthwise.activation or nn.ReLU6,
        eps=depthwise.norm.eps,
        same=depthwise.same,
    )


def _copy(block: MBConv, new: MBConv, channels: Tensor | None = None) -> None:
    """All tensors of the same shape but for these hidden channels; kernels of equal size."""
    rows = slice(None) if channels is None else channels
    for old, layer in _hidden_layers(block, new):
        if old.conv.weight.shape[1:] == layer.conv.weight.shape[1:]:
            layer.conv.weight.copy_(old.conv.weight[rows])
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(layer.norm, name).copy_(getattr(old.norm, name)[rows])
    if channels is None:
        new.project.load_state_dict(block.project.state_dict())


def _hidden_layers(block: MBConv, new: MBConv) -> Iterator[tuple[ConvBN, ConvBN]]:
    if block.expand is not None and new.expand is not None:
        yield block.expand, new.expand
    yield block.depthwise, new.depthwise
