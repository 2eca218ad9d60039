"""The files of `data/`: as published, or named with the way to restore them; and half files that name themselves."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors import SafetensorError

from prism import cli, data, files, manifest
from prism.build.__main__ import main as build
from prism.build.pretrain import load_checkpoint
from prism.data import load_corpus, load_texts, read_table
from prism.models import get_spec, load_model, load_sae

PARTS = ("texts", "saes/family/topk", "saes/family/front.csv", "model", "corpus", "MANIFEST.json")


@pytest.fixture
def copy(tmp_path: Path, monkeypatch) -> Path:
    """A part of `data/` elsewhere, with a manifest of its own, in the place of `data/`."""
    home = tmp_path / "data"
    for part in PARTS:
        (home / part).parent.mkdir(parents=True, exist_ok=True)
        source = manifest.DATA / part
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, home / part)
    manifest.write(home)
    for module in (manifest, data):
        monkeypatch.setattr(module, "DATA", home)
    for function in (manifest.intact, manifest.entries, manifest.problems, manifest.foreign):
        monkeypatch.setattr(function, "__defaults__", (home,))
    return home


def _halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def git(*arguments: str) -> str:
    """What git says in `data/`; nothing where there is none, as in an archive."""
    return subprocess.run(["git", *arguments], cwd=manifest.DATA, capture_output=True, encoding="utf-8").stdout


def test_the_manifest_is_that_of_the_committed_files() -> None:
    """If this fails: `python -m prism.build manifest`, after `git add` of what is new."""
    assert manifest.problems() == []
    tracked = git("ls-files").splitlines()
    if tracked:  # not in an archive
        assert sorted(manifest.entries()) == sorted({*tracked} - {manifest.NAME})


def test_git_keeps_every_byte_on_every_system() -> None:
    asked = git("check-attr", "text", "texts/discover.jsonl", "model/model.safetensors")
    assert not asked or asked.count("text: unset") == 2


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: path.write_text("".join(path.read_text(encoding="utf-8").splitlines(True)[:35]), encoding="utf-8"),
        _flip,
        _halve,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes() + b"\n"),
        Path.unlink,
    ],
    ids=["35 lines", "a flipped bit", "half", "empty", "one byte more", "missing"],
)
def test_texts_that_are_not_as_published_are_refused(copy: Path, harm) -> None:
    assert len(load_texts("discover")) == 70
    harm(copy / "texts" / "discover.jsonl")
    with pytest.raises(ValueError, match=r"discover.jsonl' is damaged: it") as error:
        load_texts("discover")
    assert "\n" not in str(error.value) and len(manifest.problems()) == 1
    assert len(load_texts("confirm")) == 70


@pytest.mark.parametrize(
    ("name", "load"),
    [
        ("model/tokenizer.json", lambda home: load_model(replace(get_spec("mini"), name="x", folder=home / "model"))),
        ("model/generation_config.json", lambda home: load_model(replace(get_spec("mini"), folder=home / "model"))),
        (
            "model/model.safetensors",
            lambda home: load_model(replace(get_spec("mini"), name="y", folder=home / "model")),
        ),
        ("corpus/sampled.parquet", lambda home: read_table(home / "corpus" / "sampled.parquet")),
        ("saes/family/topk/cfg.json", lambda home: _load_topk(home)),
        ("saes/family/topk/sae_weights.safetensors", lambda home: _load_topk(home)),
    ],
)
@pytest.mark.parametrize("listed", [True, False])
def test_half_a_file_names_itself(copy: Path, name: str, load, listed: bool) -> None:
    """By the manifest, and where there is none, such as in a reader's own folder, by whoever reads it."""
    _halve(copy / name)
    if not listed:
        (copy / "MANIFEST.json").unlink()
    with pytest.raises(ValueError, match=f"{Path(name).name}' is damaged: .*") as error:
        load(copy)
    assert "\n" not in str(error.value) and ("bytes, not" in str(error.value)) == listed


def _load_topk(home: Path):
    spec = get_spec("mini")
    sae = replace(spec.sae(), name="z", folder=home / "saes" / "family" / "topk")
    return load_sae(replace(spec, saes={"z": sae}), "z")


def test_the_message_says_how_to_restore_it(tmp_path: Path) -> None:
    """With git, also where the file's whole folder is gone; without, the reader wrote or fetched it."""
    assert "write or fetch it again" in str(files.damaged(tmp_path / "x.json", "it is missing"))
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    kept = tmp_path / "folder" / "x.json"
    kept.parent.mkdir()
    kept.touch()
    subprocess.run(["git", "add", "."], cwd=tmp_path, check=True)
    shutil.rmtree(kept.parent)
    assert str(files.damaged(kept, "it is missing")).endswith(f"`git checkout -- {kept}` restores it")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": 3}', '{"a": {"size": 3}}'])
def test_a_damaged_manifest_names_itself(copy: Path, capsys, content: str) -> None:
    (copy / "MANIFEST.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match="MANIFEST.json' is damaged"):
        load_texts()
    assert cli._doctor_data() == 1 and "MANIFEST.json' is damaged" in capsys.readouterr().out


def test_doctor_compares_every_byte(copy: Path, capsys) -> None:
    assert cli._doctor_data() == 0
    told = capsys.readouterr().out
    assert told.count("\n") == 1 and "each as it was published" in told
    _flip(copy / "corpus" / "sampled.parquet")  # too large to be compared when loaded
    (copy / "texts" / "confirm.jsonl").unlink()
    (copy / "model" / "adapter_config.json").write_text("{}", encoding="utf-8")
    (copy / "texts" / "mine.txt").write_text("my notes", encoding="utf-8")
    for own in ("phase1_activations.safetensors", "cache/x.json", "model/.config.json.12.part", ".DS_Store"):
        (copy / own).parent.mkdir(exist_ok=True)
        (copy / own).touch()
    assert cli._doctor_data() == 3
    lines = capsys.readouterr().out.splitlines()
    assert [
        name in line
        for name, line in zip(
            (
                "sampled.parquet' is damaged: its content",
                "confirm.jsonl' is damaged: it is missing",
                "adapter_config.json' is none of Prism's",
                "not loaded: texts/mine.txt",
            ),
            lines,
            strict=True,
        )
    ] == [True] * 4


def test_without_a_manifest_nothing_is_compared(copy: Path, capsys) -> None:
    (copy / "MANIFEST.json").unlink()
    assert cli._doctor_data() == 0 and "not checked" in capsys.readouterr().out
    assert manifest.intact(copy / "texts" / "nowhere") == copy / "texts" / "nowhere"


def test_what_is_being_made_is_not_compared(copy: Path) -> None:
    _flip(copy / "texts" / "discover.jsonl")
    with manifest.being_made(copy):
        manifest.intact(copy / "texts" / "discover.jsonl")
    with pytest.raises(ValueError):
        manifest.intact(copy / "texts" / "discover.jsonl")


def test_the_command_lists_what_git_tracks(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("PRISM_DATA", "")  # so that what the command sets is taken back
    (tmp_path / "a b.txt").write_text("größe", encoding="utf-8")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "own").touch()
    build(["manifest", "--data", str(tmp_path)])
    listed = json.loads((tmp_path / "MANIFEST.json").read_text(encoding="utf-8"))
    assert list(listed) == ["a b.txt"] and listed["a b.txt"]["size"] == 7
    assert capsys.readouterr().out.endswith("MANIFEST.json\n")
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / "größe").touch()
    subprocess.run(["git", "add", "größe"], cwd=tmp_path, check=True)
    build(["manifest", "--data", str(tmp_path)])
    assert list(json.loads((tmp_path / "MANIFEST.json").read_text(encoding="utf-8"))) == ["größe"]


def test_a_full_disk_names_the_path(tmp_path: Path, monkeypatch) -> None:
    """Whatever is written whole: pages, the index, tables, checkpoints."""

    def full(*arguments, **settings):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="could not write '.*page.html' .No space left on device.; nothing was changed"):
        files.write_text(tmp_path / "page.html", "words")


@pytest.mark.parametrize("error", [SafetensorError("I/O error: No space left"), OSError(28, "No space left")])
def test_a_full_disk_under_tensors_names_the_path_too(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(OSError, match=r"could not write '.*x' \(.*No space left\); nothing was changed"):
        with files.replacing(tmp_path / "x"):
            raise error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "name", "status"),
    [
        (["gallery", "--model", "mini", "--n", "2"], "discover.jsonl", 1),
        (["docs", "--notebooks", "notebooks"], "phase_1_a.ipynb", 2),
    ],
)
def test_a_command_says_it_in_one_line(copy, command, name: str, status: int, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRISM_MODEL", "mini")
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "phase_1_a.ipynb").write_text('{"cells": [], "nbformat', encoding="utf-8")
    _halve(copy / "texts" / "discover.jsonl")
    assert cli.main(command) == status
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("prism: ") and name in said


def test_half_a_checkpoint_of_pretraining_names_itself(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    path.write_bytes((manifest.DATA / "saes" / "1-res" / "sae_weights.safetensors").read_bytes()[:1000])
    with pytest.raises(files.DamagedFile, match="last.safetensors' is damaged"):
        load_checkpoint(path, None, [])


def test_an_error_about_another_file_stays_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"), files.replacing(tmp_path / "file"):
        (tmp_path / "nowhere").read_bytes()


def test_the_corpus_is_compared(copy: Path, monkeypatch) -> None:
    monkeypatch.setitem(data.EMBEDDED, "mini", copy / "corpus" / "sampled.parquet")
    assert len(load_corpus("mini", 3)) == 3
    _halve(copy / "corpus" / "sampled.parquet")
    with pytest.raises(ValueError, match="is damaged: it has"):
        load_corpus("mini")
