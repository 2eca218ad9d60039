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
import sys
from pathlib import Path

from prism import stopping

STEPS = ("tokenizer", "pretrain", "sample", "saes", "family", "broken-runs", "cards", "relatives", "manifest")
WITHOUT_TEXT = ("sample", "family", "broken-runs", "readings", "descriptions", "manifest")
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
    if options.corpus is None and options.step not in WITHOUT_TEXT:
        parser.error("--corpus DIR is needed: a folder of KIND.txt or KIND.txt.xz files")
    options.part = options.part or PARTS
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
                if step == "manifest":
                    print(f"wrote {manifest.write(options.data)}")
                    continue
                from prism.build import steps  # takes its time

                getattr(steps, f"run_{step.replace('-', '_')}")(options)
        except (OSError, FloatingPointError, ValueError) as error:
            sys.exit(f"prism.build {step}: {error}")


if __name__ == "__main__":
    main()
