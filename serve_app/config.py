"""The application's settings: what ``args`` of a Serve config may hold, and nothing else reads files
or the environment for them.

Unknown keys are refused. Every limit on what a client may send or hold is in ``Limits``.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

MIB = 1024 * 1024
ORIGIN = re.compile(r"https?://[^/?#@\s*]+")


class Settings(BaseModel):
    """Base of all settings: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Limits(Settings):
    """What one client may send and hold, and how long anything may take."""

    max_image_bytes: int = Field(20 * MIB, ge=1)
    max_image_pixels: int = Field(40_000_000, ge=1)
    min_image_side_px: int = Field(64, ge=1)
    max_audio_bytes: int = Field(50 * MIB, ge=1)
    max_audio_s: float = Field(600.0, gt=0)
    max_audio_channels: int = Field(8, ge=1)
    min_audio_rate_hz: int = Field(8_000, ge=1)
    max_audio_rate_hz: int = Field(192_000, ge=1)
    max_form_bytes: int = Field(72 * MIB, ge=1)
    """The whole request body: both files, the fields and the multipart frame around them."""
    upload_timeout_s: float = Field(60.0, gt=0)
    decode_timeout_s: float = Field(30.0, gt=0)
    decode_memory_bytes: int = Field(3 * 1024 * MIB, ge=1024 * MIB)
    decode_workers: int = Field(1, ge=1)
    max_streams: int = Field(16, ge=1)
    """Requests an ingress replica animates at once; more are answered 429."""
    max_waiting_clusters: int = Field(4, ge=1)
    """Clusters made ahead of the reader before generation waits for it."""
    client_stall_s: float = Field(20.0, gt=0)
    """A reader that takes nothing for this long while a cluster waits is closed (slow_client)."""
    resume_timeout_s: float = Field(120.0, gt=0)
    """How long a session looks for a replica after losing one before it ends."""
    call_timeout_s: float = Field(150.0, gt=0)
    """How long one answer about a chunk may take before what was to give it counts as lost. Longer than
    ``resume_timeout_s``, which a generator may spend waiting for AudioEncoder."""
    max_losses_per_chunk: int = Field(5, ge=1)
    """How often one chunk may lose what makes it before its session ends: a chunk that kills every
    replica it is sent to must not take them all."""
    retry_after_s: int = Field(5, ge=1)
    """When a refused client may come back, where nothing better is known."""
    wake_wait_s: float = Field(30.0, ge=0)
    """How long a request waits for a sleeping model. Where waking takes longer, going by the last time, it
    is answered 503 at once with the time left."""

    @model_validator(mode="after")
    def _patient_calls(self) -> Limits:
        if self.call_timeout_s <= self.resume_timeout_s:
            raise ValueError(
                f"call_timeout_s={self.call_timeout_s:g} must be more than"
                f" resume_timeout_s={self.resume_timeout_s:g}"
            )
        return self


class ModelSettings(Settings):
    """One served model: a preset, where its weights are, and how they run."""

    name: str
    checkpoint: str = "embedded"
    """Directory in the released layout, or ``embedded`` for the checkpoint in the package."""
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    attention: Literal["auto", "sdpa", "flash"] = "auto"
    compile: bool = False
    """Compile the DiT's blocks at the start, or take them from ``compile_cache``."""
    compile_cache: str = "auto"
    """Directory in which replicas share compiled kernels; ``auto`` for ``compile-cache`` in the checkpoint's
    directory (none with the embedded checkpoint), ``none`` to compile at every start."""
    threads: int | None = Field(None, ge=1)
    """CPU threads of the engine; torch's own choice where absent."""
    max_sessions: int = Field(4, ge=1)
    """Sessions a replica holds at most, whatever it could make in real time. Live streams that resume after
    a loss are taken up to this number; videos nobody watches, beyond one, only where they leave room for
    every place in real time, so give more than the places."""
    max_utilisation: float = Field(0.9, gt=0)
    """Share of a replica's time that may be promised to live streams. New ones past it are refused, going
    by the measured time of a chunk. Above 1 streams are let in that will stall."""
    max_rows: int = Field(1, ge=1)
    """Rows per forward pass. 1 keeps the promise of same input, same bytes."""
    idle_session_s: float = Field(60.0, gt=0)
    """A session nobody has called for this long is forgotten; its ingress can resume it."""
    may_sleep: bool = False
    """Whether the model counts as ready without a replica: for ``min_replicas: 0``."""


class ScalingSettings(Settings):
    """``policy_kwargs`` of a generator's autoscaling policy, see ``StreamScaling``."""

    head_room: float = Field(0.1, ge=0, lt=1)
    """Share of the fleet's places kept free."""
    spare_replicas: float = Field(1.0, ge=0)
    """Replicas' worth of free places kept warm beyond that, while there is any stream at all."""
    scale_down_after_s: float = Field(300.0, ge=0)
    """A fleet shrinks to the most it needed within this time."""


class VideoSettings(Settings):
    """How Encoder compresses: VP9 at constant quality, one fresh context per chunk."""

    crf: int | None = Field(None, ge=0, le=55)
    """Absent, it follows the size of the picture, see ``ChunkEncoder``."""
    cpu_used: int = Field(7, ge=0, le=8)
    max_cluster_bytes: int = Field(250_000, ge=10_000)
    """A chunk larger than this is encoded again at crf + 8."""


class KeySettings(Settings):
    """Whether a caller needs an API key. Where ``file`` is given every request does, but for health and
    readiness; otherwise none does, which is for loopback addresses: ``flashhead-serve serve`` listens on
    others only if ``required`` says ``false`` in so many words."""

    file: str | None = None
    """Absolute path of the key file, or of a directory of them, such as a mounted Kubernetes secret."""
    required: bool | None = None
    reload_s: float = Field(2.0, ge=0.05)
    """How often the file is looked at: after so long a changed one is in force."""

    @model_validator(mode="after")
    def _one_meaning(self) -> KeySettings:
        if self.required and self.file is None:
            raise ValueError("required=true needs file: the path of the key file")
        if self.required is False and self.file is not None:
            raise ValueError(f"required=false contradicts file={self.file}: give one of them")
        if self.file is not None and not PurePosixPath(self.file).is_absolute():
            raise ValueError(
                f"file={self.file} must be an absolute path: replicas run in directories of Ray's"
            )
        return self


class CorsSettings(Settings):
    """Which web pages of other origins may call from a browser: none, unless they are listed. Credentials
    are never allowed: a page sends its key in a header, not in a cookie."""

    allow_origins: tuple[str, ...] = ()
    """Such as ``https://example.com``; ``*`` for any."""

    @field_validator("allow_origins")
    @classmethod
    def _origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if origin != "*" and not ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"{origin!r} is no origin; accepted: scheme://host[:port] without a path, or *"
                )
        return origins


class AppSettings(Settings):
    """``args`` of the Serve application."""

    models: tuple[ModelSettings, ...] = (ModelSettings(name="tiny"),)
    limits: Limits = Limits()
    video: VideoSettings = VideoSettings()
    keys: KeySettings = KeySettings()
    cors: CorsSettings = CorsSettings()

    @model_validator(mode="after")
    def _distinct_models(self) -> AppSettings:
        names = [model.name for model in self.models]
        if not names:
            raise ValueError("models is empty: list at least one")
        if len(set(names)) != len(names):
            raise ValueError(f"models lists a name twice: {names}")
        return self
