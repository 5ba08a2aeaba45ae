"""The stages of training: what each trains, on what, for how long."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLLTXVideo
from torch import Tensor

from serve_app.model.audio_features import AudioFeatures
from serve_app.model.dit import DiT, DiTConfig
from serve_app.model.vae import LTXVideoVAE

from training.autoencoder import LTX
from training.chunks import Chunks
from training.generator import DIT, flow_losses
from training.loop import Losses, Run, Stage
from training.speech_encoder import MouthReader
from training.talks import Windows

SEED = 20_260_415


_CONSTANTS, _CONSTANT = 8, 8.0
"""Channels of the DiT's tokens that begin as a constant, and it: three times the others in all, so that the
layer norms leave a token's size in it, which is how strong a picture's colours are."""


@dataclass(frozen=True, slots=True)
class Length:
    """Steps of a stage, and items of a step."""

    steps: int
    batch: int


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is trained: clips the VAE is fitted to, lengths of the stages, talks that are encoded and
    those of them that are rolled out."""

    clips: int
    speech: Length
    talks: int
    generator: Length
    rollouts: int
    correction: Length


SCALES = {
    "cpu": Scale(
        clips=160,
        speech=Length(3500, 6),
        talks=6000,
        generator=Length(20000, 16),
        rollouts=300,
        correction=Length(1000, 16),
    ),
    "gpu": Scale(
        clips=160,
        speech=Length(4000, 16),
        talks=6000,
        generator=Length(10000, 64),
        rollouts=300,
        correction=Length(1500, 64),
    ),
}


@dataclass(frozen=True, slots=True)
class Workplace:
    """Where training happens.

    Attributes:
        folder: of everything it writes.
        device: of the networks.
        workers: processes that make data.
        scale: how much is trained.
    """

    folder: Path
    device: torch.device
    workers: int
    scale: Scale

    @property
    def vae(self) -> Path:
        """The fitted VAE."""
        return self.folder / "vae.pt"

    @property
    def talks(self) -> Path:
        """The shards of encoded talks."""
        return self.folder / "talks"

    @property
    def rollouts(self) -> Path:
        """Motion latents the generator handed on."""
        return self.folder / "rollouts.pt"


def speech_stage(place: Workplace) -> Stage:
    """The speech encoder, reading mouths from speech."""
    torch.manual_seed(SEED + 1)
    network = MouthReader().to(place.device)

    def losses(batch: dict[str, Tensor]) -> Losses:
        with _mixed_precision(place):
            return network.losses(batch)

    return _stage("speech", place, network, Windows(SEED + 1), losses, place.scale.speech, 1e-3)


def generator_stage(place: Workplace) -> Stage:
    """The DiT on true motion latents."""
    return _flow("generator", place, _new_dit(place), encoded_chunks(place, 2), place.scale.generator, 1e-3)


def correction_stage(place: Workplace) -> Stage:
    """The DiT on motion latents of its own."""
    network = finished(generator_stage(place), place)
    chunks = encoded_chunks(place, 3)
    chunks.use_motion(torch.load(place.rollouts, weights_only=True))
    return _flow("correction", place, network, chunks, place.scale.correction, 3e-4)


STAGES: dict[str, Callable[[Workplace], Stage]] = {
    "speech": speech_stage,
    "generator": generator_stage,
    "correction": correction_stage,
}


def finished(stage: Stage, place: Workplace) -> Any:
    """The stage's network with its averaged weights, for use."""
    run = Run(stage, place.folder)
    run.finish()
    return stage.network.eval()


def trained_vae(place: Workplace) -> LTXVideoVAE:
    """The VAE."""
    network = AutoencoderKLLTXVideo.from_config(LTX)
    network.load_state_dict(torch.load(place.vae, weights_only=True))
    return LTXVideoVAE(network.to(place.device).eval()).requires_grad_(False)


def trained_reader(place: Workplace) -> MouthReader:
    """The speech encoder with what reads mouths from it."""
    reader: MouthReader = finished(speech_stage(place), place).requires_grad_(False)
    return reader


def trained_speech(place: Workplace) -> AudioFeatures:
    """The speech encoder alone."""
    return AudioFeatures(trained_reader(place).network)


def encoded_chunks(place: Workplace, order: int) -> Chunks:
    """The chunks of all talks, in the ``order``-th random order."""
    return Chunks(place.talks, place.scale.talks, SEED + order)


def _new_dit(place: Workplace) -> DiT:
    torch.manual_seed(SEED + 4)
    network = DiT(DiTConfig.from_dict(DIT)).to(place.device)
    torch.nn.init.zeros_(network.head.head.weight)
    with torch.no_grad():
        network.patch_embedding.bias[:_CONSTANTS] = _CONSTANT
    return network


def _flow(name: str, place: Workplace, network: DiT, chunks: Chunks, length: Length, rate: float) -> Stage:
    def losses(batch: dict[str, Tensor]) -> Losses:
        with _mixed_precision(place):
            return flow_losses(network, batch)

    return Stage(name, network, chunks, losses, length.batch, length.steps, rate)


def _stage(
    name: str, place: Workplace, network: Any, data: Any, losses: Any, length: Length, rate: float
) -> Stage:
    return Stage(name, network, data, losses, length.batch, length.steps, rate, place.workers)


def _mixed_precision(place: Workplace) -> torch.autocast:
    return torch.autocast(place.device.type, torch.bfloat16)
