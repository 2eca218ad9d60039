"""The steps of `python -m prism.build`; each reads what the earlier ones wrote."""

from __future__ import annotations

import argparse
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from prism.build import descriptions, readings, smollm2
from prism.build.baselines import kind_bits
from prism.build.broken_runs import write_logs
from prism.build.cards import family_card, write, write_cards
from prism.build.corpus import END, MIXTURE, tokenise
from prism.build.pretrain import MINI, RELATIVES, pretrain, trained_tokens
from prism.build.relatives import MEMBER, measure, write_card
from prism.build.saes import SAMPLED_SHARE, embedded_config, harvest_all, train_embedded, train_family
from prism.build.sample import sample_corpus
from prism.build.tokenizer import train_tokenizer
from prism.device import as_float16
from prism.models import ModelSpec, get_spec, load_model


def _need(path: Path, step: str) -> Path:
    """The path, or an error that says which step makes it."""
    if not path.is_file():
        raise FileNotFoundError(f"no '{path}'; run the step '{step}' first")
    return path


def _training_tokens(options: argparse.Namespace) -> tuple[Tokenizer, dict[str, np.ndarray]]:
    path = _need(options.data / "model" / "tokenizer.json", "tokenizer")
    tokenizer = Tokenizer.from_file(str(path))
    return tokenizer, tokenise(options.corpus, tokenizer, path, options.work)


def _mini(options: argparse.Namespace) -> ModelSpec:
    return replace(get_spec("mini"), folder=options.data / "model")


def _pretrain(options: argparse.Namespace, tokenizer: Tokenizer, tokens: dict, config, run: Path, out: Path) -> None:
    """Train a model in the folder `run`; the finished weights go to `out` as float16, each file whole or not at all."""
    pretrain(tokens, tokenizer, run, replace(config, tokens=options.tokens or config.tokens), resume=options.resume)
    staged = run / "float16"
    model = AutoModelForCausalLM.from_pretrained(run / "model", dtype=torch.float32)
    for parameter in model.parameters():
        parameter.data = as_float16(parameter.data)  # one that does not fit stays as it is
    model.save_pretrained(staged)
    out.mkdir(parents=True, exist_ok=True)
    for file in staged.iterdir():
        os.replace(shutil.copy(file, out / f".{file.name}.part"), out / file.name)


def run_tokenizer(options: argparse.Namespace) -> None:
    """Train the tokenizer into `data/model`."""
    train_tokenizer(options.corpus, options.data / "model")


def run_pretrain(options: argparse.Namespace) -> None:
    """Train the language model into `data/model`."""
    _pretrain(options, *_training_tokens(options), MINI, options.work / "pretrain", options.data / "model")


def run_sample(options: argparse.Namespace) -> None:
    """Sample the embedded corpus from the model."""
    _need(options.data / "model" / "model.safetensors", "pretrain")
    model = AutoModelForCausalLM.from_pretrained(options.data / "model", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(options.data / "model")
    sample_corpus(model, tokenizer, options.data / "corpus" / "sampled.parquet", options.sample_tokens)


def run_saes(options: argparse.Namespace) -> None:
    """Harvest activations once and train the SAEs on them."""
    tokenizer, tokens = _training_tokens(options)
    sampled = options.data / "corpus" / "sampled.parquet"
    end, spec = tokenizer.token_to_id(END), get_spec("mini")
    if sampled.is_file():  # the embedded corpus is one more kind, so that the SAEs know it
        ids = [np.array([*row, end], dtype=np.uint16) for row in pd.read_parquet(sampled)["tokens"]]
        tokens = {**tokens, "sampled": np.concatenate(ids)}
    model = load_model(_mini(options))
    family = {name: embedded_config(sae, model.cfg.d_model) for name, sae in spec.saes.items()}
    wanted = [spec.sae(name) for name in options.sae or family]
    shares = MIXTURE | {"sampled": SAMPLED_SHARE}
    hooks = {spec.sae(name).hook_name: config.d_in for name, config in family.items()}
    out = options.work / "activations"
    activations = harvest_all(model, tokens, hooks, out, options.sae_samples, end, spec.context, shares)
    for sae in wanted:
        train_embedded(activations[sae.hook_name], sae, family[sae.name], spec, options.data / "saes")


def run_family(options: argparse.Namespace) -> None:
    """Train the SAEs that the notebooks compare, and measure the architectures' front."""
    _need(options.data / "corpus" / "sampled.parquet", "sample")
    out = options.data / "saes" / "family"
    write(out / "README.md", family_card(train_family(_mini(options), out)))


def run_broken_runs(options: argparse.Namespace) -> None:
    """Train the runs with planted faults and keep their logs."""
    _need(options.data / "corpus" / "sampled.parquet", "sample")
    write_logs(_mini(options), options.data / "broken_runs.parquet")


def run_cards(options: argparse.Namespace) -> None:
    """Measure the model and the SAEs and write the data cards."""
    _, tokens = _training_tokens(options)
    _need(options.work / "pretrain" / "last.safetensors", "pretrain")
    write_cards(options.data, options.corpus, tokens, trained_tokens(options.work / "pretrain"))


def run_relatives(options: argparse.Namespace) -> None:
    """Train the further models that phase 6e compares, and their SAEs, into `data/models`."""
    tokenizer, tokens = _training_tokens(options)
    _need(options.data / "measurements.json", "cards")
    measured = {}
    for name, config in RELATIVES.items():
        run, out = options.work / name, options.data / "models" / name
        _pretrain(options, tokenizer, tokens, config, run, out)
        spec = replace(get_spec(name), folder=out, tokenizer_folder=options.data / "model")
        train_family(spec, out / "saes" / "family", [MEMBER])
        model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
        measured[name] = measure(out, trained_tokens(run), kind_bits(model, tokenizer, options.corpus))
    write_card(options.data, measured)


def run_smollm2(options: argparse.Namespace) -> None:
    """The real model's SAEs, corpus and card, into `data/smollm2`."""
    build = smollm2.Build(options.corpus, options.work / "smollm2", options.data / "smollm2")
    for part in options.part:
        print(f"-- {part}", flush=True)
        getattr(build, part)()


def run_readings(options: argparse.Namespace) -> None:
    """Units of the real model, read blind: sheets, or what their readers made of them."""
    if all((options.work / f"{name}.jsonl").is_file() for name in ("readings", "answers")):
        return readings.report(options.work, options.data)
    readings.make(get_spec("smollm2"), options.data / "smollm2" / "saes", options.work)


def run_descriptions(options: argparse.Namespace) -> None:
    """The real model's descriptions of its own features: a reader's sheet, or the records."""
    build = descriptions.Build(get_spec("smollm2"), options.work / "descriptions")
    if not build.write(options.data / "smollm2" / "descriptions.jsonl"):
        print(f"a reader is needed: from '{build.work / 'quizzes.jsonl'}' to 'answers.jsonl' beside it")
