"""The loop every stage of training runs in: deterministic, and resumable at any step.

What a step sees follows from the stage's seed and the step's number alone, so a run that was stopped and
taken up again gives the weights of one that was not: to the bit on a CPU with the same number of threads; on
a GPU but for the order in which kernels add up.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

Losses = dict[str, Tensor]
"""Named terms; ``loss`` is what is minimised, the others are logged."""

SAVE_EVERY_S = 120.0
LOG_EVERY_STEPS = 25
WARM_UP_STEPS = 100
_EMA_DECAY = 0.998


def save_whole(value: Any, path: Path) -> None:
    """Write what torch can save whole or not at all."""
    partial = f"{path}.partial"
    torch.save(value, partial)
    os.replace(partial, path)


@dataclass
class Stage:
    """One run of an optimiser.

    Attributes:
        name: of its state file and its log.
        network: what is trained; parameters without ``requires_grad`` stay as they are.
        data: item ``i`` is a function of ``i``.
        losses: of a batch, on the network's device.
        batch: items of a step.
        steps: of the whole stage.
        rate: peak learning rate; it rises for ``WARM_UP_STEPS`` and falls to zero by a cosine.
        workers: processes that make the data, 0 makes it in this one.
    """

    name: str
    network: nn.Module
    data: Dataset[Any]
    losses: Callable[[Any], Losses]
    batch: int
    steps: int
    rate: float
    workers: int = 0


@dataclass
class Progress:
    """Where a stage stands.

    Attributes:
        step: steps done.
        seconds: spent in them.
        last: means of the logged losses over the last interval.
    """

    step: int = 0
    seconds: float = 0.0
    last: dict[str, float] = field(default_factory=dict)


class Run:
    """A stage with its optimiser and a moving average of its weights.

    Args:
        stage: what to train.
        folder: holds ``<name>.pt`` and ``<name>.jsonl``; taken up where they are there.
    """

    def __init__(self, stage: Stage, folder: Path) -> None:
        self.stage = stage
        self.progress = Progress()
        self._path = folder / f"{stage.name}.pt"
        self._log = folder / f"{stage.name}.jsonl"
        self._trained = [p for p in stage.network.parameters() if p.requires_grad]
        self._optimiser = torch.optim.AdamW(
            self._trained, lr=stage.rate, betas=(0.9, 0.98), weight_decay=1e-3, fused=True
        )
        self._average = [p.detach().clone() for p in self._trained]
        if self._path.is_file():
            self._restore()

    @property
    def done(self) -> bool:
        return self.progress.step >= self.stage.steps

    def train(self, until_s: float) -> None:
        """Step until the stage is done or ``time.monotonic()`` passes ``until_s``; the state is saved."""
        saved = time.monotonic()
        terms: list[dict[str, float]] = []
        for batch in self._batches():
            started = time.monotonic()
            if started >= until_s:
                break
            terms.append(self._step(batch))
            self.progress.seconds += time.monotonic() - started
            if self.progress.step % LOG_EVERY_STEPS == 0:
                self._write_log(terms)
                terms = []
            if time.monotonic() - saved > SAVE_EVERY_S:
                self.save()
                saved = time.monotonic()
        self.save()

    def finish(self) -> None:
        """Put the averaged weights into the network, for use."""
        with torch.no_grad():
            for parameter, average in zip(self._trained, self._average, strict=True):
                parameter.copy_(average)

    def save(self) -> None:
        """Write the state."""
        state = {
            "progress": self.progress.__dict__,
            "weights": [p.detach() for p in self._trained],
            "average": self._average,
            "optimiser": self._optimiser.state_dict(),
        }
        save_whole(state, self._path)

    def _restore(self) -> None:
        device = self._trained[0].device
        state = torch.load(self._path, map_location=device, weights_only=True)
        self.progress = Progress(**state["progress"])
        with torch.no_grad():
            for parameter, saved in zip(self._trained, state["weights"], strict=True):
                parameter.copy_(saved)
        self._average = state["average"]
        self._optimiser.load_state_dict(state["optimiser"])

    def _batches(self) -> Iterator[Any]:
        size, start = self.stage.batch, self.progress.step
        indices = [range(step * size, (step + 1) * size) for step in range(start, self.stage.steps)]
        workers = self.stage.workers
        return iter(
            DataLoader(
                self.stage.data,
                batch_sampler=indices,
                num_workers=workers,
                prefetch_factor=4 if workers else None,
                multiprocessing_context="fork" if workers else None,
            )
        )

    def _step(self, batch: Any) -> dict[str, float]:
        stage = self.stage
        device = self._trained[0].device
        torch.manual_seed(1_000_003 * self.progress.step + 17)
        for group in self._optimiser.param_groups:
            group["lr"] = stage.rate * self._rate_factor()
        losses = stage.losses({key: value.to(device) for key, value in batch.items()})
        self._optimiser.zero_grad(set_to_none=True)
        losses["loss"].backward()
        nn.utils.clip_grad_norm_(self._trained, 1.0)
        self._optimiser.step()
        self.progress.step += 1
        torch._foreach_lerp_(self._average, [p.detach() for p in self._trained], 1 - self._decay())
        return {name: float(value.detach()) for name, value in losses.items()}

    def _rate_factor(self) -> float:
        step, steps = self.progress.step, self.stage.steps
        warm = min(1.0, (step + 1) / WARM_UP_STEPS)
        return warm * 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * step / steps))))

    def _decay(self) -> float:
        """Shorter at first, so that the average is not of the first weights."""
        return min(_EMA_DECAY, self.progress.step / (self.progress.step + 20))

    def _write_log(self, terms: list[dict[str, float]]) -> None:
        self.progress.last = {name: sum(t[name] for t in terms) / len(terms) for name in terms[0]}
        line = {"step": self.progress.step, "seconds": round(self.progress.seconds, 1), **self.progress.last}
        with self._log.open("a") as log:
            log.write(json.dumps(line) + "\n")
