"""The engine: chunks of talking-head video from session states and speech features.

A chunk is four operations on a ``ChunkRow``: ``begin``, ``denoise`` (once a step, for rows of any
sessions at any steps together), ``decode`` and ``advance``. The engine keeps no sessions; the caller
holds states as values. Not to be used by two threads at once. Source: FlashHead spec sections 5 to 7.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from serve_app.config import ModelSettings
from serve_app.engine import audio_cache
from serve_app.engine.checks import check_call, check_features, check_spec, check_state
from serve_app.engine.colour import match_colour, reference_statistics
from serve_app.engine.kernel_cache import KernelCache, kernel_file
from serve_app.engine.noise import GeneratorNoise, NoiseSource, NoiseStreams
from serve_app.engine.precision import Execution, choose_execution, compile_blocks
from serve_app.engine.reference import MomentsCache, Reference, portrait_video
from serve_app.engine.row import ChunkRow, delivered_end, first_coloured
from serve_app.engine.sampler import SOLVERS, guided, schedule
from serve_app.engine.silence import silent_call, silent_spec
from serve_app.engine.startup import StartPhases
from serve_app.engine.state import SessionState, portrait_digest, spec_digest
from serve_app.engine.warm_up import until_steady
from serve_app.engine.yuv import to_uint8, yuv420p
from serve_app.errors import StaleCall
from serve_app.model.audio_features import window_index
from serve_app.model.audio_projector import AUDIO_WINDOW
from serve_app.model.checkpoint import load_dit, load_vae
from serve_app.model.dit import AudioContext, DiT
from serve_app.model.presets import Preset, checkpoint_root, preset, resolved_geometry
from serve_app.model.vae import VideoVAE
from serve_app.types import AudioSlice, ChunkCall, Geometry, ModelCard, SessionSpec

T = TypeVar("T")

PORTRAITS_KEPT = 8


class Engine:
    """One model's networks, and what turns them into frames.

    Args:
        dit, vae: the networks, on one device; the DiT's dtype is the run's.
        preset: how it is sampled.
        geometry: its chunk sizes.
        max_rows: rows of a step it will be given; more than one gives up the promise of equal bytes.
        noise: where noise comes from; seeded torch generators where absent.
        phases: of the start this engine is part of.
        kernels: where compiled blocks come from and are kept; ``None`` where nothing is compiled or kept.
    """

    def __init__(
        self,
        dit: DiT,
        vae: VideoVAE,
        preset: Preset,
        geometry: Geometry,
        *,
        max_rows: int = 1,
        noise: NoiseSource | None = None,
        phases: StartPhases | None = None,
        kernels: KernelCache | None = None,
    ) -> None:
        self.device = dit.patch_embedding.weight.device
        self.geometry = geometry
        self.card = _card(preset, geometry, reproducible=max_rows == 1)
        self._dit = dit
        self._vae = vae
        self._preset = preset
        self._max_rows = max_rows
        self._kernels = kernels
        self._phases = phases or StartPhases(preset.name)
        self._noise = noise or GeneratorNoise(self.device, dit.dtype)
        self._moments = MomentsCache(PORTRAITS_KEPT)
        self._silence: AudioContext | None = None
        self._latent_shape = self._latents_of(geometry.frames)
        self.feature_shape = (dit.config.audio_blocks, dit.config.audio_channels)
        self._motion_shape = self._latents_of(geometry.motion_frames)

    @staticmethod
    def load(settings: ModelSettings, phases: StartPhases | None = None) -> Engine:
        """The engine ``settings`` describe, its weights on the device; ``phases`` are told the times.

        Raises:
            OutOfRange: an unknown model, or a device, precision or kernel that cannot be had here.
            CheckpointError: weights missing, damaged or never released.
        """
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        row, root = preset(settings.name), checkpoint_root(settings.checkpoint)
        phases = phases or StartPhases(settings.name)
        with phases.measure("device"):
            how = choose_execution(settings)
        dit, vae = _load_networks(root, row, how, phases)
        if settings.compile:
            compile_blocks(dit)
        geometry = resolved_geometry(root, row)
        file = kernel_file(settings, how, geometry, dit.config)
        return Engine(
            dit,
            vae,
            row,
            geometry,
            max_rows=settings.max_rows,
            phases=phases,
            kernels=KernelCache(file) if file else None,
        )

    @torch.inference_mode()
    def open(self, spec: SessionSpec, epoch: int = 0) -> tuple[SessionState, Reference]:
        """A new session's state and reference.

        Raises:
            OutOfRange: a model, portrait size, seed, number of steps or audio mode this engine has not.
        """
        check_spec(spec, self.card)
        streams = self._noise.seeded(spec.seed)
        reference = self._reference(spec, streams)
        noise, posterior = streams.states()
        state = SessionState(
            model=spec.model,
            spec_digest=spec_digest(spec),
            index=0,
            epoch=epoch,
            steps=spec.steps,
            device=self.device.type,
            motion=reference.latent[0, :, :1].float(),
            audio_cache=audio_cache.empty_cache(spec.audio_encode),
            noise=noise,
            posterior=posterior,
        )
        return state, reference

    @torch.inference_mode()
    def restore(
        self, spec: SessionSpec, snapshot: bytes, epoch: int | None = None
    ) -> tuple[SessionState, Reference]:
        """The state in ``snapshot``, made by any engine of this model, and the session's reference.

        Raises:
            SnapshotError: it cannot be read, or is of another session, size or kind of device.
            StaleCall: it was made by a later opening of the session than ``epoch``.
        """
        check_spec(spec, self.card)
        state = SessionState.from_bytes(snapshot)
        check_state(state, spec, self.device, self._motion_shape)
        if epoch is not None and epoch < state.epoch:
            message = f"opening {epoch} of a session, its snapshot is of opening {state.epoch}"
            raise StaleCall(message, value=epoch, accepted=f">= {state.epoch}")
        reference = self._reference(spec, self._noise.seeded(spec.seed))
        now = state.epoch if epoch is None else epoch
        return replace(state, motion=state.motion.to(self.device), epoch=now), reference

    @torch.inference_mode()
    def begin(
        self, state: SessionState, reference: Reference, features: np.ndarray, call: ChunkCall
    ) -> ChunkRow:
        """The row of the session's next chunk; ``state`` is left as it is.

        Args:
            state, reference: of the session.
            features: ``[rows, blocks, channels]`` float32, what ``audio_cache.window`` asks for.
            call: the chunk.

        Raises:
            OutOfRange: the call or the features do not fit the session.
        """
        check_call(state, call, self.geometry)
        window, heard = audio_cache.window(state.audio_cache, call.audio, self.geometry)
        check_features(features, (window.end_row - window.first_row, *self.feature_shape))
        windows = self._windows(features, call.audio, window.first_row)
        noise = self._noise.resumed(state.noise, state.posterior)
        return ChunkRow(
            state=state,
            reference=reference,
            call=call,
            heard=heard,
            context=self._dit.project_audio(windows),
            schedule=schedule(self._preset, state.steps),
            noise=noise,
            motion=state.motion[None].to(self.device, self._dit.dtype),
            x=self._latent_noise(noise),
        )

    @torch.inference_mode()
    def denoise(self, rows: Sequence[ChunkRow]) -> None:
        """One denoising step of each row: one forward, whatever steps and sessions they are at.

        A failure before any row has moved on leaves all of them as they were.
        """
        for row in rows:
            row.hold_motion()
        solver = SOLVERS[self._preset.solver]
        for row, velocity in zip(rows, self._velocity(rows).split(1), strict=True):
            sigma, following = row.schedule.sigmas[row.step : row.step + 2]
            row.x = solver(row.x, velocity, sigma, following, partial(self._latent_noise, row.noise))
            row.step += 1

    @torch.inference_mode()
    def decode(self, row: ChunkRow) -> np.ndarray:
        """The delivered frames of a denoised row, ``[frame_count, H * 3 // 2, W]`` uint8 yuv420p."""
        assert row.steps_left == 0
        row.hold_motion()
        frames = slice(first_coloured(row.call, self.geometry), delivered_end(row.call))
        video = self._vae.decode(row.x)[:, :, frames]
        row.video = match_colour(video, row.reference.colour, self._preset.colour_strength)
        delivered = row.video[:, :, -row.call.frame_count :]
        return yuv420p(to_uint8(delivered, self._preset.uint8_rule)).cpu().numpy()

    @torch.inference_mode()
    def advance(self, row: ChunkRow) -> SessionState:
        """The session's state after a decoded chunk: its last frames, unquantised, as motion latents."""
        assert row.video is not None
        carried = row.video[:, :, -self.geometry.motion_frames :]
        motion = self._vae.encode(carried, self._posterior_noise(row.noise, self._motion_shape))
        noise, posterior = row.noise.states()
        return replace(
            row.state,
            index=row.state.index + 1,
            motion=motion[0],
            audio_cache=row.heard,
            noise=noise,
            posterior=posterior,
        )

    def step(
        self,
        states: Sequence[SessionState],
        references: Sequence[Reference],
        features: Sequence[np.ndarray],
        calls: Sequence[ChunkCall],
    ) -> list[tuple[np.ndarray, SessionState | None]]:
        """One whole chunk of several sessions together: frames and next state (``None`` after a final
        chunk) of each."""
        rows = [self.begin(*parts) for parts in zip(states, references, features, calls, strict=True)]
        while moving := [row for row in rows if row.steps_left]:
            self.denoise(moving)
        frames = [self.decode(row) for row in rows]
        return [
            (made, None if row.call.final else self.advance(row))
            for made, row in zip(frames, rows, strict=True)
        ]

    def warm_up(self) -> float:
        """Make silent chunks with every number of rows until their times agree, so that no session waits
        for kernels to be chosen or compiled. Seconds of a whole chunk alone, from begin to advance."""
        sessions = [self._silent_chunks(rows) for rows in range(self._max_rows, 0, -1)]
        kernels = self._kernels.applied() if self._kernels else nullcontext()
        with self._phases.measure("first_chunk"), kernels:
            for chunks in sessions:
                next(chunks)
        with self._phases.measure("warm_up"):
            for chunks in sessions:
                seconds = until_steady(partial(next, chunks))
        # The fastest: others may have been at work on the same machine.
        return min(seconds)

    def synchronise(self) -> None:
        """Wait until the device has done what it was given; raises what went wrong there."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _silent_chunks(self, rows: int) -> Iterator[None]:
        """A session in which nothing is said, ``rows`` times side by side: one chunk each time asked."""
        state, reference = self.open(silent_spec(self.card))
        while True:
            call = silent_call(self.geometry, state.index)
            window, _ = audio_cache.window(state.audio_cache, call.audio, self.geometry)
            features = np.zeros((window.end_row - window.first_row, *self.feature_shape), np.float32)
            answers = self.step([state] * rows, [reference] * rows, [features] * rows, [call] * rows)
            self.synchronise()
            _, following = answers[0]
            assert following is not None
            state = following
            yield

    def memory_bytes(self) -> Mapping[str, int]:
        """Memory on its GPU, as torch's allocator counts it: ``allocated``, ``reserved`` and the ``peak`` of
        allocated since the process began; nothing on a CPU."""
        if self.device.type != "cuda":
            return {}
        return {
            "allocated": torch.cuda.memory_allocated(self.device),
            "reserved": torch.cuda.memory_reserved(self.device),
            "peak": torch.cuda.max_memory_allocated(self.device),
        }

    def _velocity(self, rows: Sequence[ChunkRow]) -> Tensor:
        x = torch.cat([row.x for row in rows])
        y = torch.cat([row.reference.latent for row in rows])
        t = torch.tensor([row.timestep for row in rows], device=self.device)
        contexts = [row.context for row in rows]
        scale = self._preset.audio_guidance
        if scale is None:
            return self._dit(x, y, t, AudioContext.cat(contexts))
        both = AudioContext.cat([*contexts, *[self._silent_context()] * len(rows)])
        spoken, silent = self._dit(torch.cat((x, x)), torch.cat((y, y)), torch.cat((t, t)), both).chunk(2)
        return guided(spoken, silent, scale)

    def _silent_context(self) -> AudioContext:
        """The context of all-zero features: what guidance pushes away from."""
        if self._silence is None:
            shape = (1, self.geometry.frames, AUDIO_WINDOW, *self.feature_shape)
            self._silence = self._dit.project_audio(torch.zeros(shape, device=self.device))
        return self._silence

    def _windows(self, features: np.ndarray, audio: AudioSlice, first_row: int) -> Tensor:
        """``[1, frames, 5, blocks, channels]``: each frame's feature rows, kept within what there is."""
        start, end, available = audio_cache.frame_rows(audio, self.geometry)
        index = window_index(0, available)[start:end] - first_row
        return torch.tensor(features, device=self.device)[index.to(self.device)][None]

    def _reference(self, spec: SessionSpec, streams: NoiseStreams) -> Reference:
        """Draws the first of ``streams``' posterior noise."""
        image = portrait_video(spec.portrait, self.device)
        mean, std = self._moments.get(
            portrait_digest(spec.portrait), lambda: self._vae.reference_moments(image, self.geometry.frames)
        )
        latent = self._vae.sample(mean, std, self._posterior_noise(streams, self._latent_shape))
        return Reference(latent.to(self._dit.dtype), reference_statistics(image[0, :, 0]))

    def _latent_noise(self, streams: NoiseStreams) -> Tensor:
        return streams.latent(self._latent_shape)[None]

    def _posterior_noise(self, streams: NoiseStreams, shape: tuple[int, ...]) -> Tensor | None:
        return streams.posterior((1, *shape)) if self._vae.needs_noise else None

    def _latents_of(self, frames: int) -> tuple[int, int, int, int]:
        return self._vae.latent_shape(frames, self.geometry.height, self.geometry.width)


def _load_networks(root: Path, row: Preset, how: Execution, phases: StartPhases) -> tuple[DiT, VideoVAE]:
    """DiT and VAE, read at the same time."""

    def timed(name: str, load: Callable[[], T]) -> T:
        with phases.measure(name):
            return load()

    with ThreadPoolExecutor(max_workers=2, thread_name_prefix="load") as pool:
        dit = pool.submit(
            timed, "weights_dit", partial(load_dit, root, row, how.device, how.dtype, how.attention)
        )
        vae = pool.submit(timed, "weights_vae", partial(load_vae, root, row, how.device, how.dtype))
        return dit.result(), vae.result()


def _card(preset: Preset, geometry: Geometry, reproducible: bool) -> ModelCard:
    return ModelCard(
        name=preset.name,
        geometry=geometry,
        steps=preset.steps,
        allowed_steps=preset.allowed_steps,
        reproducible=reproducible,
        description=preset.description,
    )
