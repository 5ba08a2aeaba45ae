"""Training: stopped and taken up again it gives the same weights, and what it writes is loaded as any
checkpoint is."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from serve_app.model.audio_features import AudioFeatures
from serve_app.model.checkpoint import load_audio_features, load_dit, load_vae, resolved_geometry
from serve_app.model.dit import DiT, DiTConfig
from serve_app.model.presets import preset
from serve_app.model.vae import LTXVideoVAE

from media.programs import needs
from training.autoencoder import fitted_autoencoder
from training.checkpoint import RECORD, write_checkpoint
from training.chunks import Chunks, TalkEncoder
from training.evaluation import psnr
from training.generator import DIT, flow_losses, hold_motion
from training.loop import Losses, Run, Stage
from training.pictures import Clips
from training.speech_encoder import MouthReader

CPU = torch.device("cpu")
FOREVER = float("inf")


class Points(Dataset[dict[str, Tensor]]):
    def __getitem__(self, index: int) -> dict[str, Tensor]:
        x = torch.randn(3, generator=torch.Generator().manual_seed(index))
        return {"x": x, "y": x.sum(0, keepdim=True)}


def line(steps: int = 12) -> Stage:
    torch.manual_seed(0)
    network = nn.Linear(3, 1)

    def losses(batch: dict[str, Tensor]) -> Losses:
        noise = 0.1 * torch.randn_like(batch["x"])
        return {"loss": (network(batch["x"] + noise) - batch["y"]).square().mean()}

    return Stage("line", network, Points(), losses, batch=4, steps=steps, rate=0.05)


def trained(folder: Path) -> tuple[Tensor, Tensor]:
    run = Run(line(), folder)
    run.train(FOREVER)
    raw = run.stage.network.weight.detach().clone()
    run.finish()
    return raw, run.stage.network.weight.detach()


def test_a_stopped_run_gives_the_weights_of_one_that_was_not(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    expected = trained(whole)
    stopped = Run(line(), parts)
    steps = iter(range(5))
    step = stopped._step

    def counted(batch: Any) -> dict[str, float]:
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return step(batch)

    stopped._step = counted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        stopped.train(FOREVER)
    stopped.save()
    assert Run(line(), parts).progress.step == 5
    for one, other in zip(expected, trained(parts), strict=True):
        assert one.equal(other)


def test_a_run_stops_when_its_time_is_up(tmp_path: Path) -> None:
    run = Run(line(), tmp_path)
    run.train(time.monotonic() - 1)
    assert run.progress.step == 0
    assert not run.done


def test_training_learns(tmp_path: Path) -> None:
    run = Run(line(steps=200), tmp_path)
    run.train(FOREVER)
    assert run.done
    assert run.progress.last["loss"] < 0.2
    lines = [json.loads(text) for text in (tmp_path / "line.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in lines] == list(range(25, 201, 25))


@pytest.fixture(scope="module")
def autoencoder() -> Any:
    data = Clips(1, frames=9)
    items = [data[index] for index in range(24)]
    return fitted_autoencoder([item["clip"] for item in items], [item["clip_weight"] for item in items])


@torch.no_grad()
def test_the_autoencoder_gives_unseen_clips_back(autoencoder: Any) -> None:
    """What it is held to is the best that a plain colour could do, plus 3 dB."""
    data = Clips(1, frames=9)
    unseen = torch.stack([data[index]["clip"] for index in range(100, 104)])
    posterior = autoencoder.encode(unseen).latent_dist
    made = autoencoder.decode(posterior.mean).sample
    plain = unseen.mean(dim=(2, 3, 4), keepdim=True)
    assert psnr(made, unseen) > psnr(plain.expand_as(unseen), unseen) + 3
    assert posterior.std.max() < 0.05
    assert 0.5 < posterior.mean.std() < 2


@torch.no_grad()
def test_between_two_clips_lies_what_is_between_their_latents(autoencoder: Any) -> None:
    """The norms and SiLUs hardly bend it: a chunk goes on from frames that were decoded, and what they bend
    would jump at every seam."""
    data = Clips(1, frames=9)
    one, other = data[100]["clip"][None], data[101]["clip"][None]
    latents = [autoencoder.encode(clip).latent_dist.mean for clip in (one, other, (one + other) / 2)]
    assert bend(*latents) < 0.012
    assert bend(*(autoencoder.decode(each).sample for each in (*latents[:2], sum(latents[:2]) / 2))) < 0.012


def bend(one: Tensor, other: Tensor, between: Tensor) -> float:
    """How far off the middle, as a share of the way from one to the other."""
    return float((between - (one + other) / 2).square().mean().sqrt() / (one - other).square().mean().sqrt())


@needs("espeak-ng")
def test_talks_are_the_same_wherever_they_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autoencoder: Any
) -> None:
    """In this process or by workers, in one go or taken up again."""
    monkeypatch.setattr("training.chunks.TALKS_PER_SHARD", 1)
    torch.manual_seed(0)
    encoders = LTXVideoVAE(autoencoder), AudioFeatures(MouthReader().network.eval())
    at_once, in_parts = (
        TalkEncoder(*encoders, tmp_path / name, 1, workers) for name, workers in (("once", 0), ("parts", 1))
    )
    assert at_once.encode(2, FOREVER)
    assert not in_parts.encode(2, until_s=time.monotonic())
    assert in_parts.encode(1, FOREVER)
    assert in_parts.encode(2, FOREVER)
    for shard in ("00000.pt", "00001.pt"):
        one, other = (torch.load(tmp_path / name / shard) for name in ("once", "parts"))
        assert all(one[key].equal(other[key]) for key in one)


def test_faint_talks_count_more(tmp_path: Path) -> None:
    """In inverse proportion to how much moves, but for those in which next to nothing does."""
    latents = torch.randn(5, 3, 112, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    shard = {
        "latents": latents[:1] * torch.tensor([1.0, 0.75, 1.0, 2.0, 0.0]).view(-1, 1, 1, 1, 1, 1),
        "reference": latents[:, 0, :, :1],
        "features": torch.zeros(5, 3, 35, 4, 96),
        "first": torch.zeros(5),
        "weight": torch.ones(5, 1, 1, 4, 4),
    }
    torch.save(shard, tmp_path / "00000.pt")
    weight = Chunks(tmp_path, 10, 0).data["weight"]
    torch.testing.assert_close(weight[:, 0, 0, 0, 0], torch.tensor([1.0, 4 / 3, 1.0, 0.5, 2.0]))


def batch(opening: float) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)

    def noise(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    return {
        "latent": noise(4, 112, 5, 4, 4),
        "reference": noise(4, 112, 1, 4, 4),
        "motion": noise(4, 112, 2, 4, 4),
        "windows": noise(4, 33, 5, 4, 96),
        "opening": torch.full((4,), opening),
        "weight": torch.ones(4, 1, 1, 4, 4),
    }


def test_a_stream_s_first_chunk_holds_the_portrait_alone() -> None:
    data = batch(opening=1.0)
    x, made = hold_motion(torch.zeros(4, 112, 5, 4, 4), data)
    assert x[:, :, :1].equal(data["reference"])
    assert not x[:, :, 1:].any()
    assert made.flatten(1).sum(1).tolist() == [4.0] * 4


def test_later_chunks_hold_what_was_carried_over() -> None:
    data = {key: value.repeat_interleave(16, 0) for key, value in batch(opening=0.0).items()}
    torch.manual_seed(0)
    x, made = hold_motion(torch.zeros(64, 112, 5, 4, 4), data)
    latents_made = made.flatten(1).sum(1)
    assert set(latents_made.tolist()) == {3.0, 4.0}
    assert (latents_made == 3).float().mean() > 0.75
    held = (made == 0).expand_as(x)
    assert ((x - data["motion"].repeat(1, 1, 3, 1, 1)[:, :, :5])[held]).abs().max() < 1


def test_the_generator_s_loss_reaches_every_parameter_it_uses() -> None:
    torch.manual_seed(0)
    dit = DiT(DiTConfig.from_dict(DIT))
    flow_losses(dit, batch(opening=0.0))["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in dit.parameters())


def test_what_is_written_is_loaded_as_a_checkpoint(tmp_path: Path, autoencoder: Any) -> None:
    torch.manual_seed(0)
    reader = MouthReader()
    dit = DiT(DiTConfig.from_dict(DIT))
    write_checkpoint(tmp_path, dit, autoencoder, reader.network, {"seed": 1})
    tiny = preset("tiny")
    loaded = load_dit(tmp_path, tiny, CPU, torch.float32)
    vae = load_vae(tmp_path, tiny, CPU, torch.float32)
    speech = load_audio_features(tmp_path, tiny, CPU)
    geometry = resolved_geometry(tmp_path, tiny)
    assert vae.latent_shape(geometry.frames, geometry.height, geometry.width) == (112, 5, 4, 4)
    assert (speech.layers, speech.channels) == (loaded.config.audio_blocks, loaded.config.audio_channels)
    for name, tensor in dit.state_dict().items():
        assert loaded.state_dict()[name].equal(tensor.half().float())
    samples = np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
    with torch.no_grad():
        heard = speech.encode(torch.from_numpy(samples))
        expected = AudioFeatures(reader.network.eval()).encode(torch.from_numpy(samples))
    torch.testing.assert_close(heard, expected, atol=0.02, rtol=0.02)
    assert json.loads((tmp_path / RECORD).read_text()) == {"seed": 1}
    assert sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()) < 20e6
