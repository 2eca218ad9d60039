"""The further models of phase 6e: how well they predict, their SAEs, and their card, beside what `mini` is."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
from transformers import AutoModelForCausalLM

from prism.build.cards import COST, markdown_table, side_by_side, write

MEMBER = "batch_topk"  # of the family, at the default hook


def measure(folder: Path, trained_tokens: float, bits: dict[str, float]) -> dict[str, object]:
    """What the card says of one model in `folder`: parameters, size on disk (MB), tokens, and its bits by kind."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    return {
        "architecture": model.config.model_type,
        "layers": model.config.num_hidden_layers,
        "channels": model.config.hidden_size,
        "parameters": model.num_parameters(),
        "trained_tokens": trained_tokens,
        "megabytes": round((folder / "model.safetensors").stat().st_size / 1e6, 2),
        "bits_per_byte": bits,
    }


def relatives_card(measured: dict[str, dict], grams: dict[str, float], fronts: dict[str, pd.DataFrame]) -> str:
    """Text of `data/models/README.md`.

    Args:
        measured: model -> `measure`; grams: the 5-gram's bits by kind; fronts: model -> the measures of its SAEs, from
            `saes.train_family`.
    """
    shapes = pd.DataFrame(measured).T.rename_axis("model").reset_index()
    shapes[["parameters", "trained_tokens"]] /= 1e6
    columns = {
        "model": "{model}",
        "architecture": "{architecture}",
        "layers": "{layers}",
        "channels": "{channels}",
        "parameters": "{parameters:.2f} M",
        "trained on": "{trained_tokens:.1f} M tokens",
        "file": "{megabytes:.1f} MB",
    }
    bits = {name: row["bits_per_byte"] for name, row in measured.items()} | {"5-gram": grams}
    saes = pd.concat([front.assign(model=name) for name, front in fronts.items()])
    saes = saes.round({"l0": 1, "explained_variance": 3, "ce_recovered_mean": 3})
    of_saes = {name: f"{{{name}}}" for name in ("model", "target_l0", "l0", "d_sae", "explained_variance")}
    of_saes |= {"ΔCE (nats, 95 %)": COST, "ce_recovered_mean": "{ce_recovered_mean}"}
    return f"""# Further embedded models

Relatives of `mini`, for comparisons of size and architecture: `mini-small` is a GPT-2 of half the depth, `mini-llama`
a Llama (RMSNorm, rotary positions, SwiGLU). Trained from scratch by `python -m prism.build relatives` on the same
mixture in the same order as `mini`, float16 safetensors in Hugging Face format. They read with `mini`'s tokenizer,
which lies in `data/model` and is not copied here; `PRISM_MODEL=mini-small` and `PRISM_MODEL=mini-llama` find it.
MIT licence, like the rest of the repository; the training text is not included.

{markdown_table(shapes, columns)}

**Size, architecture and training length are confounded:** the models saw different numbers of tokens (see the table),
so a difference between two of them has more than one possible cause.

## How good: bits per byte on held-out documents (lower is better)

{side_by_side(bits, "kind")}

The same documents as in `data/model/README.md`. All three are teaching models: they know nothing.

## Their SAEs

BatchTopK, 8 features a channel, at the default hook, trained as `data/saes/family/batch_topk` of `mini` was: the same
trainer, the same number of activations of the same documents (nine of ten of the embedded corpus, which `mini` wrote).
The SAEs at wanted L0 32 are kept in `saes/family`; of the
others there are only the measures, in `front.csv`.

{markdown_table(saes, of_saes)}

Measured on the other documents of the embedded corpus.
"""


def write_card(data: Path, measured: dict[str, dict]) -> None:
    """Write `data/models/README.md` and `data/models/measurements.json`."""
    embedded = json.loads((data / "measurements.json").read_text(encoding="utf-8"))
    model, grams = (
        {kind: row[name] for kind, row in embedded["bits_per_byte"].items()} for name in ("model", "5-gram")
    )
    measured = {"mini": measure(data / "model", embedded["trained_tokens"], model)} | measured
    write(data / "models" / "measurements.json", json.dumps(measured, indent=1))
    homes = {name: data / "models" / name for name in measured} | {"mini": data}
    fronts = {name: pd.read_csv(home / "saes" / "family" / "front.csv") for name, home in homes.items()}
    fronts = {name: front[front["member"] == MEMBER] for name, front in fronts.items()}
    write(data / "models" / "README.md", relatives_card(measured, grams, fronts))
