"""Where activations come from: an array (or memory map), or any iterable through a shuffling buffer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader

SAMPLE = 20_000  # activations from which scale, mean and threshold are read


def as_rows(part) -> Float[Tensor, "rows d_in"]:
    """Some activations as float32 on the CPU: from an array or a tensor of any number format, or a tuple of one.

    Raises:
        ValueError: something else, or another shape.
    """
    kind = type(part).__name__
    try:
        if isinstance(part, list | tuple) and any(isinstance(one, Tensor) for one in part):  # of a TensorDataset
            if len(part) > 1:
                raise ValueError(f"{len(part)} tensors")
            part = part[0]
        with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and said to be so by the trainer
            rows = part.detach().cpu() if isinstance(part, Tensor) else np.asarray(part).astype(np.float32)
        if rows.ndim != 2:
            raise ValueError(f"shape {tuple(rows.shape)}")
        return torch.as_tensor(rows).float()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"activations come as {kind} ({error}); give numbers of shape [any, d_in], "
            "alone or in a tuple of one, such as `TensorDataset(x)`"
        ) from None


class ArraySource:
    """Random batches without replacement from `[samples, d_in]`, epoch after epoch.

    Raises:
        ValueError: fewer activations than one batch.
    """

    def __init__(self, activations: np.ndarray | Tensor, batch: int, seed: int):
        if len(activations) < batch:
            raise ValueError(f"{len(activations)} activations do not fill one batch of {batch}")
        self.activations = activations if isinstance(activations, Tensor) else np.asarray(activations)
        self.batch, self.seed = batch, seed

    def sample(self) -> Float[Tensor, "sample d_in"]:
        """Activations spread over the whole array."""
        return as_rows(self.activations[:: max(1, len(self.activations) // SAMPLE)])

    def batches(self, first: int = 0) -> Iterator[Float[Tensor, "batch d_in"]]:
        """Batches from step `first` on, as float32; the same ones as if the steps before had been taken."""
        rng, each = np.random.default_rng(self.seed), len(self.activations) // self.batch
        step = 0
        while True:
            order = rng.permutation(len(self.activations))[: each * self.batch].reshape(each, self.batch)
            for rows in order[max(0, first - step) :]:
                yield as_rows(self.activations[np.sort(rows)])
            step += each


class StreamSource:
    """Batches from an iterable of `[any, d_in]` tensors, mixed in a shuffling buffer.

    A model's activations come text by text; neighbours are alike, and training on them unmixed goes badly. The buffer
    is filled, half of it is handed out in random order, and it is filled up again.

    Args:
        stream: iterated anew whenever it ends: such as a `DataLoader` or an `IterableDataset`.
        size: activations in the buffer (by default 16 batches).
    """

    def __init__(self, stream: Iterable[Tensor], batch: int, seed: int, size: int | None = None):
        self.stream, self.batch, self.seed, self.size = stream, batch, seed, size or 16 * batch

    def _endless(self) -> Iterator[Tensor]:
        while True:
            found = 0
            for part in map(as_rows, self.stream):
                found += len(part)
                yield part
            if not found:
                raise ValueError(
                    "the activation source is empty, or can be read only once; "
                    "give something that can be iterated again, such as a DataLoader"
                )

    def sample(self) -> Float[Tensor, "sample d_in"]:
        """The first activations of the stream."""
        parts, n = [], 0
        for part in self._endless():
            parts.append(part)
            n += len(part)
            if n >= min(SAMPLE, self.size):
                return torch.cat(parts)[:SAMPLE]

    def batches(self, first: int = 0) -> Iterator[Float[Tensor, "batch d_in"]]:
        """Batches from step `first` on; those before are read again and passed over."""
        generator, held, step = torch.Generator().manual_seed(self.seed), [], 0
        for part in self._endless():
            held.append(part)
            if sum(map(len, held)) < self.size:
                continue
            pool = torch.cat(held)
            pool = pool[torch.randperm(len(pool), generator=generator)]
            out = max(1, len(pool) // 2 // self.batch)
            for rows in pool[: out * self.batch].split(self.batch):
                if step >= first and len(rows) == self.batch:
                    yield rows
                step += 1
            held = [pool[out * self.batch :]]


def as_source(activations, batch: int, seed: int) -> ArraySource | StreamSource:
    """What `train` reads: arrays and tensors at random, everything else through a shuffling buffer.

    Args:
        activations: `[samples, d_in]` array, memory map, tensor or table; a map-style `Dataset` of rows; or an iterable
            of `[any, d_in]` tensors. Rows and tensors may come in tuples of one, as of a `TensorDataset`.
    """
    if isinstance(activations, ArraySource | StreamSource):
        return activations
    if hasattr(activations, "__array__"):
        return ArraySource(activations, batch, seed)
    if hasattr(activations, "__getitem__") and hasattr(activations, "__len__"):
        generator = torch.Generator().manual_seed(seed)
        activations = DataLoader(activations, batch_size=batch, shuffle=True, generator=generator)
    return StreamSource(activations, batch, seed)
