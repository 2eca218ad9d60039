"""Rebuild `data/`: `python -m prism.build all --corpus DIR`, or one step at a time.

tokenizer → pretrain → sample → saes → family → broken-runs → cards → relatives → manifest. Each step reads what the
earlier ones wrote. `relatives` trains the further models of phase 6e and their SAEs (about an hour on two cores;
--resume goes on). `manifest` lists what git tracks in `data/`, with sizes and hashes: the last step after any change.

`smollm2` makes `data/smollm2`: SAEs of the real model, the corpus that it wrote, and their card (hours; it goes on from
its checkpoints in --work). --part does one of its steps. `readings` writes sheets of units to be read blind into
--work, and, once the readers' `readings.jsonl` and `answers.jsonl` lie there, what came of them. `descriptions` has
SmolLM2-Instruct describe its own features, and judge; once a reader's `answers.jsonl` lies in --work, it records all.
"""

from __future__ import annotations

import argparse
import functools
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from prism import stopping

STEPS = ("tokenizer", "pretrain", "sample", "saes", "family", "broken-runs", "cards", "relatives", "manifest")
PARTS = ("study", "rates", "corpus", "default", "further", "random", "card")  # of the step smollm2
GO_ON = {  # what is said when a step is stopped
    "pretrain": "`pretrain --resume` goes on from its last checkpoint",
    "relatives": "`relatives --resume` goes on from its last checkpoint",
    "smollm2": "`smollm2` goes on from its last checkpoint",
    "descriptions": "`descriptions` goes on with the next feature",
}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m prism.build", description=__doc__)
    parser.add_argument("step", choices=("all", "smollm2", "readings", "descriptions", *STEPS))
    parser.add_argument("--corpus", type=Path, help="folder of KIND.txt or KIND.txt.xz training text")
    parser.add_argument(
        "--work", type=Path, default=Path("build/work"), help="checkpoints, tokens (default: %(default)s)"
    )
    parser.add_argument("--data", type=Path, default=Path("data"), help="where the results go (default: %(default)s)")
    parser.add_argument("--tokens", type=float, help="tokens to pretrain on (default: 30e6)")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --work")
    parser.add_argument("--sample-tokens", type=int, default=1_000_000, help="size of the embedded corpus (tokens)")
    parser.add_argument("--sae-samples", type=int, default=4_000_000, help="activations harvested to train the SAEs on")
    parser.add_argument("--part", choices=PARTS, action="append", help="of the step smollm2; by default all, in order")
    parser.add_argument("--sae", action="append", help="train only this SAE (may be given more than once)")
    options = parser.parse_args(arguments)
    if options.corpus is None and options.step not in (
        "sample",
        "family",
        "broken-runs",
        "readings",
        "descriptions",
        "manifest",
    ):
        parser.error("--corpus DIR is needed: a folder of KIND.txt or KIND.txt.xz files")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Run one step or all of them."""
    if arguments is None:
        stopping.listen()
    options = parse(arguments)
    os.environ["PRISM_DATA"] = str(options.data.resolve())
    from prism import manifest

    for step in STEPS if options.step == "all" else (options.step,):
        print(f"== {step}", flush=True)
        try:
            with stopping.at_stop(functools.partial(GO_ON.get, step)), manifest.being_made(options.data.resolve()):
                globals()[f"run_{step.replace('-', '_')}"](options)
        except (OSError, FloatingPointError, ValueError) as error:
            sys.exit(f"prism.build {step}: {error}")


def run_tokenizer(options: argparse.Namespace) -> None:
    """Train the tokenizer into `data/model`."""
    from prism.build.tokenizer import train_tokenizer

    train_tokenizer(options.corpus, options.data / "model")


def _need(path: Path, step: str) -> Path:
    """The path, or an error that says which step makes it."""
    if not path.is_file():
        raise FileNotFoundError(f"no '{path}'; run the step '{step}' first")
    return path


def _training_tokens(options: argparse.Namespace):
    from tokenizers import Tokenizer

    from prism.build.corpus import tokenise

    path = _need(options.data / "model" / "tokenizer.json", "tokenizer")
    tokenizer = Tokenizer.from_file(str(path))
    return tokenizer, tokenise(options.corpus, tokenizer, path, options.work)


def run_pretrain(options: argparse.Namespace) -> None:
    """Train the language model; the finished weights go to `data/model` as float16."""
    from prism.build.pretrain import MINI, pretrain

    tokenizer, tokens = _training_tokens(options)
    run = options.work / "pretrain"
    pretrain(tokens, tokenizer, run, replace(MINI, tokens=options.tokens or MINI.tokens), resume=options.resume)
    _publish(run, options.data / "model")


def _publish(run: Path, out: Path) -> None:
    """Write the finished model of a run as float16: each file under a temporary name, then renamed."""
    import torch
    from transformers import AutoModelForCausalLM

    from prism.device import as_float16

    staged = run / "float16"
    model = AutoModelForCausalLM.from_pretrained(run / "model", dtype=torch.float32)
    for parameter in model.parameters():
        parameter.data = as_float16(parameter.data)  # one that does not fit stays as it is
    model.save_pretrained(staged)
    out.mkdir(parents=True, exist_ok=True)
    for file in staged.iterdir():
        os.replace(shutil.copy(file, out / f".{file.name}.part"), out / file.name)


def run_sample(options: argparse.Namespace) -> None:
    """Sample the embedded corpus from the model."""
    import torch
    from transformers import AutoTokenizer, GPT2LMHeadModel

    from prism.build.sample import sample_corpus

    _need(options.data / "model" / "model.safetensors", "pretrain")
    model = GPT2LMHeadModel.from_pretrained(options.data / "model", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(options.data / "model")
    sample_corpus(model, tokenizer, options.data / "corpus" / "sampled.parquet", options.sample_tokens)


def run_saes(options: argparse.Namespace) -> None:
    """Harvest activations once and train the SAEs on them."""
    import numpy as np
    import pandas as pd

    from prism.build.corpus import END, MIXTURE
    from prism.build.saes import SAMPLED_SHARE, embedded_config, harvest_all, train_embedded
    from prism.models import get_spec, load_model

    tokenizer, tokens = _training_tokens(options)
    sampled = options.data / "corpus" / "sampled.parquet"
    end, spec = tokenizer.token_to_id(END), get_spec("mini")
    if sampled.is_file():  # the embedded corpus is one more kind, so that the SAEs know it
        ids = [np.array([*row, end], dtype=np.uint16) for row in pd.read_parquet(sampled)["tokens"]]
        tokens = {**tokens, "sampled": np.concatenate(ids)}
    model = load_model(replace(spec, folder=options.data / "model"))
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
    from prism.build.cards import family_card, write
    from prism.build.saes import train_family
    from prism.models import get_spec

    _need(options.data / "corpus" / "sampled.parquet", "sample")
    out = options.data / "saes" / "family"
    out.mkdir(parents=True, exist_ok=True)
    front = train_family(replace(get_spec("mini"), folder=options.data / "model"), out)
    write(out / "README.md", family_card(front))


def run_broken_runs(options: argparse.Namespace) -> None:
    """Train the runs with planted faults and keep their logs."""
    from prism.build.broken_runs import write_logs
    from prism.models import get_spec

    _need(options.data / "corpus" / "sampled.parquet", "sample")
    spec = replace(get_spec("mini"), folder=options.data / "model")
    write_logs(spec, options.data / "broken_runs.parquet")


def run_cards(options: argparse.Namespace) -> None:
    """Measure the model and the SAEs and write the data cards."""
    from prism.build.cards import write_cards
    from prism.build.pretrain import trained_tokens

    _, tokens = _training_tokens(options)
    _need(options.work / "pretrain" / "last.safetensors", "pretrain")
    write_cards(options.data, options.corpus, tokens, trained_tokens(options.work / "pretrain"))


def run_relatives(options: argparse.Namespace) -> None:
    """Train the further models that phase 6e compares, and their SAEs, into `data/models`."""
    import torch
    from transformers import AutoModelForCausalLM

    from prism.build.baselines import kind_bits
    from prism.build.pretrain import RELATIVES, pretrain, trained_tokens
    from prism.build.relatives import MEMBER, measure, write_card
    from prism.build.saes import train_family
    from prism.models import get_spec

    tokenizer, tokens = _training_tokens(options)
    _need(options.data / "measurements.json", "cards")
    measured = {}
    for name, config in RELATIVES.items():
        run, out = options.work / name, options.data / "models" / name
        config = replace(config, tokens=options.tokens or config.tokens)
        pretrain(tokens, tokenizer, run, config, resume=options.resume)
        _publish(run, out)
        spec = replace(get_spec(name), folder=out, tokenizer_folder=options.data / "model")
        home = out / "saes" / "family"
        home.mkdir(parents=True, exist_ok=True)
        train_family(spec, home, [MEMBER])
        model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
        measured[name] = measure(out, trained_tokens(run), kind_bits(model, tokenizer, options.corpus))
    write_card(options.data, measured)


def run_manifest(options: argparse.Namespace) -> None:
    """List the published files."""
    from prism.manifest import write

    print(f"wrote {write(options.data)}")


def run_smollm2(options: argparse.Namespace) -> None:
    """The real model's SAEs, corpus and card, into `data/smollm2`."""
    from prism.build.smollm2 import Build

    build = Build(options.corpus, options.work / "smollm2", options.data / "smollm2")
    for part in options.part or PARTS:
        print(f"-- {part}", flush=True)
        getattr(build, part)()


def run_readings(options: argparse.Namespace) -> None:
    """Units of the real model, read blind: sheets, or what their readers made of them."""
    from prism.build import readings
    from prism.models import get_spec

    if all((options.work / f"{name}.jsonl").is_file() for name in ("readings", "answers")):
        return readings.report(options.work, options.data)
    readings.make(get_spec("smollm2"), options.data / "smollm2" / "saes", options.work)


def run_descriptions(options: argparse.Namespace) -> None:
    """The real model's descriptions of its own features: a reader's sheet, or the records."""
    from prism.build.descriptions import Build
    from prism.models import get_spec

    build = Build(get_spec("smollm2"), options.work / "descriptions")
    if not build.write(options.data / "smollm2" / "descriptions.jsonl"):
        print(f"a reader is needed: from '{build.work / 'quizzes.jsonl'}' to 'answers.jsonl' beside it")


if __name__ == "__main__":
    main()
