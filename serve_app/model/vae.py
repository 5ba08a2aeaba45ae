"""The video VAEs behind one interface; the networks are diffusers' own.

Video is ``[B, 3, T, H, W]`` in [-1, 1] with T = 1 + stride * k. Latents are ``[B, C, 1 + k, h, w]``,
normalised to order one. Statistics and the posterior are float32 whatever the network's precision.
Sources: FlashHead spec sections 5 and 8.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn

from serve_app.errors import OutOfRange

Moments = tuple[Tensor, Tensor]
"""Posterior mean and standard deviation ``[B, C, T, h, w]``, float32, not normalised."""


class VideoVAE(nn.Module):
    """Encodes video to normalised latents and back.

    Not to be used by two calls at once: Wan's network keeps its causal cache on the module.

    Attributes:
        stride: video frames, rows and columns per latent position.
        channels: latent channels.
        needs_noise: the released inference samples the posterior (LTX) or takes its mean (Wan).
    """

    stride: tuple[int, int, int]
    channels: int
    needs_noise: bool
    network: Any

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(channels, latent frames, latent height, latent width) of such a video.

        Raises:
            OutOfRange: the network would silently cut or pad a video of this size.
        """
        per_frame, per_row, per_column = self.stride
        if frames < 1 or (frames - 1) % per_frame:
            accepted = f"1 + a multiple of {per_frame}"
            raise OutOfRange(f"{frames} video frames, expected {accepted}", value=frames, accepted=accepted)
        if height < 1 or width < 1 or height % per_row or width % per_column:
            accepted = f"multiples of {per_row} x {per_column}"
            message = f"video of {height} x {width} pixels, expected {accepted}"
            raise OutOfRange(message, value=[height, width], accepted=accepted)
        return self.channels, 1 + (frames - 1) // per_frame, height // per_row, width // per_column

    def moments(self, video: Tensor) -> Moments:
        """The posterior of ``video``, any float dtype.

        Raises:
            OutOfRange: a size that ``latent_shape`` refuses.
        """
        self.latent_shape(*video.shape[2:])
        parameters = self.network.encode(video.to(self.network.dtype)).latent_dist.parameters
        posterior = DiagonalGaussianDistribution(parameters.float())
        return posterior.mean, posterior.std

    @abstractmethod
    def reference_moments(self, image: Tensor, frames: int = 33) -> Moments:
        """``moments`` of ``frames`` copies of ``image [B, 3, 1, H, W]``."""

    @abstractmethod
    def statistics(self) -> Moments:
        """Mean and standard deviation of the latents, each ``[1, C, 1, 1, 1]`` float32."""

    def sample(self, mean: Tensor, std: Tensor, noise: Tensor | None = None) -> Tensor:
        """The normalised latent of ``mean + std * noise``, of ``mean`` where ``noise`` is absent;
        float32."""
        centre, spread = self.statistics()
        z = mean if noise is None else mean + std * noise.float()
        return (z - centre) / spread

    def encode(self, video: Tensor, noise: Tensor | None = None) -> Tensor:
        """The normalised latent of ``video``, float32; ``noise`` of the latent's shape, for a network
        with ``needs_noise``."""
        return self.sample(*self.moments(video), noise)

    def decode(self, latent: Tensor) -> Tensor:
        """Video ``[B, 3, 1 + stride * (T - 1), H, W]`` in the network's precision, around [-1, 1]; LTX
        does not clamp, Wan does."""
        centre, spread = self.statistics()
        z = latent.float() * spread + centre
        return self.network.decode(z.to(self.network.dtype), return_dict=False)[0]


class LTXVideoVAE(VideoVAE):
    """LTX-Video 0.9.0: 8 x 32 x 32 pixels per latent position."""

    needs_noise = True

    def __init__(self, network: Any) -> None:
        """``network`` is diffusers' AutoencoderKLLTXVideo."""
        super().__init__(network)
        spatial = network.spatial_compression_ratio
        self.stride = (network.temporal_compression_ratio, spatial, spatial)
        self.channels = network.config.latent_channels

    def reference_moments(self, image: Tensor, frames: int = 33) -> Moments:
        """One frame is encoded: time is padded by repetition, so still clips have still moments
        (1.3e-6 of 33 copies, at 1/25 of the cost)."""
        _, latent_frames, _, _ = self.latent_shape(frames, *image.shape[3:])
        mean, std = self.moments(image)
        return mean.expand(-1, -1, latent_frames, -1, -1), std.expand(-1, -1, latent_frames, -1, -1)

    def statistics(self) -> Moments:
        mean, std = self.network.latents_mean, self.network.latents_std
        return mean.float().view(1, -1, 1, 1, 1), std.float().view(1, -1, 1, 1, 1)


class WanVideoVAE(VideoVAE):
    """Wan 2.1: 4 x 8 x 8 pixels per latent position."""

    needs_noise = False
    stride = (4, 8, 8)
    latent_statistics: Tensor

    def __init__(self, network: Any) -> None:
        """``network`` is diffusers' AutoencoderKLWan."""
        super().__init__(network)
        self.channels = network.config.z_dim
        statistics = torch.tensor([network.config.latents_mean, network.config.latents_std])
        self.register_buffer("latent_statistics", statistics.view(2, 1, -1, 1, 1, 1), persistent=False)

    def reference_moments(self, image: Tensor, frames: int = 33) -> Moments:
        """All copies are encoded: time is padded with zeros, so the first latent frames differ."""
        return self.moments(image.expand(-1, -1, frames, -1, -1))

    def statistics(self) -> Moments:
        return self.latent_statistics[0], self.latent_statistics[1]
