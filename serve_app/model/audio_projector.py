"""From windows of speech features to the audio tokens of each latent frame."""

from __future__ import annotations

import torch
from torch import Tensor, nn

AUDIO_WINDOW = 5
"""Feature rows around each video frame: j - 2 .. j + 2."""

_CENTRE = AUDIO_WINDOW // 2


class AudioProjector(nn.Module):
    """Speech windows ``[B, frames, 5, blocks, channels]`` to tokens ``[B, T, tokens, dim]``.

    The first latent frame stands for one video frame, each later one for ``stride`` of them, so the
    two kinds have projections of their own (FlashHead spec section 3, step 3).
    """

    def __init__(
        self, *, blocks: int, channels: int, intermediate: int, tokens: int, dim: int, stride: int
    ) -> None:
        super().__init__()
        self.stride = stride
        self.tokens = tokens
        row = blocks * channels
        self.proj1 = nn.Linear(AUDIO_WINDOW * row, intermediate)
        self.proj1_vf = nn.Linear((2 * (_CENTRE + 1) + stride - 2) * row, intermediate)
        self.proj2 = nn.Linear(intermediate, intermediate)
        self.proj3 = nn.Linear(intermediate, tokens * dim)
        self.norm = nn.LayerNorm(dim, eps=1e-5)

    def forward(self, windows: Tensor) -> Tensor:
        first = self.proj1(windows[:, :1].flatten(2)).relu()
        groups = self._group_rows(windows[:, 1:].unflatten(1, (-1, self.stride)))
        later = self.proj1_vf(groups.flatten(2)).relu()
        hidden = self.proj2(torch.cat((first, later), dim=1)).relu()
        return self.norm(self.proj3(hidden).unflatten(-1, (self.tokens, -1)))

    def _group_rows(self, groups: Tensor) -> Tensor:
        """The rows a group of ``stride`` frames is known by, in order of time.

        ``groups [B, T - 1, stride, 5, blocks, channels]``: the first frame's window up to its centre,
        the centres of the middle frames, the last frame's window from its centre on.
        """
        head = groups[:, :, 0, : _CENTRE + 1]
        middle = groups[:, :, 1:-1, _CENTRE]
        tail = groups[:, :, -1, _CENTRE:]
        return torch.cat((head, middle, tail), dim=2)
