"""Makes clean speech sound like what microphones give: gain, tone, reverberation, noise."""

from __future__ import annotations

import numpy as np

from training.speech import RATE_HZ


def recorded(samples: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """``samples`` ``[n]`` float32 as some microphone in some room would have them; as long, and nothing
    is heard earlier or later."""
    if random.random() < 0.7:
        samples = _toned(samples, random)
    if random.random() < 0.35:
        samples = _reverberated(samples, random)
    peak = float(np.abs(samples).max(initial=0.0))
    loud = samples * (random.uniform(0.05, 0.95) / peak if peak else 1.0)
    if random.random() < 0.5:
        loud = loud + _noise(len(loud), random) * _noise_level(loud, random)
    return np.clip(loud, -1, 1).astype(np.float32)


def _toned(samples: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A smooth random response of up to 18 dB, without delay: some voices are as dull as a bad microphone."""
    points = random.uniform(-18, 18, 8)
    points[0] = min(points[0], 0.0)
    spectrum = np.fft.rfft(samples)
    place = np.linspace(0, len(points) - 1, len(spectrum)) ** 0.5 * (len(points) - 1) ** 0.5
    gain_db = np.interp(place, np.arange(len(points)), points)
    return np.fft.irfft(spectrum * 10 ** (gain_db / 20), len(samples))


def _reverberated(samples: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The direct sound and an exponential tail."""
    decay_s, wet = random.uniform(0.05, 0.25), random.uniform(0.1, 0.5)
    length = int(3 * decay_s * RATE_HZ)
    tail = random.standard_normal(length) * np.exp(-np.arange(length) / (decay_s * RATE_HZ))
    tail *= wet / np.sqrt((tail**2).sum())
    tail[0] = 1.0
    size = len(samples) + length
    return np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(tail, size), size)[: len(samples)]


def _noise(count: int, random: np.random.Generator) -> np.ndarray:
    """Noise of unit power whose spectrum falls by 0 to 6 dB an octave."""
    spectrum = np.fft.rfft(random.standard_normal(count))
    spectrum /= np.maximum(np.arange(len(spectrum)), 1) ** random.uniform(0, 1)
    noise = np.fft.irfft(spectrum, count)
    return noise / (noise.std() + 1e-12)


def _noise_level(samples: np.ndarray, random: np.random.Generator) -> float:
    """8 to 45 dB below the speech; for silence, the noise of an open microphone."""
    power = float(np.sqrt(np.mean(samples**2)))
    if not power:
        return float(10 ** random.uniform(-4.5, -2))
    return float(power * 10 ** (-random.uniform(8, 45) / 20))
