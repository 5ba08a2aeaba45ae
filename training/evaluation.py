"""How good the encoders are on faces and voices that training never saw."""

from __future__ import annotations

import numpy as np
import torch

from serve_app.model.audio_features import AudioFeatures
from serve_app.model.vae import LTXVideoVAE

from training.chunks import FRAMES, MOTION_FRAMES
from training.pictures import as_video
from training.talks import held_out_talk

CLIPS = 8


@torch.inference_mode()
def evaluate(vae: LTXVideoVAE, speech: AudioFeatures) -> dict[str, float]:
    """PSNR in dB of whole clips, of 9-frame clips as they are re-encoded, and of clips encoded twice."""
    once, motion, twice = [], [], []
    for number in range(CLIPS):
        video = as_video(held_out_talk(number, 100).video(40, FRAMES))[None].to(vae.network.device)
        made = vae.decode(vae.encode(video))
        carried = video[:, :, -MOTION_FRAMES:]
        once.append(psnr(made, video))
        motion.append(psnr(vae.decode(vae.encode(carried)), carried))
        twice.append(psnr(vae.decode(vae.encode(made)), video))
    return {
        "psnr_33_frames_db": float(np.mean(once)),
        "psnr_9_frames_db": float(np.mean(motion)),
        "psnr_encoded_twice_db": float(np.mean(twice)),
    }


def psnr(made: torch.Tensor, wanted: torch.Tensor) -> float:
    """In dB, of videos in [-1, 1]; what is beyond is clipped."""
    return float(-10 * torch.log10((made.clamp(-1, 1) - wanted).square().mean() / 4))
