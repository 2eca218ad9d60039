"""One stream, several SAEs: what the buffer hands out, runs that equal runs alone, and resuming exactly."""

from collections import Counter

import pytest
import torch

from prism.device import as_float16
from prism.sae import SaeConfig
from prism.training import TrainConfig
from prism.training.loop import Trainer
from prism.training.together import RollingBuffer, Run, _newest, train_together

SIZE = 640
SMALL = TrainConfig(lr=1e-2, dead_after=500)


def make_chunk(asked=None, fails_at=None):
    """Chunks of two hooks; the first channel of 'a' is the token's number in the whole stream."""

    def chunk(number):
        if number == fails_at:
            raise KeyboardInterrupt
        if asked is not None:
            asked.append(number)
        values = torch.randn(SIZE, 8, generator=torch.Generator().manual_seed(number))
        values[:, 0] = torch.arange(SIZE) + number * SIZE
        return {"a": values, "b": values[:, 1:] * 2}

    return chunk


def test_each_activation_is_seen_as_often_as_there_are_passes_and_harvested_once():
    asked, seen = [], Counter()
    buffer = RollingBuffer(make_chunk(asked), passes=3, batch=64)
    assert buffer.sample()["a"].shape == (SIZE, 8)
    for number, batches in buffer.rounds():
        for batch in batches:
            torch.testing.assert_close(batch["a"][:, 1:] * 2, batch["b"])  # the same tokens at both hooks
            seen.update(int(i) // SIZE for i in batch["a"][:, 0])
        if number == 4:
            break
    assert asked == [0, 1, 2, 3, 4]
    assert dict(seen) == {0: 3 * SIZE, 1: 3 * SIZE, 2: 3 * SIZE, 3: 2 * SIZE, 4: SIZE}
    assert [buffer.steps(n) for n in range(4)] == [10, 20, 30, 30]


def test_a_round_mixes_its_chunks_and_does_not_depend_on_where_the_run_began():
    wanted = {number: list(batches) for number, batches in _some_rounds(0, 5)}
    later = dict(_some_rounds(3, 5))
    for number, batches in later.items():
        assert all(torch.equal(x["a"], y["a"]) for x, y in zip(batches, wanted[number], strict=True))
    chunks = {int(i) // SIZE for i in wanted[4][0]["a"][:, 0]}
    assert chunks == {2, 3, 4}


def _some_rounds(first, last):
    found = RollingBuffer(make_chunk(), passes=3, batch=64).rounds(first)
    return [(number, list(batches)) for number, batches in (next(found) for _ in range(first, last))]


RUNS = {
    "topk": Run("a", SaeConfig(8, 32, "topk", k=4), SMALL),
    "relu": Run("b", SaeConfig(7, 16, "relu", k=8, sparsity=0.1), SMALL),
    "rare": Run("a", SaeConfig(8, 16, k=4), SMALL, every=4),
}


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_each_becomes_what_it_becomes_alone():
    together = train_together(RollingBuffer(make_chunk(), 2, 64), RUNS, 4)
    for name, run in RUNS.items():
        alone = train_together(RollingBuffer(make_chunk(), 2, 64), {name: run}, 4)[name]
        assert equal(together[name], alone), name
    assert not equal(together["topk"], Trainer(RUNS["topk"].sae, SMALL, make_chunk()(0)["a"]).finish())


@pytest.mark.parametrize("fails_at", [1, 3, 5])
def test_an_interrupted_run_goes_on_exactly(tmp_path, fails_at):
    wanted = train_together(RollingBuffer(make_chunk(), 2, 64), RUNS, 6)
    with pytest.raises(KeyboardInterrupt):
        train_together(RollingBuffer(make_chunk(fails_at=fails_at), 2, 64), RUNS, 6, tmp_path)
    assert _newest(tmp_path) == fails_at
    (tmp_path / "round-99.part").mkdir()  # a kill while a checkpoint was being written
    asked = []
    found = train_together(RollingBuffer(make_chunk(asked), 2, 64), RUNS, 6, tmp_path)
    assert asked == list(dict.fromkeys([0, *range(max(0, fails_at - 1), 6)]))  # only what the buffer holds, again
    assert all(equal(found[name], wanted[name]) for name in RUNS)
    assert [path.name for path in tmp_path.iterdir()] == ["round-6"]


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    train_together(RollingBuffer(make_chunk(), 2, 64), RUNS, 2, tmp_path)
    other = RUNS | {"topk": Run("a", SaeConfig(8, 32, "topk", k=8), SMALL)}
    with pytest.raises(ValueError, match="k 4 there and 8 here"):
        train_together(RollingBuffer(make_chunk(), 2, 64), other, 2, tmp_path)


def test_a_chunk_beyond_half_precision_keeps_its_numbers():
    def chunk(number):
        values = make_chunk()(number)["b"] * (1e6 if number == 1 else 1)
        return {"b": as_float16(values)}

    assert [chunk(i)["b"].dtype for i in range(2)] == [torch.float16, torch.float32]
    buffer = RollingBuffer(chunk, 2, 64)
    for number, batches in buffer.rounds():
        seen = torch.cat([batch["b"] for batch in batches])
        assert seen.dtype == torch.float32 and seen.isfinite().all()
        if number == 2:
            break
    assert seen.abs().max() > 1e6


def test_what_is_no_checkpoint_is_said(tmp_path):
    train_together(RollingBuffer(make_chunk(), 2, 64), RUNS, 2, tmp_path)
    (tmp_path / "round-notes9").mkdir()
    key, one = tmp_path / "round-2" / "key.json", tmp_path / "round-2" / "relu.safetensors"
    whole = key.read_text(encoding="utf-8")
    for text in (whole[: len(whole) // 2], "[1, 2]", "null", ""):
        key.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match="round-2' is no checkpoint of this trainer.*delete it to start anew"):
            train_together(RollingBuffer(make_chunk(), 2, 64), RUNS, 2, tmp_path)
    key.write_text(whole, encoding="utf-8")
    one.write_bytes(one.read_bytes()[:-100])
    with pytest.raises(ValueError, match="relu.safetensors' is no checkpoint of this trainer"):
        train_together(RollingBuffer(make_chunk(), 2, 64), RUNS, 2, tmp_path)
    one.unlink()
    with pytest.raises(ValueError, match="relu.safetensors' is no checkpoint of this trainer"):
        train_together(RollingBuffer(make_chunk(), 2, 64), RUNS, 2, tmp_path)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"seed": 1}, "seed 0 there and 1 here"),
        ({"passes": 3}, "passes 2 there and 3 here"),
        ({"runs": {"topk": RUNS["topk"]}}, "share of relu"),
        (
            {"runs": RUNS | {"rare": Run("a", RUNS["rare"].sae, SMALL, every=5)}},
            "share of rare .*4.* there and .*5.* here",
        ),
    ],
)
def test_a_checkpoint_of_another_buffer_or_of_other_runs_is_refused(tmp_path, change, message):
    train_together(RollingBuffer(make_chunk(), 2, 64), RUNS, 2, tmp_path)
    settings = {"passes": 2, "batch": 64} | {name: value for name, value in change.items() if name != "runs"}
    with pytest.raises(ValueError, match=message):
        train_together(RollingBuffer(make_chunk(), **settings), change.get("runs", RUNS), 3, tmp_path)
    assert {path.name for path in (tmp_path / "round-2").iterdir()} == {
        "key.json",
        *(f"{name}.safetensors" for name in RUNS),
    }
