"""GPT-2 and its SAEs as the Hugging Face hub holds them, but narrow and random: a cache on disk, and a local server.

Files have the names, keys and formats of the real repositories, so the real loaders read them. For a run of anything
on the `gpt2-small` entry of the registry without a network: `make_hub_cache(folder)`, then `HF_HUB_CACHE=folder`.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch
from huggingface_hub import close_session, constants
from safetensors.torch import save
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GPT2Config, GPT2LMHeadModel

ROOT = Path(__file__).resolve().parents[1]
MODEL = "openai-community/gpt2"
RES_JB = "jbloom/GPT2-Small-SAEs-Reformatted"
MLP_OUT = "jbloom/GPT2-Small-OAI-v5-32k-mlp-out-SAEs"
SPLITTING = "jbloom/GPT2-Small-Feature-Splitting-Experiment-Layer-8"
END = "<|endoftext|>"
L0 = 50  # mean active features a token that the random SAEs are set to

Repos = dict[str, dict[str, bytes]]  # repository -> file name -> content


def make_hub_cache(folder: Path, **options) -> Path:
    """Write a hub cache into the folder; options as for `make_repos`. Returns the folder, for `HF_HUB_CACHE`."""
    write_cache(folder, make_repos(**options))
    return folder


def write_cache(folder: Path, repos: Repos) -> None:
    """The layout of huggingface_hub: `blobs/HASH`, `snapshots/COMMIT/NAME` pointing there, `refs/main`."""
    for repo, files in repos.items():
        place = folder / f"models--{repo.replace('/', '--')}"
        for name, content in files.items():
            blob = place / "blobs" / blob_hash(name, content)
            pointer = place / "snapshots" / commit_of(repo, files) / name
            for path in (blob, pointer):
                path.parent.mkdir(parents=True, exist_ok=True)
            blob.write_bytes(content)
            pointer.symlink_to(os.path.relpath(blob, pointer.parent))
        (place / "refs").mkdir(exist_ok=True)
        (place / "refs" / "main").write_text(commit_of(repo, files), encoding="utf-8")


def use_hub(monkeypatch: pytest.MonkeyPatch, cache: Path, endpoint: str = "http://127.0.0.1:9") -> None:
    """For one test, make that folder the hub cache and that address the hub (by default one where nobody answers)."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    close_session()  # the next one reads NO_PROXY


def is_large(name: str) -> bool:
    """Whether the hub keeps the file outside git and names it by its sha256."""
    return name.endswith(".safetensors")


def blob_hash(name: str, content: bytes) -> str:
    """sha256 of a large file, git's sha1 of a small one."""
    if is_large(name):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def commit_of(repo: str, files: dict[str, bytes]) -> str:
    """A commit hash that changes with the files."""
    parts = [repo, *(f"{name} {blob_hash(name, content)}" for name, content in sorted(files.items()))]
    return hashlib.sha1("\n".join(parts).encode()).hexdigest()


# --- the repositories ------------------------------------------------------------------------------------------------


def make_repos(
    width: int = 48,
    n_layer: int = 12,
    n_head: int = 4,
    d_sae: int = 512,
    d_split: int = 128,
    layers: Sequence[int] = (6, 8, 10),
    seed: int = 0,
) -> Repos:
    """GPT-2 of the given width, and SAEs for it: residual stream (old format), MLP output (newer), feature splitting.

    Args:
        d_sae: features of each SAE.
        d_split: features of the smallest of six feature-splitting SAEs (really 768); each next one has twice as many.
        layers: blocks whose residual stream has an SAE.
    """
    tokenizer = make_tokenizer()
    end = tokenizer.token_to_id(END)
    torch.manual_seed(seed)
    sizes = {"n_embd": width, "n_layer": n_layer, "n_head": n_head, "vocab_size": tokenizer.get_vocab_size()}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=end, eos_token_id=end, initializer_range=0.1)).eval()
    residual, mlp_out = _activations(model, torch.randint(end, (16, 32)), end)
    repos: Repos = {MODEL: _model_files(model, tokenizer), RES_JB: {}, SPLITTING: {}, MLP_OUT: {}}
    for layer in layers:
        hook = f"blocks.{layer}.hook_resid_pre"
        repos[RES_JB] |= _inside(hook, _old_sae(residual[layer], hook, d_sae))
    for times in (1, 2, 4, 8, 16, 32):
        hook = "blocks.8.hook_resid_pre"
        repos[SPLITTING] |= _inside(f"{hook}_{768 * times}", _old_sae(residual[8], hook, d_split * times))
    repos[MLP_OUT] |= _inside("v5_32k_layer_6", _topk_sae(mlp_out[6], 6, d_sae))
    return repos


def _inside(folder: str, files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"{folder}/{name}": content for name, content in files.items()}


def make_tokenizer() -> Tokenizer:
    """GPT-2's own if `PRISM_GPT2_TOKENIZER` or `../shared/gpt2_tokenizer` holds its two files, else a small one."""
    folder = Path(os.environ.get("PRISM_GPT2_TOKENIZER") or ROOT.parent / "shared" / "gpt2_tokenizer")
    if (folder / "vocab.json").is_file():
        model = models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    else:
        model = models.BPE()
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    if tokenizer.get_vocab_size() == 0:
        letters = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=2000, initial_alphabet=letters, show_progress=False)
        files = [ROOT / "data" / "texts" / f"{split}.jsonl" for split in ("discover", "confirm")]
        rows = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
        tokenizer.train_from_iterator([row["text"] for row in rows], trainer)
    tokenizer.add_special_tokens([END])  # the last id, as in GPT-2
    return tokenizer


def _model_files(model: GPT2LMHeadModel, tokenizer: Tokenizer) -> dict[str, bytes]:
    """The files of the repository, two that nobody needs included."""
    config = model.config.to_diff_dict() | {"architectures": ["GPT2LMHeadModel"], "n_ctx": 1024, "n_positions": 1024}
    bpe = json.loads(tokenizer.to_str())["model"]
    weights = {name: value.contiguous() for name, value in model.transformer.state_dict().items()}
    end = model.config.eos_token_id
    return {
        "README.md": b"# GPT-2\n",
        "config.json": _json(config | {"model_type": "gpt2"}),
        "generation_config.json": _json({"bos_token_id": end, "eos_token_id": end, "_from_model_config": True}),
        "merges.txt": "\n".join(["#version: 0.2", *map(" ".join, bpe["merges"]), ""]).encode(),
        "model.safetensors": save(weights, {"format": "pt"}),
        "pytorch_model.bin": b"never to be downloaded",
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": _json({"model_max_length": 1024}),
        "vocab.json": _json(bpe["vocab"] | {END: end}),
    }


@torch.no_grad()
def _activations(
    model: GPT2LMHeadModel, tokens: torch.Tensor, end: int
) -> tuple[list[torch.Tensor], dict[int, torch.Tensor]]:
    """Of some tokens, BOS excluded: the centred residual stream before each block, and the MLP output of each."""
    caught: dict[int, torch.Tensor] = {}
    for layer, block in enumerate(model.transformer.h):
        block.mlp.register_forward_hook(lambda module, args, out, layer=layer: caught.update({layer: out}))
    tokens[:, 0] = end
    hidden = model(tokens, output_hidden_states=True).hidden_states
    for block in model.transformer.h:
        block.mlp._forward_hooks.clear()
    centred = [x - x.mean(-1, keepdim=True) for x in hidden]
    return [x[:, 1:].flatten(0, 1) for x in centred], {i: x[:, 1:].flatten(0, 1) for i, x in caught.items()}


def _old_sae(x: torch.Tensor, hook: str, d_sae: int) -> dict[str, bytes]:
    """A ReLU SAE in the format of SAELens before 6.0; about L0 features fire on each row of `x` [token, d_in]."""
    weights = _weights(x, d_sae)
    before = (x - weights["b_dec"]) @ weights["W_enc"]
    weights["b_enc"] -= before.flatten().kthvalue(round(before.numel() * (1 - L0 / d_sae))).values
    weights["scaling_factor"] = torch.ones(d_sae)
    density = ((before + weights["b_enc"]) > 0).float().mean(0)
    config = {
        "model_name": "gpt2-small",
        "hook_point": hook,
        "hook_point_layer": int(hook.split(".")[1]),
        "hook_point_head_index": None,
        "dataset_path": "Skylion007/openwebtext",
        "is_dataset_tokenized": False,
        "context_size": 128,
        "use_cached_activations": False,
        "d_in": x.shape[1],
        "d_sae": d_sae,
        "expansion_factor": d_sae // x.shape[1],
        "l1_coefficient": 8e-05,
        "lr": 0.0004,
        "total_training_tokens": 300_000_000,
        "b_dec_init_method": "geometric_median",
        "device": "mps",
        "dtype": "torch.float32",
        "seed": 42,
    }
    sparsity = save({"sparsity": (density + 1e-10).log10()})
    return {"cfg.json": _json(config), "sae_weights.safetensors": save(weights), "sparsity.safetensors": sparsity}


def _topk_sae(x: torch.Tensor, layer: int, d_sae: int) -> dict[str, bytes]:
    """A TopK SAE in the later format of SAELens 3 to 5, with inputs normalised; it has no file of sparsities."""
    weights = _weights((x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True), d_sae)
    config = {
        "d_in": x.shape[1],
        "d_sae": d_sae,
        "dtype": "torch.float32",
        "device": "cpu",
        "model_name": "gpt2-small",
        "hook_name": f"blocks.{layer}.hook_mlp_out",
        "hook_layer": layer,
        "hook_head_index": None,
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": 32},
        "apply_b_dec_to_input": True,
        "finetuning_scaling_factor": False,
        "sae_lens_training_version": None,
        "prepend_bos": False,
        "dataset_path": "Skylion007/openwebtext",
        "dataset_trust_remote_code": True,
        "context_size": 64,
        "normalize_activations": "layer_norm",
    }
    return {"cfg.json": _json(config), "sae_weights.safetensors": save(weights)}


def _weights(x: torch.Tensor, d_sae: int) -> dict[str, torch.Tensor]:
    decoder = torch.nn.functional.normalize(torch.randn(d_sae, x.shape[1]), dim=-1)
    encoder = decoder.T.contiguous()
    return {"W_enc": encoder, "b_enc": torch.zeros(d_sae), "W_dec": decoder, "b_dec": x.mean(0)}


def _json(value: object) -> bytes:
    return json.dumps(value, indent=2).encode()


# --- the server ------------------------------------------------------------------------------------------------------


@dataclass
class Hub:
    """What a local server of the hub's download protocol serves, how it misbehaves, and what it was asked.

    Attributes:
        endpoint: for `HF_ENDPOINT`. Large files come from a second port, as on the hub from another host.
        cut: file name -> bytes after which to cut the connection, one a request.
        answers: file name -> (status, headers) to give first, one a request.
        wrong: file name -> what is sent instead of its content.
        requests: (method, path) of each request.
        trusted: first parts of the paths that were asked for with the user's token.
        sent: file name -> bytes of content sent in all.
    """

    repos: Repos
    endpoint: str = ""
    storage: str = ""
    cut: dict[str, list[int]] = field(default_factory=dict)
    answers: dict[str, list[tuple[int, dict[str, str]]]] = field(default_factory=dict)
    wrong: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    trusted: set[str] = field(default_factory=set)
    sent: dict[str, int] = field(default_factory=lambda: defaultdict(int))


@contextmanager
def serve(repos: Repos) -> Iterator[Hub]:
    """Serve repositories on 127.0.0.1 until the block ends."""
    hub = Hub(repos)
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub)) for _ in range(2)]
    hub.endpoint, hub.storage = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    for server in servers:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield hub
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = unquote(self.path.partition("?")[0])
            hub.requests.append((self.command, path))
            if "Authorization" in self.headers:
                hub.trusted.add(path.split("/")[1])
            if path.startswith("/api/models/"):
                self.listing(*path.removeprefix("/api/models/").partition("/revision/")[::2])
            elif path.startswith("/storage/"):
                repo, _, name = path.removeprefix("/storage/").partition("//")
                self.content(name, hub.repos[repo][name], {})
            elif path.startswith("/api/resolve-cache/"):
                repo, _, name = path.removeprefix("/api/resolve-cache/").partition("//")
                self.content(name, hub.repos[repo][name], self.metadata(repo, name))
            elif "/resolve/" in path:
                repo, _, rest = path[1:].partition("/resolve/")
                self.resolve(repo, *rest.partition("/")[::2])
            else:
                self.answer(404)

        do_HEAD = do_GET

        def listing(self, repo: str, revision: str) -> None:
            if repo not in hub.repos:
                return self.answer(404, {"X-Error-Code": "RepoNotFound"})
            names = [{"rfilename": name} for name in hub.repos[repo]]
            self.answer(200, {}, _json({"id": repo, "sha": commit_of(repo, hub.repos[repo]), "siblings": names}))

        def resolve(self, repo: str, revision: str, name: str) -> None:
            if hub.answers.get(name):
                return self.answer(*hub.answers[name].pop(0))
            if repo not in hub.repos:
                return self.answer(404, {"X-Error-Code": "RepoNotFound"})
            commit = commit_of(repo, hub.repos[repo])
            if revision not in ("main", commit):
                return self.answer(404, {"X-Error-Code": "RevisionNotFound"})
            if name not in hub.repos[repo]:
                return self.answer(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            where = f"{hub.storage}/storage" if is_large(name) else "/api/resolve-cache"
            self.answer(
                302 if is_large(name) else 307, self.metadata(repo, name) | {"Location": f"{where}/{repo}//{name}"}
            )

        def metadata(self, repo: str, name: str) -> dict[str, str]:
            content = hub.repos[repo][name]
            sha, commit = f'"{blob_hash(name, content)}"', {"X-Repo-Commit": commit_of(repo, hub.repos[repo])}
            if not is_large(name):
                return commit | {"ETag": sha}
            xet = {"X-Xet-Hash": "0" * 64, "X-Xet-Refresh-Route": f"{hub.endpoint}/api/xet"}  # another way to get it
            return commit | xet | {"ETag": '"other"', "X-Linked-Etag": sha, "X-Linked-Size": str(len(content))}

        def content(self, name: str, content: bytes, headers: dict[str, str]) -> None:
            content, asked, status = hub.wrong.get(name, content), self.headers.get("Range"), 200
            if asked:
                start = int(asked.removeprefix("bytes=").split("-")[0])
                headers = headers | {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
                content, status = content[start:], 206
            stop = None
            if self.command == "GET":
                stop = hub.cut[name].pop(0) if hub.cut.get(name) else None
                hub.sent[name] += len(content[:stop])  # before the client can look
            self.answer(status, headers, content, stop)

        def answer(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"", stop=None) -> None:
            self.send_response(status)
            for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[:stop])
            self.close_connection = stop is not None

        def log_message(self, *args: object) -> None:
            pass

    return Handler
