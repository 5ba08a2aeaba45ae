"""The two random streams of a session: ``noise`` starts and refreshes the latents, ``posterior``
samples what the VAE encodes.

They are apart so that a seed's latents do not depend on how often something was encoded. On the same
device and in the same dtype the first agrees with the released inference (FlashHead spec section 6).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from serve_app.errors import SnapshotError


class NoiseStreams(Protocol):
    """Where one session's noise comes from; every draw moves it on."""

    def latent(self, shape: Sequence[int]) -> Tensor:
        """Standard normal values in the DiT's dtype."""
        ...

    def posterior(self, shape: Sequence[int]) -> Tensor:
        """Standard normal values, float32."""
        ...

    def states(self) -> tuple[Tensor, Tensor]:
        """Where the two streams stand, as uint8 vectors on the CPU."""
        ...


class NoiseSource(Protocol):
    """Makes the streams of sessions."""

    def seeded(self, seed: int) -> NoiseStreams:
        """The streams of a new session."""
        ...

    def resumed(self, latent: Tensor, posterior: Tensor) -> NoiseStreams:
        """The streams that stand where ``states`` said."""
        ...


class GeneratorStreams:
    """Two torch generators on the engine's device."""

    def __init__(self, latent: torch.Generator, posterior: torch.Generator, dtype: torch.dtype) -> None:
        self._latent = latent
        self._posterior = posterior
        self._dtype = dtype

    def latent(self, shape: Sequence[int]) -> Tensor:
        """See ``NoiseStreams``."""
        device = self._latent.device
        return torch.randn(tuple(shape), generator=self._latent, device=device, dtype=self._dtype)

    def posterior(self, shape: Sequence[int]) -> Tensor:
        """See ``NoiseStreams``."""
        return torch.randn(tuple(shape), generator=self._posterior, device=self._posterior.device)

    def states(self) -> tuple[Tensor, Tensor]:
        """See ``NoiseStreams``."""
        return self._latent.get_state(), self._posterior.get_state()


class GeneratorNoise:
    """``NoiseSource`` of torch generators; latents are drawn in ``dtype``."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device = device
        self._dtype = dtype

    def seeded(self, seed: int) -> GeneratorStreams:
        """See ``NoiseSource``; ``seed`` is in [0, 2**63)."""
        streams = self._generators()
        streams[0].manual_seed(seed)
        streams[1].manual_seed(posterior_seed(seed))
        return GeneratorStreams(*streams, self._dtype)

    def resumed(self, latent: Tensor, posterior: Tensor) -> GeneratorStreams:
        """See ``NoiseSource``.

        Raises:
            SnapshotError: not the states of this device's generators.
        """
        streams = self._generators()
        for generator, state in zip(streams, (latent, posterior), strict=True):
            try:
                generator.set_state(state)
            except (RuntimeError, TypeError) as error:
                raise SnapshotError(f"not a generator state of {self._device}: {error}") from error
        return GeneratorStreams(*streams, self._dtype)

    def _generators(self) -> tuple[torch.Generator, torch.Generator]:
        return torch.Generator(self._device), torch.Generator(self._device)


def posterior_seed(seed: int) -> int:
    """The second stream's seed: unrelated to the first's, the same on every machine."""
    digest = hashlib.sha256(b"posterior" + seed.to_bytes(8, "little")).digest()
    return int.from_bytes(digest[:8], "little") >> 1
