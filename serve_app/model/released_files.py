"""The published weights as data: which files there are, where, how large, with which checksum.

Source: FlashHead spec section 1. Sizes and checksums are those of the revisions named here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from serve_app.errors import OutOfRange
from serve_app.model.presets import PRESETS, RELEASE_DIR, WAV2VEC2_DIR

DOWNLOADABLE = ("lite", "pro")


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository of the Hugging Face hub at one commit."""

    id: str
    revision: str


@dataclass(frozen=True, slots=True)
class ReleasedFile:
    """One published file: its path below a checkpoint root, its bytes, its checksum where it is known."""

    path: str
    size: int
    sha256: str | None = None

    @property
    def folder(self) -> str:
        """The folder below the root that is its repository."""
        return self.path.partition("/")[0]

    @property
    def name(self) -> str:
        """Its path in the repository."""
        return self.path.partition("/")[2]


REPOSITORIES = {
    RELEASE_DIR: Repository("Soul-AILab/SoulX-FlashHead-1_3B", "59119b6c681230c3eeee157e224ae1941746711e"),
    WAV2VEC2_DIR: Repository("facebook/wav2vec2-base-960h", "22aad52d435eb6dbaf354bdad9b0da84ce7d6156"),
}
"""By the folder below a checkpoint root that holds its files."""

RELEASED = (
    ReleasedFile(f"{RELEASE_DIR}/Model_Lite/config.json", 357),
    ReleasedFile(
        f"{RELEASE_DIR}/Model_Lite/diffusion_pytorch_model.safetensors",
        6_107_542_048,
        "aaf1cde6e80ca23f740aae236c47954249f65b151db133cc0f77d3a138ccdf6e",
    ),
    ReleasedFile(
        f"{RELEASE_DIR}/Model_Pro/config.json",
        353,
        "94b480d3af70e73989371ed0c106656c2c887201286b1210e835cd09e71e32b1",
    ),
    ReleasedFile(
        f"{RELEASE_DIR}/Model_Pro/diffusion_pytorch_model.safetensors",
        6_030_864_656,
        "e47e61b9023ea1aac60c0c0fff077289bc6cca443c71907e5a76a411480af250",
    ),
    ReleasedFile(f"{RELEASE_DIR}/VAE_LTX/config.json", 501),
    ReleasedFile(
        f"{RELEASE_DIR}/VAE_LTX/diffusion_pytorch_model.safetensors",
        1_676_798_532,
        "265ca87cb5dff5e37f924286e957324e282fe7710a952a7dafc0df43883e2010",
    ),
    ReleasedFile(
        f"{RELEASE_DIR}/VAE_Wan/Wan2.1_VAE.pth",
        507_609_880,
        "38071ab59bd94681c686fa51d75a1968f64e470262043be31f7a094e442fd981",
    ),
    ReleasedFile(
        f"{WAV2VEC2_DIR}/config.json",
        1_596,
        "d3ec255c063d9f95057b553b19c20135b259875834a4fe9deb218a6be25b4cf3",
    ),
    ReleasedFile(
        f"{WAV2VEC2_DIR}/model.safetensors",
        377_607_901,
        "8aa76ab2243c81747a1f832954586bc566090c83a0ac167df6f31f0fa917d74a",
    ),
)

RELEASED_BYTES = {file.path: file.size for file in RELEASED}
"""Sizes by path. A file of another size can still be fine: a conversion to another precision, or another
model in the same layout."""


def files_of(models: Sequence[str]) -> tuple[ReleasedFile, ...]:
    """What the models need, each file once.

    Raises:
        OutOfRange: a model whose weights cannot be downloaded.
    """
    for name in models:
        if name not in DOWNLOADABLE:
            message = f"model {name!r} cannot be downloaded; accepted: {', '.join(DOWNLOADABLE)}"
            raise OutOfRange(message, value=name, accepted=list(DOWNLOADABLE))
    rows = [PRESETS[name] for name in models]
    needed = [path for row in rows for path in (row.dit_dir, row.vae_path, row.wav2vec2_dir)]
    return tuple(file for file in RELEASED if any(f"{file.path}/".startswith(f"{path}/") for path in needed))
