"""What is said, and by which voices: a part for training, another one held out for measuring."""

from __future__ import annotations

import numpy as np

TRAINING_LANGUAGES = (
    "en-us", "en-gb-scotland", "de", "fr", "es", "it", "pt-br", "nl", "pl", "cs", "fi", "tr",
    "hu", "sw", "id", "ca", "da", "lv", "eo", "la", "cmn-latn-pinyin",
)  # fmt: skip
TRAINING_VARIANTS = ("", "+f1", "+f2", "+f4", "+m1", "+m2", "+m3", "+m4", "+m5", "+m6", "+klatt", "+klatt4")
HELD_OUT_VOICES = ("en-us+f3", "sv+m7", "es-419+f5", "ro+m8", "en-gb-x-rp+klatt2")

HELD_OUT_TEXTS = (
    "Good morning. The weather report promises sunshine by noon, and a warm wind from the south.",
    "My brother bought five big boxes of apples, but we only wanted a few plums for the cake.",
    "Imagine a voice that opens its mouth at every vowel, and shuts it before each pause. Perfect.",
    "Who would have thought that such a small machine could follow everything we say about music?",
    "Vi bor i en by vid havet. Om sommaren badar barnen, och om vintern åker de skidor.",
)

_ONSETS = (
    "", "b", "p", "m", "f", "v", "w", "d", "t", "n", "l", "r", "s", "z", "sh", "ch", "j", "k", "g", "h",
    "bl", "br", "pl", "pr", "st", "sp", "tr", "dr", "fl", "kr", "gl",
)  # fmt: skip
_NUCLEI = ("a", "e", "i", "o", "u", "a", "o", "ai", "au", "ei", "ou", "oi", "ea", "oo", "ee")
_CODAS = ("", "", "", "", "n", "m", "s", "l", "r", "t", "p", "b", "f", "k", "nd", "mp", "st")
_PAUSES = (" ", " ", " ", " ", " ", ", ", ". ", "! ", "? ")


def babble(random: np.random.Generator, words: int) -> str:
    """``words`` made-up words with the pauses of sentences: every sound next to every other."""
    pieces = []
    for _ in range(words):
        pieces += [_word(random), str(random.choice(_PAUSES))]
    return "".join(pieces).strip() + "."


def training_voice(random: np.random.Generator) -> str:
    """A language and a speaker."""
    return str(random.choice(TRAINING_LANGUAGES)) + str(random.choice(TRAINING_VARIANTS))


def _word(random: np.random.Generator) -> str:
    syllables = int(random.choice((1, 2, 3), p=(0.4, 0.4, 0.2)))
    parts = (_ONSETS, _NUCLEI, _CODAS)
    return "".join(str(random.choice(part)) for _ in range(syllables) for part in parts)
