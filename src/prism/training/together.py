"""One pass of the model, several SAEs at once: a buffer that rolls through the text, and runs that read from it."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from prism.files import write_text
from prism.sae import SaeConfig, SparseAutoencoder
from prism.training.loop import TrainConfig, Trainer
from prism.training.sources import SAMPLE

Chunk = Mapping[str, Float[Tensor, "size d_in"]]  # hook name -> activations of the same tokens


class RollingBuffer:
    """Activations of several hooks, mixed in memory: nothing on disk, and no token harvested twice.

    Round `r` harvests chunk `r` in the place of the oldest of `passes` chunks, and then hands out what the buffer
    holds, once, in random order and in whole batches. So every activation is seen `passes` times, in as many rounds
    (those of the last chunks less often), among others of up to `passes` chunks before and after it. What a round hands
    out depends on its number alone: to go on from round `r`, only the chunks that it holds are harvested again.

    Args:
        chunk: makes chunk `i`, the same whenever it is asked for: hook name -> `[size, d_in]`. Hooks may differ in
            which tokens they have.
        passes: how often each activation is seen.
        batch: activations in a step.
        seed: of the order.
    """

    def __init__(self, chunk: Callable[[int], Chunk], passes: int, batch: int = TrainConfig.batch, seed: int = 0):
        self.chunk, self.passes, self.batch, self.seed = chunk, passes, batch, seed
        self.held: dict[str, Tensor] = {}  # hook -> [passes * size, d_in]; chunk i lies in slot i % passes
        self.slots: list[int | None] = [None] * passes  # number of the chunk in each slot

    def sample(self) -> dict[str, Float[Tensor, "sample d_in"]]:
        """The first activations of the stream, for scale, mean and threshold of the SAEs; before the first round."""
        self._put(0)
        return {hook: values[: min(SAMPLE, self.size)].float() for hook, values in self.held.items()}

    @property
    def size(self) -> int:
        """Activations in a chunk; known once there is one."""
        return len(next(iter(self.held.values()))) // self.passes

    def steps(self, number: int) -> int:
        """Batches in round `number`."""
        return min(number + 1, self.passes) * self.size // self.batch

    def rounds(self, first: int = 0) -> Iterator[tuple[int, Iterator[dict[str, Float[Tensor, "batch d_in"]]]]]:
        """Number and batches of each round, from round `first` on; endless."""
        for earlier in range(max(0, first - self.passes + 1), first):
            self._put(earlier)
        for number in itertools.count(first):
            self._put(number)
            yield number, self._batches(number)

    def _put(self, number: int) -> None:
        """Harvest one chunk into its slot, if it is not there."""
        slot = number % self.passes
        if self.slots[slot] == number:
            return
        for hook, values in self.chunk(number).items():
            if hook not in self.held:
                self.held[hook] = values.new_empty(self.passes * len(values), values.shape[1])
            wider = torch.promote_types(self.held[hook].dtype, values.dtype)  # a chunk may be beyond float16
            self.held[hook] = self.held[hook].to(wider)
            self.held[hook][slot * len(values) : (slot + 1) * len(values)] = values
        self.slots[slot] = number

    def _batches(self, number: int) -> Iterator[dict[str, Tensor]]:
        order = np.random.default_rng((self.seed, number)).permutation(min(number + 1, self.passes) * self.size)
        for step in range(self.steps(number)):
            rows = torch.from_numpy(np.sort(order[step * self.batch : (step + 1) * self.batch]))
            yield {hook: values[rows].float() for hook, values in self.held.items()}


@dataclass(frozen=True)
class Run:
    """One SAE to train from a buffer: the hook that it reads, its shape, and the settings of its training.

    The buffer and its rounds say how many activations a run sees and in which batches; `config` says the rest.
    """

    hook_name: str
    sae: SaeConfig
    config: TrainConfig = TrainConfig()
    every: int = 1  # takes each so-manieth batch


def train_together(
    buffer: RollingBuffer,
    runs: Mapping[str, Run],
    rounds: int,
    folder: Path | None = None,
    progress: str | None = None,
) -> dict[str, SparseAutoencoder]:
    """Train several SAEs on one stream of activations; each becomes what it would have become alone.

    Args:
        rounds: of the buffer.
        folder: for a checkpoint after every round; a call that finds one there goes on from it, exactly, if the
            buffer's chunks are what they were.
        progress: label of a progress bar; none without one.

    Raises:
        ValueError: the checkpoint is of other runs, with what differs.
        FloatingPointError: a loss is not finite. The last checkpoint stays.
    """
    sample, steps = buffer.sample(), [buffer.steps(number) for number in range(rounds)]
    trainers = {}
    for name, run in runs.items():
        tokens = -(-sum(steps) // run.every) * buffer.batch
        config = replace(run.config, tokens=tokens, batch=buffer.batch)
        trainers[name] = Trainer(run.sae, config, sample[run.hook_name])
    first = _newest(folder)
    if first:
        _check_same(folder / f"round-{first}" / "key.json", _key(buffer, runs))
    logs = {
        name: trainers[name].load(folder / f"round-{first}" / f"{name}.safetensors") if first else [] for name in runs
    }
    bar = tqdm(total=sum(steps), initial=sum(steps[:first]), unit="step", desc=progress, disable=progress is None)
    for number, batches in itertools.islice(buffer.rounds(first), rounds - first):
        for step, batch in enumerate(batches, sum(steps[:number])):
            for name, run in runs.items():
                if step % run.every == 0:
                    measured = trainers[name].take(batch[run.hook_name])
                    if step < sum(steps[:number]) + run.every:  # one row a round
                        logs[name].append({"round": number, **measured})
            bar.update()
        if folder is not None:
            _keep(folder, number + 1, trainers, logs, _key(buffer, runs))
    bar.close()
    return {name: trainer.finish() for name, trainer in trainers.items()}


def _newest(folder: Path | None) -> int:
    """Rounds that the checkpoint in a folder has behind it; 0 without one."""
    found = folder.glob("round-*") if folder is not None else ()
    return max((int(number) for path in found if (number := path.name.removeprefix("round-")).isdecimal()), default=0)


def _key(buffer: RollingBuffer, runs: Mapping[str, Run]) -> dict:
    """What must be equal for a run to go on, beside what each trainer checks."""
    what = {"seed": buffer.seed, "passes": buffer.passes, "batch": buffer.batch, "size": buffer.size}
    return what | {f"hook and share of {name}": [run.hook_name, run.every] for name, run in runs.items()}


def _check_same(path: Path, key: dict) -> None:
    try:
        kept = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        where = path.parent
        raise ValueError(f"'{where}' is no checkpoint of this trainer ({error}); delete it to start anew") from None
    if differ := [name for name in kept | key if kept.get(name) != key.get(name)]:
        what = ", ".join(f"{name} {kept.get(name)} there and {key.get(name)} here" for name in differ)
        raise ValueError(f"'{path.parent}' belongs to other runs: {what}. Delete it to start anew")


def _keep(folder: Path, done: int, trainers: Mapping[str, Trainer], logs: Mapping[str, list[dict]], key: dict) -> None:
    """Write a checkpoint beside the last one, then drop that: a kill at any moment leaves a whole one."""
    whole, part = folder / f"round-{done}", folder / f"round-{done}.part"
    shutil.rmtree(part, ignore_errors=True)
    for name, trainer in trainers.items():
        trainer.save(part / f"{name}.safetensors", logs[name])
    write_text(part / "key.json", json.dumps(key))
    os.replace(part, whole)
    for other in folder.glob("round-*"):
        if other != whole:
            shutil.rmtree(other)
