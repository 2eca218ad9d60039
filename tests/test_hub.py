"""The hub's files: from a cache of real layout without a request, and from a local server that misbehaves."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import hub_fixture
import pytest
import torch
from hub_fixture import MLP_OUT, MODEL, RES_JB, Hub, blob_hash, commit_of, serve, use_hub, write_cache
from huggingface_hub import scan_cache_dir
from hypothesis import given
from hypothesis import strategies as st
from sae_lens import SAE
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, AutoTokenizer

from prism import hub
from prism.hub import HubError, HubFile

BIG = "weights.safetensors"
REPO = {"README.md": b"words\n", "empty.json": b"", "config.json": b"{}", BIG: bytes(range(256)) * 4096}
FILES = [HubFile("org/thing", name) for name in REPO]
RELEASES = [
    *(("gpt2-small-res-jb", f"blocks.{layer}.hook_resid_pre") for layer in (6, 8, 10)),
    ("gpt2-small-mlp-out-v5-32k", "blocks.6.hook_mlp_out"),
    ("gpt2-small-res-jb-feature-splitting", "blocks.8.hook_resid_pre_768"),
]


@pytest.fixture(scope="module")
def repos() -> hub_fixture.Repos:
    return hub_fixture.make_repos()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds waited between tries, in place of waiting."""
    waited: list[float] = []
    for module in ("file_download", "utils._http"):
        monkeypatch.setattr(f"huggingface_hub.{module}.time", SimpleNamespace(sleep=waited.append))
    return waited


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> Iterator[Hub]:
    """A hub with one small repository, and an empty cache in `tmp_path`."""
    with serve({"org/thing": dict(REPO)}) as running:
        use_hub(monkeypatch, tmp_path, running.endpoint)
        yield running


def _left(cache: Path) -> set[str]:
    """Names of what lies in the cache's blobs and snapshots."""
    return {path.name for part in ("blobs", "snapshots/*") for path in cache.glob(f"models--*/{part}/**/*")}


class Network:
    """Counts every attempt to reach a network, and lets none succeed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple] = []
        for owner, name in ((socket.socket, "connect"), (socket.socket, "connect_ex"), (socket, "getaddrinfo")):
            monkeypatch.setattr(owner, name, self._refuse)

    def _refuse(self, *args, **kwargs):
        self.calls.append(args)
        raise OSError("no network in this test")


class TestFromTheCache:
    @pytest.fixture
    def cache(self, repos, tmp_path, monkeypatch) -> Path:
        write_cache(tmp_path, repos)
        use_hub(monkeypatch, tmp_path)
        return tmp_path

    def test_model_and_saes_load_without_a_request(self, cache, monkeypatch):
        network = Network(monkeypatch)
        with hub.cached_only():
            tokenizer = AutoTokenizer.from_pretrained(MODEL)
            model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32, attn_implementation="eager")
            bridge = TransformerBridge.boot_transformers(MODEL, hf_model=model, tokenizer=tokenizer, device="cpu")
            saes = [SAE.from_pretrained(*release) for release in RELEASES]
        assert network.calls == []
        tokens = torch.tensor([tokenizer("A text to read.")["input_ids"]])
        assert bridge(tokens).isfinite().all() and bridge.cfg.n_layers == 12
        assert [sae.cfg.architecture() for sae in saes] == ["standard"] * 3 + ["topk", "standard"]
        assert saes[0].cfg.metadata.model_from_pretrained_kwargs == {"center_writing_weights": True}
        assert saes[0].cfg.metadata.hook_name == RELEASES[0][1]
        assert saes[3].cfg.normalize_activations == "layer_norm" and saes[3].cfg.metadata.prepend_bos is False

    def test_without_it_they_do_ask(self, repos, cache, monkeypatch):
        with serve(repos) as running:
            use_hub(monkeypatch, cache, running.endpoint)
            with hub.cached_only():
                SAE.from_pretrained(*RELEASES[0])
                AutoTokenizer.from_pretrained(MODEL)
            assert running.requests == []
            SAE.from_pretrained(*RELEASES[0])
            assert running.requests, "else the test above proves nothing"

    @pytest.mark.parametrize("release", RELEASES)
    def test_random_saes_are_plausibly_sparse(self, repos, cache, release):
        with hub.cached_only():
            model = AutoModelForCausalLM.from_pretrained(MODEL)
            sae, _, sparsity = SAE.from_pretrained_with_cfg_and_sparsity(*release)
        residual, mlp_out = hub_fixture._activations(model, torch.arange(400).reshape(10, 40), 0)
        layer = int(sae.cfg.metadata.hook_name.split(".")[1])
        x = mlp_out[layer] if "mlp" in release[0] else residual[layer]
        assert 10 < (sae.encode(x) > 0).sum(-1).float().mean() < 60
        assert (sparsity is None) == ("mlp" in release[0])

    def test_switch_goes_back_after_an_error(self, cache):
        with pytest.raises(KeyError), hub.cached_only():
            assert hub.constants.HF_HUB_OFFLINE is True
            raise KeyError
        assert hub.constants.HF_HUB_OFFLINE is False

    def test_files_are_found_and_verified_without_a_request(self, cache, monkeypatch):
        network = Network(monkeypatch)
        files = hub.model_files(MODEL) + [file for release in RELEASES for file in hub.sae_files(*release)]
        fetched = hub.fetch(files)
        assert network.calls == [] and {entry.state for entry in fetched} == {"cached"}
        assert all(entry.sha for entry in fetched)
        absent = {*files} - {entry.file for entry in fetched}
        assert [(file.repo_id, file.optional) for file in absent] == [(MLP_OUT, True)]

    def test_model_is_complete_or_not_cached(self, repos, tmp_path, monkeypatch):
        wanted = [file.filename for file in self._cached(repos[MODEL], tmp_path / "all", monkeypatch)]
        assert set(repos[MODEL]) - set(wanted) == {"README.md", "pytorch_model.bin"} and wanted[-1].endswith("tensors")
        for missing in ("config.json", "model.safetensors", "tokenizer.json merges.txt"):
            files = {name: content for name, content in repos[MODEL].items() if name not in missing.split()}
            assert self._cached(files, tmp_path / missing, monkeypatch) == []

    @pytest.mark.parametrize("missing", ["", "model-00002-of-00002.safetensors", "model.safetensors.index.json"])
    def test_sharded_model(self, tmp_path, monkeypatch, missing):
        names = ["config.json", "tokenizer.json", "model.safetensors.index.json", "chat_template.jinja"]
        names += [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
        files = self._cached({name: b"x" for name in names if name != missing}, tmp_path, monkeypatch)
        assert len(files) == (0 if missing else 5)

    @staticmethod
    def _cached(files, folder, monkeypatch):
        write_cache(folder, {MODEL: files})
        use_hub(monkeypatch, folder)
        return hub._cached_model_files(MODEL)


class TestSaeFiles:
    def test_registry_decides(self):
        files = hub.sae_files("gpt2-small-mlp-out-v5-32k", "blocks.6.hook_mlp_out")
        assert [file.filename for file in files] == [
            *("v5_32k_layer_6/cfg.json", "v5_32k_layer_6/sae_weights.safetensors"),
            "v5_32k_layer_6/sparsity.safetensors",
        ]
        assert {file.repo_id for file in files} == {MLP_OUT} and [file.optional for file in files] == [0, 0, 1]

    def test_other_formats_are_left_to_saelens(self):
        assert hub.sae_files("gemma-scope-2b-pt-res-canonical", "layer_20/width_16k/canonical") == []

    def test_unknown_id(self):
        with pytest.raises(ValueError, match="blocks.99"):
            hub.sae_files("gpt2-small-res-jb", "blocks.99.hook_resid_pre")


class TestFetch:
    def test_everything_once_then_nothing(self, repos, tmp_path, monkeypatch, waits):
        (tmp_path / "ours").mkdir()
        with serve(repos) as running:
            use_hub(monkeypatch, tmp_path / "ours", running.endpoint)
            files = hub.model_files(MODEL) + [file for release in RELEASES for file in hub.sae_files(*release)]
            fetched = hub.fetch(files, progress=False)
            assert {entry.state for entry in fetched} == {"downloaded"} and len(fetched) == len(files) - 1
            assert not {"pytorch_model.bin", "README.md"} & {*running.sent} and waits == []
            assert all(entry.size == len(repos[entry.file.repo_id][entry.file.filename]) for entry in fetched)

            running.requests.clear()
            again = hub.fetch(hub.model_files(MODEL) + files, progress=False)
            assert running.requests == [] and {entry.state for entry in again} == {"cached"}
            assert [entry.sha for entry in again] == [entry.sha for entry in fetched]
        assert not scan_cache_dir(tmp_path / "ours").warnings
        with hub.cached_only():
            AutoTokenizer.from_pretrained(MODEL)
            AutoModelForCausalLM.from_pretrained(MODEL)
            for release in RELEASES:
                SAE.from_pretrained(*release)

    def test_all_files_come_from_the_cached_commit(self, server):
        hub.fetch(FILES[:1], progress=False)
        server.requests.clear()
        hub.fetch(FILES, progress=False)
        revisions = {path.split("/")[4] for _, path in server.requests if "/resolve/" in path}
        assert revisions == {commit_of("org/thing", REPO)}

    def test_token_stays_with_the_hub(self, server, monkeypatch):
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        hub.fetch(FILES, progress=False)
        assert server.trusted == {"org", "api"} and server.sent[BIG]

    def test_two_at_once_download_once(self, server):
        threads = [threading.Thread(target=hub.fetch, args=(FILES, False)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(server.sent[name] == len(content) for name, content in REPO.items())
        assert all(map(hub._verify_cached, FILES))

    def test_progress_goes_to_stderr(self, server, capsys):
        hub.fetch(FILES)
        assert BIG in capsys.readouterr().err


class TestBrokenConnection:
    def test_goes_on_within_one_call(self, server, waits, monkeypatch):
        monkeypatch.setattr(hub.constants, "DOWNLOAD_CHUNK_SIZE", 1000)
        server.cut[BIG] = [500_500, 100_000]
        hub.fetch(FILES, progress=False)
        assert len(waits) == 2 and server.sent[BIG] < len(REPO[BIG]) + 2000
        assert hub._verify_cached(FILES[3]) == blob_hash(BIG, REPO[BIG])

    def test_later_call_has_the_complete_files(self, server, tmp_path):
        server.cut[BIG] = [0] * 99
        with pytest.raises(HubError, match=f"file {BIG}: the connection broke .*complete are kept") as caught:
            hub.fetch(FILES, progress=False)
        assert "\n" not in str(caught.value) and len(server.cut[BIG]) > 90
        assert not hub.cached_path(FILES[3]) and not list(tmp_path.rglob("*.incomplete"))
        server.cut.clear()
        assert [entry.state for entry in hub.fetch(FILES, progress=False)] == ["cached"] * 3 + ["downloaded"]
        assert hub._verify_cached(FILES[3])

    def test_interrupt_leaves_nothing_half_written(self, server, monkeypatch, tmp_path):
        def interrupt(bar, n):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(hub.tqdm, "update", interrupt)
            hub.fetch(FILES[3:], progress=False)
        assert _left(tmp_path) == set()
        assert hub.fetch(FILES[3:], progress=False)[0].state == "downloaded"


class TestBadAnswers:
    @pytest.mark.parametrize("name", ["config.json", BIG])
    def test_wrong_content_leaves_nothing(self, server, tmp_path, name):
        file = HubFile("org/thing", name)
        server.wrong[name] = REPO[name][::-1]
        with pytest.raises(HubError, match=f"file {name}: its content does not have the hash") as caught:
            hub.fetch([file], progress=False)
        assert "\n" not in str(caught.value) and _left(tmp_path) == set() and not hub.cached_path(file)
        del server.wrong[name]
        assert hub.fetch([file], progress=False)[0].state == "downloaded"

    def test_no_such_file(self, server, tmp_path):
        with pytest.raises(HubError, match=r"org/thing, file none.json: .*HTTP 404: no such file") as caught:
            hub.fetch([HubFile("org/thing", "none.json")], progress=False)
        assert "\n" not in str(caught.value) and _left(tmp_path) == set()

    def test_no_such_repository(self, server):
        for wanted in (
            lambda: hub.fetch([HubFile("org/none", "a")], progress=False),
            lambda: hub.model_files("org/no"),
        ):
            with pytest.raises(HubError, match=r"org/no.*HTTP 404.*check the name"):
                wanted()

    def test_private_repository(self, server):
        server.answers["config.json"] = [(401, {})] * 2
        with pytest.raises(HubError, match="HTTP 401.*hf auth login"):
            hub.fetch([HubFile("org/thing", "config.json")], progress=False)

    def test_model_without_safetensors(self, server):
        with pytest.raises(HubError, match="org/thing: it has no weights in the safetensors format"):
            hub.model_files("org/thing")

    def test_optional_file_that_does_not_exist(self, server):
        files = [FILES[0], HubFile("org/thing", "none.json", optional=True)]
        assert [entry.file for entry in hub.fetch(files, progress=False)] == files[:1]
        server.requests.clear()
        assert [entry.file for entry in hub.fetch(files, progress=False)] == files[:1] and server.requests == []
        with pytest.raises(HubError, match="HTTP 404"):
            hub.fetch([dataclasses.replace(files[1], optional=False)], progress=False)

    @pytest.mark.parametrize("status", [408, 429, 500, 503])
    def test_tries_again(self, server, waits, status):
        server.answers["config.json"] = [(status, {})] * 3  # the first is for the knock, which takes any answer
        hub.fetch([HubFile("org/thing", "config.json")], progress=False)
        assert waits and server.answers["config.json"] == []

    def test_gives_up(self, server, waits):
        server.answers["config.json"] = [(429, {"Retry-After": "5"})] * 99
        with pytest.raises(HubError, match="file config.json: the server answered HTTP 429; run it again"):
            hub.fetch([HubFile("org/thing", "config.json")], progress=False)
        assert min(waits) >= 5 and len(waits) < 9

    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"ETag": '"../../../evil"', "X-Repo-Commit": "0" * 40},
            {"ETag": f'"{"0" * 40}"', "X-Repo-Commit": "../x"},
        ],
    )
    def test_something_else_than_a_hub(self, server, tmp_path, headers):
        server.answers["config.json"] = [(200, headers)] * 2
        with pytest.raises(HubError, match="does not answer like a hub"):
            hub.fetch([HubFile("org/thing", "config.json")], progress=False)
        assert list(tmp_path.rglob("*")) == []

    def test_cache_that_cannot_be_written(self, server, tmp_path, monkeypatch):
        (tmp_path / "file").touch()
        monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "file"))
        with pytest.raises(HubError, match=r"Not a directory; mend that in HF_HUB_CACHE") as caught:
            hub.fetch(FILES, progress=False)
        assert "\n" not in str(caught.value)


class TestNoNetwork:
    def test_refused_comes_fast_and_in_one_line(self, tmp_path, monkeypatch):
        use_hub(monkeypatch, tmp_path)
        start = time.monotonic()
        for wanted in (lambda: hub.model_files(MODEL), lambda: hub.fetch(FILES)):
            with pytest.raises(
                HubError, match=r"127.0.0.1:9 cannot be reached \(.*refused\); check the network"
            ) as caught:
                wanted()
            assert "\n" not in str(caught.value)
        assert time.monotonic() - start < 10

    def test_silence_ends_after_patience(self, tmp_path, monkeypatch):
        with socket.create_server(("127.0.0.1", 0)) as silent:
            use_hub(monkeypatch, tmp_path, f"http://127.0.0.1:{silent.getsockname()[1]}")
            start = time.monotonic()
            with pytest.raises(HubError, match="cannot be reached"):
                hub.fetch(FILES, patience=0.2)
            assert time.monotonic() - start < 10

    def test_name_lookup_that_hangs_ends_after_patience(self, tmp_path, monkeypatch):
        use_hub(monkeypatch, tmp_path, "http://nowhere.invalid")
        done = threading.Event()
        monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: done.wait(30))
        start = time.monotonic()
        with pytest.raises(HubError, match="no answer"):
            hub.fetch(FILES, patience=0.2)
        assert time.monotonic() - start < 10
        done.set()

    def test_offline_switch_is_named(self, tmp_path, monkeypatch):
        use_hub(monkeypatch, tmp_path)
        with hub.cached_only(), pytest.raises(HubError, match="HF_HUB_OFFLINE is set; unset it"):
            hub.fetch(FILES)

    def test_in_a_process_of_its_own(self, tmp_path):
        """With the switches read from the environment, as a user sets them."""
        code = "from prism import hub\nhub.model_files('openai-community/gpt2')"
        settings = {"HF_HUB_CACHE": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9", "NO_PROXY": "*"}
        start = time.monotonic()
        environment = {**os.environ, **settings, "HF_HUB_OFFLINE": "0"}
        run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
        assert "HubError: openai-community/gpt2, file config.json: http://127.0.0.1:9 cannot be reached" in run.stderr
        assert time.monotonic() - start < 20

    def test_message_of_what_is_not_available(self):
        error = hub.not_available("the SAE '6-res-jb'", "gpt2-small", 1200, HubError("org/thing, file a: gone"))
        assert isinstance(error, FileNotFoundError) and "\n" not in str(error)
        for part in (
            "'6-res-jb' of 'gpt2-small'",
            "1200 MB",
            "file a: gone",
            "prism fetch gpt2-small",
            "PRISM_MODEL=mini",
        ):
            assert part in str(error)


class TestVerify:
    @given(
        content=st.binary(max_size=200), at=st.integers(0, 200), name=st.sampled_from(["a/b.json", "a/b.safetensors"])
    )
    def test_any_change_is_found_and_deleted(self, tmp_path_factory, content, at, name):
        cache = tmp_path_factory.mktemp("cache")
        write_cache(cache, {"org/thing": {name: content}})
        with pytest.MonkeyPatch.context() as monkeypatch:
            use_hub(monkeypatch, cache)
            file = HubFile("org/thing", name)
            assert hub._verify_cached(file) == blob_hash(name, content)
            damaged = bytearray(content + b"\0")
            damaged[at % len(damaged)] ^= 1
            hub.cached_path(file).write_bytes(damaged)
            with pytest.raises(HubError, match="does not have the hash"):
                hub._verify_cached(file)
            assert not hub.cached_path(file) and _left(cache) == {"a"}

    def test_damaged_file_is_fetched_again(self, server, caplog):
        hub.fetch(FILES, progress=False)
        path = hub.cached_path(FILES[3])
        path.write_bytes(path.read_bytes()[:-1])
        assert hub.fetch(FILES, progress=False, verify=False)[3].sha == ""
        states = [entry.state for entry in hub.fetch(FILES, progress=False)]
        assert states == ["cached", "cached", "cached", "downloaded"] and "was deleted" in caplog.text
        assert path.read_bytes() == REPO[BIG]

    def test_not_cached(self, tmp_path, monkeypatch):
        use_hub(monkeypatch, tmp_path)
        with pytest.raises(HubError, match="not in the cache"):
            hub._verify_cached(FILES[0])

    def test_file_system_without_links(self, server, monkeypatch, tmp_path):
        monkeypatch.setattr(hub.constants, "HF_HUB_DISABLE_SYMLINKS", True)
        server.wrong[BIG] = bytes(len(REPO[BIG]))
        with pytest.raises(HubError, match=f"file {BIG}: its content does not have the hash"):
            hub.fetch(FILES, progress=False)
        server.wrong.clear()
        assert hub.fetch(FILES, progress=False)[3].sha == blob_hash(BIG, REPO[BIG])
        assert [hub._verify_cached(file) for file in FILES] == [""] * 4
        assert hub.cached_path(FILES[3]).read_bytes() == REPO[BIG] and not list(tmp_path.glob("*/blobs/*"))

    def test_dangling_pointer_is_not_cached(self, server, tmp_path):
        hub.fetch(FILES, progress=False)
        for blob in tmp_path.glob("*/blobs/*"):
            blob.unlink()
        assert not any(map(hub.cached_path, FILES))
        assert {entry.state for entry in hub.fetch(FILES, progress=False)} == {"downloaded"}


class TestFixture:
    def test_files_of_the_old_format_name_the_old_keys(self, repos):
        old = json.loads(repos[RES_JB]["blocks.6.hook_resid_pre/cfg.json"])
        assert old["hook_point"] == "blocks.6.hook_resid_pre" and "hook_name" not in old and "architecture" not in old

    def test_same_seed_same_files(self, repos):
        again = hub_fixture.make_repos()
        assert {repo: commit_of(repo, files) for repo, files in again.items()} == {
            repo: commit_of(repo, files) for repo, files in repos.items()
        }

    def test_without_gpt2_tokenizer_one_is_made(self, monkeypatch, tmp_path):
        monkeypatch.setenv("PRISM_GPT2_TOKENIZER", str(tmp_path))
        tokenizer = hub_fixture.make_tokenizer()
        text = "Prism: 'größer' <|endoftext|>"
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
        assert tokenizer.token_to_id("<|endoftext|>") == tokenizer.get_vocab_size() - 1
