"""Stored activations: each token once, whoever wrote them; whole or not there; read by SAELens, and SAELens' by us."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from stopping_moments import stop

from prism import cli, files
from prism.data import token_rows, training_documents
from prism.models import get_spec, shards
from prism.sae import SaeConfig
from prism.training import Monitor, TrainConfig, train
from prism.training.stored import ShardSource, activations_of, open_shard, tokens_of

HOOK, OTHER = "blocks.2.hook_resid_pre", "blocks.1.mlp.hook_post"
CONTEXT, TOKENS = 16, 400  # 25 rows; with shards of 4 rows, 7 files of which the last has one row
OPTIONS = ["harvest", "--model", "mini", "--hook", HOOK, "--corpus", "mini", "--context", "16", "--tokens", "400"]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch) -> None:
    monkeypatch.setattr(shards, "SHARD", 4 * CONTEXT * (2 * 192 + 4))


def planned(folder: Path, hooks=(HOOK,), tokens: int = TOKENS, **how) -> shards.Harvest:
    return shards.plan(get_spec("mini"), hooks, "mini", tokens, folder, CONTEXT, **how)


def stored(folder: Path, *args, **how) -> Path:
    shards.store(planned(folder, *args, **how))
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """One that nobody changes."""
    patch = pytest.MonkeyPatch()
    with patch.context() as change:
        change.setattr(shards, "SHARD", 4 * CONTEXT * (2 * 192 + 4))
        return stored(tmp_path_factory.mktemp("stored") / "whole")


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    for name, raw in content(folder).items():
        (tmp_path / "copy").mkdir(exist_ok=True)
        (tmp_path / "copy" / name).write_bytes(raw)
    return tmp_path / "copy"


class OneLetterOneToken:
    """A tokenizer for work by hand: letters' places in the alphabet, BOS is 0."""

    bos_token_id = 0

    def __call__(self, text: str, **settings) -> dict:
        return {"input_ids": [ord(letter) - 96 for letter in text]}


class TestRows:
    def test_documents_lie_end_to_end_with_bos_before_each(self):
        frame = pd.DataFrame({"text": ["a" * 16, "tooshort", "b" * 22]})
        rows = token_rows(frame, OneLetterOneToken(), 10, 31)
        assert rows.tolist() == [[0] + [1] * 9, [1] * 7 + [0, 2, 2], [2] * 10, [2] * 10]

    def test_a_corpus_that_is_too_short_says_how_much_it_has(self):
        frame = pd.DataFrame({"text": ["a" * 16, "b" * 22]})
        with pytest.raises(ValueError, match="holds 40 tokens, a BOS for each document included, fewer than the 50"):
            token_rows(frame, OneLetterOneToken(), 10, 41)


class TestLayout:
    def test_files_by_hand(self, folder):
        names = [f"data-{k:05d}-of-00007.arrow" for k in range(7)]
        others = ["dataset_info.json", "harvest.json", "manifest.json", "state.json"]
        assert list(content(folder)) == names + others
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        assert [shard["rows"] for shard in manifest["shards"]] == [4] * 6 + [1]
        assert [shard["sha256"] for shard in manifest["shards"]] == [files.sha256(folder / name) for name in names]
        wanted = {"model": "mini", "hooks": {HOOK: 192}, "context": 16, "dtype": "float16", "tokens": 400, "rows": 25}
        assert {name: manifest[name] for name in wanted} == wanted and manifest["bos"]["token"] == 0
        assert set(manifest["versions"]) == {"prism", "torch", "transformers", "datasets"}

    def test_every_token_once_with_its_activation(self, mini, tmp_path):
        found = datasets.load_from_disk(str(stored(tmp_path / "x", [HOOK, OTHER]))).with_format("torch")
        rows = token_rows(training_documents("mini"), mini.tokenizer, CONTEXT, TOKENS)
        assert found.column_names == [HOOK, OTHER, "token_ids"] and found["token_ids"][:].tolist() == rows.tolist()
        assert found.features == {
            HOOK: datasets.Array2D((CONTEXT, 192), "float16"),
            OTHER: datasets.Array2D((CONTEXT, 768), "float16"),
            "token_ids": datasets.Sequence(datasets.Value("int32"), length=CONTEXT),
        }
        _, cache = mini.run_with_cache(torch.from_numpy(rows).long())
        for hook in (HOOK, OTHER):
            torch.testing.assert_close(found[hook][:], cache[hook], rtol=1e-3, atol=1e-4)

    def test_float32_is_exact(self, mini, tmp_path):
        table = open_shard(stored(tmp_path / "x", tokens=16, dtype="float32") / "data-00000-of-00001.arrow")
        assert activations_of(table, HOOK, 0).dtype == np.float32
        tokens = torch.from_numpy(tokens_of(table, 0).astype(np.int64))[None]
        wanted = shards.activations_at(mini, tokens, [HOOK])[HOOK][0]
        assert np.array_equal(activations_of(table, HOOK, 0), wanted.numpy())

    def test_a_file_of_the_readers_own(self, mini, tmp_path):
        frame = training_documents("mini").head(20)[["text"]]
        frame.to_parquet(tmp_path / "own.parquet")
        frame.to_json(tmp_path / "own.jsonl", orient="records", lines=True)
        for kind in ("parquet", "jsonl"):
            plan = shards.plan(get_spec("mini"), [HOOK], str(tmp_path / f"own.{kind}"), 64, tmp_path, CONTEXT)
            assert plan.rows.tolist() == token_rows(frame, mini.tokenizer, CONTEXT, 64).tolist()


class TestProcesses:
    @pytest.mark.parametrize("world", [2, 3, 9])
    def test_any_number_of_processes_gives_the_same_bytes(self, world, folder, tmp_path):
        plan = planned(tmp_path / "x")
        shards.begin(plan)
        assert sum(shards.write_shards(plan, rank, world) for rank in reversed(range(world))) == 7
        with pytest.raises(
            ValueError, match="no state.json; the harvest did not end: the same `prism harvest` goes on"
        ):
            ShardSource(tmp_path / "x", HOOK, 8)
        shards.finish(plan)
        assert content(tmp_path / "x") == content(folder)

    @pytest.mark.slow
    def test_accelerate_launch(self, tmp_path):
        """Two real processes: the second makes the second file."""
        command = [*OPTIONS, "--tokens", "50000", "--hook", "blocks.1.mlp.hook_post", "--context", "256"]
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
        environment = {**os.environ, "PRISM_DEVICE": "cpu", "OMP_NUM_THREADS": "1"}
        run = subprocess.run(
            [*launch, "-m", "prism", *command, "--out", str(tmp_path / "two")],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert run.returncode == 0 and "by 2 processes" in run.stdout, run.stderr
        subprocess.run([sys.executable, "-m", "prism", *command, "--out", str(tmp_path / "one")], check=True)
        assert content(tmp_path / "one") == content(tmp_path / "two") and len(content(tmp_path / "one")) == 7


class TestEndedAnywhere:
    @pytest.mark.slow
    @pytest.mark.parametrize("moment", [0.05, 0.15, 0.3])
    def test_killed_at_a_random_moment(self, moment, folder, tmp_path):
        """Seconds after the settings are there."""
        place, script = tmp_path / "x", f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        script += "import test_shards as t\nt.shards.SHARD = 4 * t.CONTEXT * (2 * 192 + 4)\n"
        script += f"t.shards.store(t.planned(t.Path({str(place)!r})))"

        def come() -> bool:
            if there := (place / "harvest.json").exists():
                time.sleep(moment * np.random.default_rng().random())
            return there

        stop([sys.executable, "-c", script], come, how=signal.SIGKILL)
        stored(place)
        assert content(place) == content(folder)

    def test_killed_before_any_of_its_acts(self, folder, tmp_path, monkeypatch):
        """An end that nothing can be done about, before each file that is written or renamed."""
        real, acts = os.replace, []

        def ending(at: int):
            def replace_(*args):
                acts.append(args)
                if len(acts) > at:
                    raise SystemExit
                return real(*args)

            return replace_

        monkeypatch.setattr(files, "at_end", lambda function: contextlib.nullcontext())
        for at in range(1 + 2 * 7 + 3):
            acts.clear()
            place = tmp_path / str(at)
            monkeypatch.setattr(os, "replace", ending(at))
            with pytest.raises(SystemExit):
                stored(place)
            assert list(place.glob(".*.part")) and not (place / "state.json").exists()
            with pytest.raises(ValueError):
                ShardSource(place, HOOK, 8)
            monkeypatch.setattr(os, "replace", real)
            whole = {name: path.stat().st_mtime_ns for name, path in _files(place) if (place / _note(name)).exists()}
            stored(place)
            assert content(place) == content(folder)
            assert all((place / name).stat().st_mtime_ns == when for name, when in whole.items()), "whole, so kept"

    def test_a_whole_folder_is_left_as_it_is(self, copy, folder):
        before = {path: path.stat().st_mtime_ns for path in copy.iterdir()}
        assert shards.store(planned(copy)) == 0
        assert {path: path.stat().st_mtime_ns for path in copy.iterdir()} == before

    @pytest.mark.parametrize("harm", ["flipped", "torn", "empty", "gone"])
    def test_a_damaged_file_is_named_and_made_again(self, harm, copy, folder, capsys):
        path = copy / "data-00003-of-00007.arrow"
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 1
        path.write_bytes({"flipped": raw, "torn": raw[:-600], "empty": b"", "gone": b""}[harm])
        if harm == "gone":
            path.unlink()
        with pytest.raises(ValueError, match="data-00003-of-00007.arrow' is damaged"):
            _drained(ShardSource(copy, HOOK, 8))
        assert shards.store(planned(copy)) == 1
        assert ("data-00003-of-00007.arrow is damaged, and made again" in capsys.readouterr().out) == (harm != "gone")
        assert content(copy) == content(folder)

    @pytest.mark.parametrize("name", ["state.json", "manifest.json", "dataset_info.json"])
    @pytest.mark.parametrize("harm", ["{", "[]", None])
    def test_what_tells_of_the_files_is_mended(self, name, harm, copy, folder):
        (copy / name).unlink() if harm is None else (copy / name).write_text(harm, encoding="utf-8")
        if name != "dataset_info.json":
            with pytest.raises(ValueError, match=f"{name}"):
                ShardSource(copy, HOOK, 8)
        shards.store(planned(copy))
        assert content(copy) == content(folder)

    def test_a_full_disk_is_one_line(self, tmp_path, monkeypatch, capsys):
        def full(*args):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(Path, "write_bytes", full)
        assert cli.main([*OPTIONS, "--out", str(tmp_path / "x")]) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("prism: could not write") and "No space left on device" in error

    def test_an_interrupt_says_how_to_go_on(self, tmp_path, monkeypatch, capsys):
        def interrupt(*args):
            raise KeyboardInterrupt

        monkeypatch.setattr(shards, "write_shards", interrupt)
        assert cli.main([*OPTIONS, "--out", str(tmp_path / "x")]) == 130
        assert "stopped; the same command goes on: files that are whole are kept" in capsys.readouterr().err


def _files(place: Path):
    return [(path.name, path) for path in place.glob("*.arrow")]


def _note(name: str) -> str:
    return name.replace(".arrow", ".sha256")


class TestRefused:
    @pytest.mark.parametrize(
        ("changed", "says"),
        [
            (["--hook", "blocks.2.hook_resid_prae"], "nearest is 'blocks.2.hook_resid_pre'"),
            (["--hook", "hook_embed"], "not inside a block"),
            (["--hook", "blocks.1.attn.hook_pattern"], "needed is [rows, context, d_in]"),
            (["--model", "minni"], "did you mean 'mini'"),
            (["--corpus", "minni"], "choose from mini"),
            (["--context", "4096"], "takes rows of 2 to 256"),
            (["--tokens", "1e9"], "the corpus holds"),
        ],
    )
    def test_in_one_line_and_nothing_is_written(self, changed, says, tmp_path, capsys):
        assert cli.main([*OPTIONS, "--out", str(tmp_path / "x"), *changed]) == 2
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1 and not (tmp_path / "x").exists()

    @pytest.mark.parametrize(
        ("changed", "says"),
        [
            (["--tokens", "500"], "tokens 400 there and 512 here"),
            (["--dtype", "float32"], "dtype float16 there and float32 here"),
            (["--hook", OTHER], "hooks {'blocks.2.hook_resid_pre': 192} there"),
        ],
    )
    def test_a_folder_of_other_settings(self, changed, says, copy, folder, capsys):
        assert cli.main([*OPTIONS, "--out", str(copy), *changed]) == 2
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1 and content(copy) == content(folder)

    @pytest.mark.parametrize("number", ["0", "-1", "nan", "inf", "many"])
    def test_no_number_of_tokens(self, number, capsys):
        with pytest.raises(SystemExit):
            cli.main([*OPTIONS, "--out", "x", "--tokens", number])
        assert f"'{number}' is no number of tokens; give 1 or more" in capsys.readouterr().err

    @pytest.mark.parametrize("name", ["none.parquet", "none.jsonl"])
    def test_a_corpus_that_is_not_there(self, name, tmp_path, capsys):
        assert cli.main([*OPTIONS, "--out", str(tmp_path / "x"), "--corpus", str(tmp_path / name)]) == 1
        error = capsys.readouterr().err
        assert name in error and error.count("\n") == 1

    def test_settings_alone_bind_nobody(self, tmp_path):
        shards.begin(planned(tmp_path))
        assert stored(tmp_path, dtype="float32")

    def test_a_folder_of_something_else_is_not_touched(self, tmp_path, capsys):
        for name in (".other.part", "letter.txt"):
            (tmp_path / name).touch()
        assert cli.main([*OPTIONS, "--out", str(tmp_path)]) == 2
        assert "holds something else, such as 'letter.txt'" in capsys.readouterr().err
        assert sorted(content(tmp_path)) == [".other.part", "letter.txt"]

    def test_activations_that_do_not_fit(self, tmp_path, monkeypatch):
        real, plan = shards.activations_at, planned(tmp_path / "x")
        for factor, says in ((1e6, "do not fit float16; store them with --dtype float32"), (np.nan, "NaN or infinite")):
            monkeypatch.setattr(shards, "activations_at", lambda *a, f=factor: {k: x * f for k, x in real(*a).items()})
            with pytest.raises(ValueError, match=says):
                shards.store(plan)


def _drained(source: ShardSource) -> torch.Tensor:
    """All of an epoch's activations, unbuffered."""
    rows, n = [], 0
    total = sum(open_shard(source.folder / name).num_rows for name in source.names)
    for part in source._endless():
        rows.append(part)
        n += 1
        if n == total:
            return torch.cat(rows)


def _sorted(x: torch.Tensor) -> torch.Tensor:
    return x[np.lexsort(x.numpy().T[:8])]


class TestReader:
    def test_an_epoch_has_each_activation_but_bos_once(self, folder):
        found = datasets.load_from_disk(str(folder)).with_format("torch")
        x, tokens = found[HOOK][:].flatten(0, 1).float(), found["token_ids"][:].flatten()
        assert (tokens == 0).sum() > 1
        assert torch.equal(_sorted(_drained(ShardSource(folder, HOOK, 8))), _sorted(x[tokens != 0]))
        norms = x[tokens != 0].norm(dim=1)
        short = _drained(ShardSource(folder, HOOK, 8, longest=float(norms.median())))
        assert len(short) == (norms <= norms.median()).sum() and short.norm(dim=1).max() <= norms.median()

    def test_the_seed_decides_the_order_and_a_run_goes_on(self, folder):
        def batches(seed: int, first: int = 0, n: int = 60) -> list[torch.Tensor]:
            source = ShardSource(folder, HOOK, 8, seed, size=64)
            source.sample()
            stream = source.batches(first)
            return [next(stream) for _ in range(n - first)]

        one = batches(1)
        assert all(batch.shape == (8, 192) and batch.dtype == torch.float32 for batch in one)
        assert torch.equal(torch.cat(one), torch.cat(batches(1))) and not torch.equal(one[0], batches(2)[0])
        assert torch.equal(torch.cat(one[40:]), torch.cat(batches(1, first=40)))

    def test_the_buffer_is_bounded(self, folder, monkeypatch):
        """In activations held, and in files open, however many there are."""
        held, cat = [], torch.cat
        monkeypatch.setattr(torch, "cat", lambda parts: held.append(sum(map(len, parts))) or cat(parts))
        monkeypatch.setattr("prism.training.stored.AT_ONCE", 2)
        stream = ShardSource(folder, HOOK, 8, size=64).batches()
        for _ in range(200):
            next(stream)
        assert max(held) < 64 + CONTEXT

    def test_train(self, folder):
        settings = TrainConfig(tokens=4_000, batch=64, dead_after=1_000)
        runs = []
        for _ in range(2):
            monitor = Monitor()
            sae = train(ShardSource(folder, HOOK, 64), SaeConfig(192, 64, k=8), settings, monitor)
            runs.append((sae, [row["loss"] for row in monitor.rows]))
        assert np.isfinite(runs[0][1]).all() and runs[0][1] == runs[1][1] and runs[0][1][-1] < runs[0][1][0]
        assert torch.equal(runs[0][0].W_dec, runs[1][0].W_dec)

    def test_what_is_wrong_with_a_folder(self, folder, copy, tmp_path):
        with pytest.raises(ValueError, match=f"no activations of '{OTHER}'; the nearest is '{HOOK}'"):
            ShardSource(folder, OTHER, 8)
        with pytest.raises(ValueError, match="holds no stored activations: there is no state.json$"):
            ShardSource(tmp_path / "none", HOOK, 8)
        with pytest.raises(ValueError, match="is left: each activation is BOS's or too long"):
            next(ShardSource(folder, HOOK, 8, longest=0.0).batches())
        (copy / "state.json").write_text('{"_data_files": []}', encoding="utf-8")
        with pytest.raises(ValueError, match="holds no activations: its state.json names no file"):
            ShardSource(copy, HOOK, 8)
        datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(str(tmp_path / "other"))
        with pytest.raises(ValueError, match="something else; its columns are"):
            ShardSource(tmp_path / "other", HOOK, 8)


class TestSaelens:
    def test_its_store_trains_from_ours(self, mini, folder):
        from sae_lens import StandardTrainingSAE, StandardTrainingSAEConfig
        from sae_lens.config import LoggingConfig, SAETrainerConfig
        from sae_lens.training.activations_store import ActivationsStore
        from sae_lens.training.sae_trainer import SAETrainer

        store = ActivationsStore(
            mini, None, False, HOOK, None, CONTEXT, 192, n_batches_in_buffer=4, total_training_tokens=96,
            store_batch_size_prompts=2, train_batch_size_tokens=32, prepend_bos=True, normalize_activations="none",
            device=torch.device("cpu"), dtype="float32", cached_activations_path=str(folder),
        )  # fmt: skip
        settings = SAETrainerConfig(
            n_checkpoints=0, checkpoint_path=None, save_final_checkpoint=False, total_training_samples=96, device="cpu",
            autocast=False, lr=1e-3, lr_end=1e-4, lr_scheduler_name="constant", lr_warm_up_steps=0, adam_beta1=0.9,
            adam_beta2=0.999, lr_decay_steps=0, n_restart_cycles=1, train_batch_size_samples=32,
            dead_feature_window=100, feature_sampling_window=100, logger=LoggingConfig(log_to_wandb=False),
        )  # fmt: skip
        sae = StandardTrainingSAE(StandardTrainingSAEConfig(d_in=192, d_sae=64, normalize_activations="none"))
        before = sae.W_dec.detach().clone()
        SAETrainer(settings, sae, iter(store)).fit()
        assert sae.W_dec.isfinite().all() and not torch.equal(sae.W_dec, before)
        first, tokens = replace_buffer(store)
        assert tokens[0] == 0 and first.shape == (2 * CONTEXT, 192)

    def test_what_its_runner_wrote_is_read(self, mini, tmp_path, monkeypatch):
        from sae_lens import cache_activations_runner as runner
        from sae_lens.config import CacheActivationsRunnerConfig

        monkeypatch.setattr(runner, "load_model", lambda **_: mini)
        texts = datasets.Dataset.from_dict({"text": list(training_documents("mini")["text"][:40])})
        config = CacheActivationsRunnerConfig(
            "none", "mini", 2, HOOK, 192, 320, CONTEXT, new_cached_activations_path=str(tmp_path / "theirs"),
            shuffle=False, streaming=False, device="cpu", buffer_size_gb=2 * 4 * CONTEXT * 192 * 4 / 1e9,
        )  # fmt: skip
        found = runner.CacheActivationsRunner(config, override_dataset=texts).run().with_format("torch")
        source = ShardSource(tmp_path / "theirs", HOOK, 8)
        assert source.bos == 0 and len(source.names) > 1
        keep = found["token_ids"][:].flatten() != 0
        wanted = found[HOOK][:].flatten(0, 1)[keep]
        assert torch.equal(_sorted(_drained(source)), _sorted(wanted))
        assert train(source, SaeConfig(192, 64, k=8), TrainConfig(tokens=320, batch=8)).W_dec.isfinite().all()


def replace_buffer(store):
    store.current_row_idx = 0
    return store.get_raw_llm_batch()
