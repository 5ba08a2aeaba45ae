"""How good the encoders are on faces and voices that training never saw."""

from __future__ import annotations

import numpy as np
import torch

from serve_app.model.vae import LTXVideoVAE

from training.chunks import FRAMES, MOTION_FRAMES, SLICE_FRAMES
from training.pictures import as_video
from training.speech_encoder import MouthReader
from training.talks import WINDOW_FRAMES, held_out_talk
from training.texts import HELD_OUT_VOICES

CLIPS = 8
CHUNKS = 4


@torch.inference_mode()
def evaluate(vae: LTXVideoVAE, reader: MouthReader) -> dict[str, float]:
    """PSNR in dB of whole clips, of 9-frame clips as they are re-encoded, and of clips encoded twice; how
    the opening that is read from voices, a chunk at a time, correlates with the true one, mean and least."""
    once, motion, twice = [], [], []
    for number in range(CLIPS):
        video = as_video(held_out_talk(number, 100).video(40, FRAMES))[None].to(vae.network.device)
        made = vae.decode(vae.encode(video))
        carried = video[:, :, -MOTION_FRAMES:]
        once.append(psnr(made, video))
        motion.append(psnr(vae.decode(vae.encode(carried)), carried))
        twice.append(psnr(vae.decode(vae.encode(made)), video))
    heard = [heard_opening(reader, number) for number in range(len(HELD_OUT_VOICES))]
    return {
        "opening_heard": float(np.mean(heard)),
        "opening_heard_least": float(np.min(heard)),
        "psnr_33_frames_db": float(np.mean(once)),
        "psnr_9_frames_db": float(np.mean(motion)),
        "psnr_encoded_twice_db": float(np.mean(twice)),
    }


def heard_opening(reader: MouthReader, number: int) -> float:
    """Correlation of what is read of a held-out talk's opening with the truth."""
    talk = held_out_talk(number, WINDOW_FRAMES + CHUNKS * SLICE_FRAMES)
    device = next(reader.parameters()).device
    read = []
    for end in range(WINDOW_FRAMES + SLICE_FRAMES, talk.frames + 1, SLICE_FRAMES):
        track, _ = reader(torch.from_numpy(talk.window(end))[None].to(device))
        read.append(track[0, -SLICE_FRAMES:, 0].cpu().numpy())
    return float(np.corrcoef(np.concatenate(read), talk.track[WINDOW_FRAMES:, 0])[0, 1])


def psnr(made: torch.Tensor, wanted: torch.Tensor) -> float:
    """In dB, of videos in [-1, 1]; what is beyond is clipped."""
    return float(-10 * torch.log10((made.clamp(-1, 1) - wanted).square().mean() / 4))
