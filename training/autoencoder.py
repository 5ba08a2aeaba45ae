"""The video VAE: diffusers' LTX network at small width, without residual blocks, and fitted in closed form.

The network is linear but for the norm and the SiLU before each last convolution. There one channel is made
a constant much larger than the others: the norm then divides all positions by nearly the same number, and
the SiLU is nearly straight. Down, every convolution keeps principal components of its input. Up, each is
fitted to give back the components that its level has of what a linear decoder says of the latents; it looks
at the frames before and after, so that what moves goes on from one latent to the next.

Of a talking face's energy little is in what moves, and less in the mouth. So the clips that are fitted move
more than true ones, and positions count by what is asked of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLLTXVideo
from diffusers.models.autoencoders.autoencoder_kl_ltx import LTXVideoCausalConv3d
from torch import Tensor

LTX: dict[str, Any] = {
    "_class_name": "AutoencoderKLLTXVideo",
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 112,
    "block_out_channels": [112, 112, 112, 112],
    "layers_per_block": [0, 0, 0, 0, 0],
    "spatio_temporal_scaling": [True, True, True, False],
    "decoder_block_out_channels": [64, 64, 128],
    "decoder_layers_per_block": [0, 0, 0, 0],
    "decoder_spatio_temporal_scaling": [True, True, True],
    "decoder_inject_noise": [False, False, False, False],
    "upsample_residual": [False, False, False],
    "upsample_factor": [2, 1, 2],
    "patch_size": 4,
    "patch_size_t": 1,
    "resnet_norm_eps": 1e-6,
    "scaling_factor": 1.0,
    "encoder_causal": True,
    "decoder_causal": False,
}

_LOGVAR = -8.0
"""Of the posterior: narrow, so that motion latents keep what they carry."""
_ENCODER_AMPLITUDE, _DECODER_AMPLITUDE = 0.01, 0.01
"""RMS of the other channels behind the norm: there the SiLU is straight to a hundredth. Motion latents are
of decoded frames, and should equal those the frames were decoded from: 0.05 and 0.03 put them 0.08 off, 0.01
puts them 0.03 off, where all that moves is 0.11 (RMS, of latents of RMS 1.06; 24 held-out clips)."""
_EXAGGERATION = 3.0
"""Of what moves, against the mean picture of a clip, where components are chosen. It trades likeness for
mouths: between the best linear decoders of 2 and of 4 lie 0.8 dB, and 0.87 and 0.91 of the opening (4
held-out faces)."""
_DECODER_EXAGGERATION = 4.0
"""Of what moves where the decoder is fitted. Fitted to less, the frames of a latent are alike and jump to
those of the next; fitted to more, all frames flicker. At 1.7, 3, 4 and 5.5 frames at seams change 2.53,
1.99, 1.79 and 1.60 times as much as elsewhere, and by 1.70, 1.52, 1.55 and 1.66 grey levels (6 held-out
faces in the engine): 4 keeps the worst below 2 at hardly more than the least change."""
_RIDGE = 1e-5
_MOST_ROWS = 400_000


@torch.no_grad()
def fitted_autoencoder(clips: Sequence[Tensor], weights: Sequence[Tensor]) -> Any:
    """The network for ``clips`` ``[3, T, H, W]`` in [-1, 1], whose pixels count by ``weights [1, T, H, W]``;
    by their square in the choice of components."""
    network = AutoencoderKLLTXVideo.from_config(LTX)
    video = torch.stack(list(clips))
    side = LTX["patch_size"]
    weight = F.max_pool3d(torch.stack(list(weights)), (1, side, side))
    _fit_encoder(network.encoder, _moving(video, _EXAGGERATION), weight.square())
    video = _moving(video, _DECODER_EXAGGERATION)
    latents = torch.cat([network.encode(clip[None]).latent_dist.mean for clip in video])
    _fit_decoder(network.decoder, latents, video, weight)
    return network


def _moving(video: Tensor, exaggeration: float) -> Tensor:
    """``video`` that moves so many times as far."""
    still = video.mean(dim=2, keepdim=True)
    return still + exaggeration * (video - still)


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
    latents = LTX["latent_channels"]
    # Whitened rows of unit vectors: their lengths tell how large the components were.
    size = parts.norm(dim=1).pow(-0.5)
    size[-1] = 0
    z = torch.einsum("oc,bcthw->bothw", _rotation(latents)[:, : len(size)] * size, hidden)
    logvar = torch.full_like(z[:, :1], _LOGVAR)
    _fit(encoder.conv_out, straight, torch.cat([z / z.std(), logvar], 1), weight, frames=1, kernel=1)


def _fit_decoder(decoder: Any, z: Tensor, video: Tensor, weight: Tensor) -> None:
    upsamplers = [block.upsamplers[0] for block in decoder.up_blocks]
    widths = [up.conv.out_channels // 8 for up in upsamplers]
    patches = _patchified(_predicted(z, video), decoder.patch_size)
    finest = _project(patches, *_components(patches, widths[-1] - 1, weight.square(), whitening=0.5))
    constant = torch.full_like(finest[:, :1], _constant(finest, 1 / widths[-1], _DECODER_AMPLITUDE))
    targets = [torch.cat([finest, constant], 1)]
    weights = [weight]
    for width in reversed(widths[:-1]):
        folded = _folded(targets[0])
        weights.insert(0, _pooled(weights[0]))
        targets.insert(0, _project(folded, *_components(folded, width, weights[0].square())))
    weights.insert(0, _pooled(weights[0]))
    passed_on = torch.eye(decoder.conv_in.out_channels, z.shape[1])
    _set(decoder.conv_in, passed_on, torch.zeros(len(passed_on)))
    hidden = decoder.conv_in(z)
    for up, target, coarse in zip(upsamplers, targets, weights, strict=False):
        _fit(up.conv, hidden, _folded(target), coarse, kernel=1 if up is upsamplers[0] else 3, frames=3)
        hidden = torch.cat([up(each[None]) for each in hidden])
    straight = decoder.conv_act(decoder.norm_out(hidden.movedim(1, -1)).movedim(-1, 1))
    _fit(decoder.conv_out, straight, patches, weight, kernel=3, frames=3)


def _predicted(z: Tensor, video: Tensor) -> Tensor:
    """What is best said of ``video`` by a linear decoder that sees a latent and those before and after it.

    The network is fitted to this: what latents cannot say would be noise to it.
    """
    frames = (video.shape[2] - 1) // (z.shape[2] - 1)
    side = video.shape[3] // z.shape[3]
    doubled = torch.cat([video[:, :, :1].expand(-1, -1, frames - 1, -1, -1), video], 2)
    blocks = doubled.unflatten(4, (-1, side)).unflatten(3, (-1, side)).unflatten(2, (-1, frames))
    blocks = blocks.permute(0, 1, 3, 5, 7, 2, 4, 6)
    shape = blocks.shape[1:5]
    decoder = _Fit()
    for latents, wanted in zip(z, blocks.flatten(1, 4), strict=True):
        decoder.see(_seen(latents, 3, 1), wanted)
    weight, bias = decoder.solution()
    made = torch.stack([torch.einsum("oc,cthw->othw", weight, _seen(latents, 3, 1)) for latents in z])
    made = (made + bias.view(-1, 1, 1, 1)).unflatten(1, shape).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return made.flatten(6, 7).flatten(4, 5).flatten(2, 3)[:, :, frames - 1 :]


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
    module.conv.weight[:, :, _own_tap(module), centre, centre] = weight
    module.conv.bias.copy_(bias)


def _fit(
    module: LTXVideoCausalConv3d, x: Tensor, y: Tensor, weight: Tensor, kernel: int, frames: int
) -> None:
    """Make a convolution the one that best gives ``y`` of ``x`` where ``weight`` is, looking ``kernel`` rows
    and columns and ``frames`` frames wide."""
    random = torch.Generator().manual_seed(0)
    rows = min(x[0, 0].numel(), _MOST_ROWS // len(x))
    fit = _Fit()
    for given, wanted, share in zip(x, y, weight, strict=True):
        chosen = torch.randperm(given[0].numel(), generator=random)[:rows]
        fit.see(*(video.flatten(1)[:, chosen] for video in (_seen(given, frames, kernel), wanted, share)))
    matrix, bias = fit.solution()
    module.conv.weight.zero_()
    inner = module.conv.weight
    for axis, (size, taken) in enumerate(zip(module.kernel_size, (frames, kernel, kernel), strict=True)):
        first = _own_tap(module) if taken == 1 and axis == 0 else (size - taken) // 2
        inner = inner.narrow(2 + axis, first, taken)
    inner.copy_(matrix.unflatten(1, (-1, frames, kernel, kernel)))
    module.conv.bias.copy_(bias)


def _seen(x: Tensor, frames: int, kernel: int) -> Tensor:
    """``[C * frames * kernel * kernel, T, h, w]``: what a convolution looks at in ``x [C, T, h, w]``."""
    reach = kernel // 2
    padded = torch.cat([x[:, :1]] * (frames // 2) + [x] + [x[:, -1:]] * (frames // 2), 1)
    padded = F.pad(padded, (reach,) * 4)
    return (
        padded.unfold(1, frames, 1)
        .unfold(2, kernel, 1)
        .unfold(3, kernel, 1)
        .permute(0, 4, 5, 6, 1, 2, 3)
        .flatten(0, 3)
    )


class _Fit:
    """Weighted least squares of ``y`` by ``x`` and a constant, seen part by part."""

    def __init__(self) -> None:
        self._products: Any = 0
        self._moments: Any = 0

    def see(self, x: Tensor, y: Tensor, share: Tensor | None = None) -> None:
        """``x [I, ...]``, ``y [O, ...]`` and ``share [1, ...]`` at the same places."""
        inputs = F.pad(x.flatten(1), (0, 0, 0, 1), value=1.0)
        counted = inputs if share is None else inputs * share.flatten(1)
        self._products = self._products + counted @ inputs.T
        self._moments = self._moments + counted @ y.flatten(1).T

    def solution(self) -> tuple[Tensor, Tensor]:
        """Matrix ``[O, I]`` and constant ``[O]``."""
        products = self._products.double()
        size = products.diagonal()
        ridge = _RIDGE * (size + 1e-2 * size.median()).diag()
        solution = torch.linalg.solve(products + ridge, self._moments.double()).T.float()
        return solution[:, :-1], solution[:, -1]


def _own_tap(module: LTXVideoCausalConv3d) -> int:
    """The tap that looks at the frame it makes."""
    size = module.kernel_size[0]
    return size - 1 if module.is_causal else size // 2
