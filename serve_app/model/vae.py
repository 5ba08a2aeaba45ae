"""The video VAEs behind one interface (signatures; the modules follow)."""

from __future__ import annotations

from torch import Tensor, nn


class VideoVAE(nn.Module):
    """Not to be used concurrently: Wan keeps a causal cache on the module during a call."""

    needs_noise: bool
    """The released inference samples the posterior (LTX) rather than taking its mean (Wan)."""
    stride: tuple[int, int, int]
    channels: int

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(channels, latent frames, latent height, latent width)."""

    def moments(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """video [B, 3, T, H, W] in [-1, 1] -> posterior (mean, std), float32, not normalised."""

    def reference_moments(self, image: Tensor, frames: int = 33) -> tuple[Tensor, Tensor]:
        """moments of ``frames`` copies of image [B, 3, 1, H, W]."""

    def sample(self, mean: Tensor, std: Tensor, noise: Tensor | None = None) -> Tensor:
        """normalised latent, float32, of ``mean + std * noise`` (of ``mean`` where noise is None)."""

    def encode(self, video: Tensor, noise: Tensor | None = None) -> Tensor:
        """sample(*moments(video), noise)."""

    def decode(self, latent: Tensor) -> Tensor:
        """normalised latent [B, C, T, h, w] -> video [B, 3, 1 + stride * (T - 1), H, W] in the run precision."""
