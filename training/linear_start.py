"""Starts the video VAE from a linear one, fitted layer by layer in closed form.

Residual branches start at zero, so what is left of the network is linear but for the norm and the SiLU before
each last convolution. There one channel is made a constant much larger than the others: the norm then divides
all positions by nearly the same number, and the SiLU is nearly straight. Down, every convolution keeps
principal components of its input; up, each is fitted to give the components back that its level had.

Of a talking face's energy little is in what moves, and less in the mouth. So the clips that are fitted move
more than true ones, and positions count by what is asked of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_ltx import LTXVideoCausalConv3d
from torch import Tensor

from training.autoencoder import in_two_dimensions, own_tap

_ENCODER_AMPLITUDE, _DECODER_AMPLITUDE = 0.05, 0.07
"""RMS of the other channels behind the norm: the SiLU is straight enough for what is asked of each."""
_EXAGGERATION = 4.0
"""Of what moves, against the mean picture of a clip. Fitted to clips as they are, the opening of the mouth
in decoded frames agrees with the truth to 0.5; with this and squared weights to 0.8, for 1.5 dB."""
_RIDGE = 1e-4
_MOST_ROWS = 40_000


@torch.no_grad()
def start_linearly(network: Any, clips: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    """Set the weights of ``network``, fresh from ``new_autoencoder``, by ``clips`` ``[3, T, H, W]`` whose
    pixels count by the square of ``weights`` ``[1, T, H, W]``."""
    video = torch.stack(list(clips))
    still = video.mean(dim=2, keepdim=True)
    video = still + _EXAGGERATION * (video - still)
    side = network.encoder.patch_size
    weight = F.max_pool3d(torch.stack(list(weights)), (1, side, side)).square()
    with in_two_dimensions(network):
        _fit_encoder(network.encoder, video, weight)
        latents = torch.cat([network.encode(clip[None]).latent_dist.mean for clip in video])
        _fit_decoder(network.decoder, latents, video, weight)


def _fit_encoder(encoder: Any, video: Tensor, weight: Tensor) -> None:
    hidden = _patchified(video, encoder.patch_size)
    _set(encoder.conv_in, *_components(hidden, encoder.conv_in.out_channels, weight))
    hidden = encoder.conv_in(hidden)
    downsamplers = [block.downsamplers[0] for block in encoder.down_blocks if block.downsamplers]
    for down in downsamplers:
        weight = _pooled(weight)
        # Behind the last one comes a SiLU: no component may be large.
        whitening = 1.0 if down is downsamplers[-1] else 0.0
        parts, bias = _components(_folded(hidden), down.conv.out_channels, weight, whitening)
        down.conv.weight.zero_()
        down.conv.weight[:, :, 1:, 1:, 1:] = parts.unflatten(1, (-1, 2, 2, 2))
        down.conv.bias.copy_(bias)
        last, hidden = hidden, down(hidden)
    # The component kept last makes room for the constant.
    conv = downsamplers[-1].conv
    conv.weight[-1] = 0
    conv.bias[-1] = _constant(hidden, 1 / conv.out_channels, _ENCODER_AMPLITUDE)
    hidden = downsamplers[-1](last)
    straight = encoder.conv_act(encoder.norm_out(hidden.movedim(1, -1)).movedim(-1, 1))
    latents = encoder.conv_out.out_channels - 1
    # Whitened rows of unit vectors: their lengths tell how large the components were.
    size = parts.norm(dim=1).pow(-0.5)
    size[-1] = 0
    z = torch.einsum("oc,bcthw->bothw", _rotation(latents)[:, : len(size)] * size, hidden)
    logvar = torch.full_like(z[:, :1], float(encoder.conv_out.conv.bias[-1]))
    _fit(encoder.conv_out, straight, torch.cat([z / z.std(), logvar], 1), weight, kernel=1)


def _fit_decoder(decoder: Any, z: Tensor, video: Tensor, weight: Tensor) -> None:
    patches = _patchified(video, decoder.patch_size)
    upsamplers = [block.upsamplers[0] for block in decoder.up_blocks]
    widths = [up.conv.out_channels // 8 for up in upsamplers]
    finest = _project(patches, *_components(patches, widths[-1] - 1, weight, whitening=0.5))
    constant = torch.full_like(finest[:, :1], _constant(finest, 1 / widths[-1], _DECODER_AMPLITUDE))
    targets = [torch.cat([finest, constant], 1)]
    weights = [weight]
    for width in reversed([decoder.conv_in.out_channels, *widths[:-1]]):
        folded = _folded(targets[0])
        weights.insert(0, _pooled(weights[0]))
        targets.insert(0, _project(folded, *_components(folded, width, weights[0])))
    _fit(decoder.conv_in, z, targets[0], weights[0], kernel=1)
    hidden = decoder.conv_in(z)
    for up, target, coarse in zip(upsamplers, targets[1:], weights, strict=False):
        _fit(up.conv, hidden, _folded(target), coarse, kernel=3)
        hidden = up(hidden)
    straight = decoder.conv_act(decoder.norm_out(hidden.movedim(1, -1)).movedim(-1, 1))
    _fit(decoder.conv_out, straight, patches, weight, kernel=3)


def _pooled(weight: Tensor) -> Tensor:
    """Of two frames, rows and columns the largest, as ``_folded`` puts them together."""
    return F.max_pool3d(torch.cat([weight[:, :, :1], weight], 2), 2)


def _patchified(video: Tensor, size: int) -> Tensor:
    """``[B, 3 * size * size, T, H / size, W / size]`` in the order the network has."""
    x = video.unflatten(4, (-1, size)).unflatten(3, (-1, size))
    return x.permute(0, 1, 6, 4, 2, 3, 5).flatten(1, 3)


def _folded(x: Tensor) -> Tensor:
    """Two frames, rows and columns of each channel as channels, the first frame doubled: what an upsampler
    unfolds."""
    x = torch.cat([x[:, :, :1], x], 2)
    x = x.unflatten(4, (-1, 2)).unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)


def _components(x: Tensor, count: int, weight: Tensor, whitening: float = 0.0) -> tuple[Tensor, Tensor]:
    """Weight ``[count, C]`` and bias of the principal components of ``x``, whose positions count by
    ``weight [B, 1, T, h, w]``, the largest first; ``whitening`` 1 makes them equally large, 0 leaves them."""
    rows = x.movedim(1, -1).flatten(0, -2)
    share = (weight / weight.sum()).flatten()[:, None]
    mean = (share * rows).sum(0).double()
    centred = (rows - mean.float()) * share.sqrt()
    values, vectors = torch.linalg.eigh((centred.T @ centred).double())
    values, vectors = values.flip(0)[:count], vectors.flip(1)[:, :count]
    weight = vectors.T / values.clamp_min(1e-6 * values[0]).pow(whitening / 2)[:, None]
    weight = F.pad(weight, (0, 0, 0, count - len(weight)))
    return weight.float(), (-weight @ mean).float()


def _project(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.einsum("oc,bcthw->bothw", weight, x) + bias.view(1, -1, 1, 1, 1)


def _rotation(size: int) -> Tensor:
    """An orthogonal matrix: spreads the components evenly over the channels."""
    noise = torch.randn(size, size, generator=torch.Generator().manual_seed(0))
    return torch.linalg.qr(noise)[0]


def _constant(x: Tensor, share: float, amplitude: float) -> float:
    """What ``share`` of the channels must hold, for the others to come out of the norm at ``amplitude``."""
    return float(x.square().mean().sqrt() / amplitude / share**0.5)


def _set(module: LTXVideoCausalConv3d, weight: Tensor, bias: Tensor) -> None:
    """Make a convolution the projection of each position."""
    centre = module.kernel_size[1] // 2
    module.conv.weight.zero_()
    module.conv.weight[:, :, own_tap(module), centre, centre] = weight
    module.conv.bias.copy_(bias)


def _fit(module: LTXVideoCausalConv3d, x: Tensor, y: Tensor, weight: Tensor, kernel: int) -> None:
    """Make a convolution the one that best gives ``y`` of ``x`` where ``weight`` is, looking ``kernel`` rows
    and columns wide."""
    frames, wanted, share = (video.movedim(2, 1).flatten(0, 1) for video in (x, y, weight))
    chosen = torch.randperm(len(frames), generator=torch.Generator().manual_seed(0))
    chosen = chosen[: _MOST_ROWS // frames[0, 0].numel()]
    seen = F.unfold(frames[chosen], kernel, padding=kernel // 2).transpose(1, 2).flatten(0, 1)
    wanted = wanted[chosen].movedim(1, -1).flatten(0, -2)
    share = share[chosen].flatten()[:, None] / share[chosen].sum()
    inputs = F.pad(seen, (0, 1), value=1.0).double()
    products = (share * inputs).T @ inputs
    ridge = _RIDGE * products.diagonal().diag()
    solution = torch.linalg.solve(products + ridge, (share * inputs).T @ wanted.double()).T.float()
    margin = (module.kernel_size[1] - kernel) // 2
    inner = slice(margin, module.kernel_size[1] - margin)
    module.conv.weight.zero_()
    module.conv.weight[:, :, own_tap(module), inner, inner] = solution[:, :-1].unflatten(
        1, (-1, kernel, kernel)
    )
    module.conv.bias.copy_(solution[:, -1])
