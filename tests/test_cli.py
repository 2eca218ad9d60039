"""The `prism` command on tiny notebooks made here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from hub_fixture import MODEL, RES_JB, make_repos, serve, use_hub, write_cache

from prism import cli, data, hub, models
from prism.press import browser as browsers
from prism.press import notebooks, running

REAL_MODEL_NAME = running.model_name
FIGURE = {
    "data": [{"type": "bar", "x": ["a", "</script><b>"], "y": [1, 2]}],
    "layout": {"title": {"text": "Bars"}},
}


def _write(path: Path, *sources: str, intro: str = "# A title\nSome words.") -> Path:
    new = nbformat.v4
    cells = [new.new_markdown_cell(intro), *(new.new_code_cell(source) for source in sources)]
    nbformat.write(new.new_notebook(cells=cells), path)
    return path


def _show(mime: dict) -> str:
    return f"from IPython.display import display\ndisplay({mime!r}, raw=True)"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder with `notebooks/` and `docs/GLOSSARY.md`; the model's name is not looked up."""
    (tmp_path / "docs").mkdir()
    glossary = '# Glossary\n\n<a id="term"></a>\n### term\n\nA word.\n'
    (tmp_path / "docs" / "GLOSSARY.md").write_text(glossary, encoding="utf-8")
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(running, "model_name", lambda name: name or os.environ.get("PRISM_MODEL", "mini"))
    return tmp_path / "notebooks"


@pytest.fixture
def browser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "find_browser", lambda: "/bin/browser")


def test_phases_come_in_order(folder: Path) -> None:
    for name in ("phase_10_z", "phase_2_b", "phase_6b_d", "phase_6a_c"):
        (folder / f"{name}.ipynb").touch()
    assert [notebooks.phase_of(p) for p in notebooks.find_notebooks(folder)] == ["2", "6a", "6b", "10"]
    assert [notebooks.phase_of(p) for p in notebooks.find_notebooks(folder, ["10", "2"])] == ["2", "10"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "--only", "6"], "no phase '6'; nearest is '6a'"),
        (["execute", "--only", "1,7b"], "no phase '7b'"),
        (["run", "--notebooks", "nowhere"], "no phase_*.ipynb in nowhere"),
    ],
)
def test_unknown_phase_is_one_line(folder: Path, capsys, arguments: list[str], says: str) -> None:
    for name in ("phase_1_a", "phase_6a_c"):
        (folder / f"{name}.ipynb").touch()
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_unknown_model_is_one_line(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notebooks").mkdir()
    _write(tmp_path / "notebooks" / "phase_1_a.ipynb")
    assert cli.main(["run", "--model", "minni"]) == 2
    error = capsys.readouterr().err
    assert "'mini'" in error and error.count("\n") == 1
    assert not (tmp_path / "outputs").exists()


def test_run_writes_pages(folder: Path, capsys) -> None:
    links = "[next](phase_2_b.ipynb#x) [term](../docs/GLOSSARY.md#term) [data](../data/x.txt) [web](https://x.org)"
    figure = _show({notebooks.PLOTLY: FIGURE, "image/png": "iVBORw0KGgo="})
    where = "import os; print(os.environ['PRISM_MODEL'], os.getcwd())"
    first = _write(folder / "phase_1_a.ipynb", where, figure, intro=f"# See bars\n{links}")
    before = first.read_bytes()
    _write(folder / "phase_2_b.ipynb", "print('two')")

    assert cli.main(["run", "--model", "some-model"]) == 0
    out = folder.parent / "outputs" / "run"
    shown = capsys.readouterr().out
    assert "phase_1_a  running" in shown and "phase_2_b  done in" in shown and str(out / "index.html") in shown
    assert first.read_bytes() == before
    names = ["glossary.html", "index.html", "phase_1_a.html", "phase_1_a.ipynb", "phase_2_b.html", "phase_2_b.ipynb"]
    assert sorted(p.name for p in out.iterdir()) == [*names, "plotly.min.js"]

    page = (out / "phase_1_a.html").read_text(encoding="utf-8")
    assert '<script src="plotly.min.js"></script>' in page and page.count("Plotly.newPlot(") == 1
    assert "require.min.js" not in page and "cdnjs" not in page
    assert 'aria-label="Bars. Chart: bars."' in page and 'role="img"' in page
    assert "<\\/script><b>" in page and 'src="data:image/png' not in page
    assert f"some-model {folder}" in page
    for link in ('"phase_2_b.html#x"', '"glossary.html#term"', '"../../data/x.txt"', '"https://x.org"'):
        assert f"href={link}" in page
    index = (out / "index.html").read_text(encoding="utf-8")
    assert '<a href="phase_1_a.html">See bars</a>' in index and "ran to its end" in index and "some-model" in index


def test_the_model_is_the_option_else_the_variable_else_the_readers_default(folder: Path, capsys, monkeypatch) -> None:
    monkeypatch.delenv("PRISM_MODEL", raising=False)
    for phase in "12":
        _write(folder / f"phase_{phase}_x.ipynb", "import os; print(os.environ['PRISM_MODEL'])")

    def ran(*arguments: str) -> list[str]:
        assert cli.main(["run", "--out", "out", *arguments]) == 0
        runs = [nbformat.read(f"out/phase_{phase}_x.ipynb", as_version=4) for phase in "12"]
        return [run.cells[1].outputs[0].text.strip() for run in runs]

    assert ran() == ["mini"] * 2  # where smollm2 was not fetched
    assert "On mini." in Path("out/index.html").read_text(encoding="utf-8")
    assert ran("--model", "gpt2-small") == ["gpt2-small"] * 2
    monkeypatch.setenv("PRISM_MODEL", "mini-small")
    assert ran() == ["mini-small"] * 2
    assert ran("--model", "gpt2-small") == ["gpt2-small"] * 2


def test_failed_notebook_is_shown_and_others_run(folder: Path, capsys) -> None:
    bad = "y = x + 1\nraise ValueError('first\\nthe <last> line')"
    _write(folder / "phase_1_a.ipynb", "x = 1", bad, "print('never')")
    _write(folder / "phase_2_b.ipynb", "print('two')")
    (folder / "phase_3_c.ipynb").write_text("{ this is no notebook", encoding="utf-8")
    assert cli.main(["run"]) == 1
    shown = capsys.readouterr().out
    assert "cell 3, which ends 'raise ValueError" in shown and "ValueError: the <last> line" in shown
    assert "phase_3_c" in shown and "not a readable notebook" in shown and "1 of 3 notebooks" in shown
    index = (folder.parent / "outputs" / "run" / "index.html").read_text(encoding="utf-8")
    assert index.count("<b>failed</b>") == 2 and "the &lt;last&gt; line" in index


def test_dead_kernel_is_a_failure(folder: Path, capsys) -> None:
    _write(folder / "phase_1_a.ipynb", "x = 1", "import os; os._exit(3)")
    assert cli.main(["run"]) == 1
    assert "cell 3, which ends 'import os; os._exit(3)'" in capsys.readouterr().out


def test_kernel_that_does_not_start_stops_no_other_notebook(folder: Path, monkeypatch, capsys) -> None:
    flag = folder.parent / "failed-once"
    launcher = f"""from pathlib import Path
if not Path({str(flag)!r}).exists():
    Path({str(flag)!r}).touch()
    raise SystemExit(3)
from ipykernel import kernelapp
kernelapp.launch_new_instance()
"""
    (folder.parent / "first").mkdir()
    (folder.parent / "first" / "ipykernel_launcher.py").write_text(launcher, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(folder.parent / "first"))
    for name in ("phase_1_a", "phase_2_b"):
        _write(folder / f"{name}.ipynb", "print('here')")
    assert cli.main(["run"]) == 1
    shown = capsys.readouterr().out
    assert "the kernel failed: RuntimeError: Kernel died" in shown and "1 of 2 notebooks" in shown


@pytest.mark.parametrize("out", ["a-file", "a-file/below"])
@pytest.mark.parametrize("command", [["run"], ["site", "--features", "0"]])
def test_folder_that_cannot_be_written_is_one_line(folder: Path, capsys, command: list[str], out: str) -> None:
    _write(folder / "phase_1_a.ipynb")
    (folder.parent / "a-file").touch()
    assert cli.main([*command, "--out", out]) == 1
    error = capsys.readouterr().err
    assert error.startswith("prism: ") and "a-file" in error and error.count("\n") == 1


def test_execute_keeps_clean_outputs(folder: Path, browser, capsys) -> None:
    path = folder / "phase_1_a.ipynb"
    figure = _show({notebooks.PLOTLY: FIGURE, "image/png": "iVBORw0KGgo="})
    widget = _show({notebooks.WIDGET: {"model_id": "1f2e", "version_major": 2}, "text/plain": "VBox()"})
    _write(path, "import os; print(os.environ['PRISM_PNG'])", figure, widget)
    raw = json.loads(path.read_text(encoding="utf-8"))
    raw["cells"][1]["metadata"] = {"execution": {"iopub.status.busy": "2020"}, "tags": ["parameters"]}
    raw["metadata"] = {"kernelspec": {"name": "mine", "display_name": "Mine", "language": "python"}, "widgets": {}}
    path.write_text(json.dumps(raw), encoding="utf-8")

    assert cli.main(["execute"]) == 0
    first = path.read_bytes()
    kept = nbformat.read(path, as_version=4)
    nbformat.validate(kept)
    assert [cell.execution_count for cell in kept.cells[1:]] == [1, 2, 3]
    assert kept.cells[1].metadata == {"tags": ["parameters"]} and kept.cells[1].outputs[0].text == "1\n"
    assert kept.metadata.kernelspec.name == "python3" and "widgets" not in kept.metadata
    assert set(kept.cells[2].outputs[0].data) == {notebooks.PLOTLY, "image/png"}
    assert kept.cells[2].outputs[0].metadata["image/png"]["alt"].startswith("Bars. ")
    assert kept.cells[3].outputs[0].data == {"text/plain": notebooks.WIDGET_NOTE}
    assert cli.main(["execute"]) == 0
    assert path.read_bytes() == first, "a second run changes nothing"
    assert [p.name for p in folder.iterdir()] == ["phase_1_a.ipynb"]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("1 / 0", "ZeroDivisionError"),
        (_show({notebooks.PLOTLY: FIGURE}), "cell 2: figure 'Bars' has no PNG beside it"),
        (
            _show({notebooks.PLOTLY: {"data": [], "layout": {"title": "Big"}}, "image/png": ""}).replace(
                "'data': []", "'data': [{'x': list(range(200_000))}]"
            ),
            "the largest output is in cell 2",
        ),
        (f"print('x' * {notebooks.MAX_BYTES})", "the largest output is in cell 2"),
    ],
)
def test_execute_replaces_all_or_nothing(folder: Path, browser, capsys, source: str, says: str) -> None:
    paths = [_write(folder / "phase_1_a.ipynb", "print('fine')"), _write(folder / "phase_2_b.ipynb", source)]
    before = [path.read_bytes() for path in paths]
    assert cli.main(["execute"]) == 1
    assert [path.read_bytes() for path in paths] == before
    shown = capsys.readouterr()
    assert says in shown.out + shown.err and "nothing was replaced" in shown.err


def test_a_figure_is_put_into_words() -> None:
    axis = {"title": {"text": "share <i>of</i> tokens"}}
    layout = {
        "title": {"text": "What &amp; why.", "subtitle": {"text": "bars: 95 %"}},
        "xaxis": axis,
        "xaxis2": axis,
        "yaxis": {"title": {"text": "L0"}},
        "yaxis2": {"title": {}},
    }
    traces = [
        {"type": "bar", "name": "a"},
        {"mode": "markers", "name": "b"},
        {"name": "c", "showlegend": False},
        {"type": "scatter", "mode": "lines+markers", "name": "a"},
    ]
    assert notebooks.alt_text({"data": traces, "layout": layout}) == (
        "What & why. bars: 95 %. Chart: bars, points, lines. Horizontal axis: share of tokens. Vertical axis: L0. "
        "Series: a, b."
    )
    assert notebooks.alt_text({"data": [{"type": "heatmap"}]}) == "untitled. Chart: heatmap."


def test_execute_without_browser_says_so(folder: Path, monkeypatch, capsys) -> None:
    _write(folder / "phase_1_a.ipynb", "print('fine')")
    monkeypatch.setattr(running, "find_browser", lambda: None)
    assert cli.main(["execute"]) == 1
    assert "needs Chromium or Chrome" in capsys.readouterr().err


def test_browser_path_wins(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path))
    assert browsers.find_browser() == str(tmp_path)
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "none"))
    assert browsers.find_browser() is None


def test_doctor_names_versions_and_models(capsys) -> None:
    cli.main(["doctor"])
    shown = capsys.readouterr().out
    for line in (*cli.packages(), "python", "threads", "embedded models", "embedded SAEs", "hub cache", "browser"):
        assert f"\n{line} " in shown
    assert "mini, mini-llama" in shown


def test_doctor_knows_every_requirement() -> None:
    lines = (Path(cli.__file__).parents[2] / "requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = {line.split("==")[0] for line in lines if "==" in line}
    assert wanted <= {*cli.packages()}, "older than pyproject.toml? then `pip install -e .` once more"


# --- fetch, and what doctor says of the hub --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def repos() -> dict[str, dict[str, bytes]]:
    return make_repos()


@pytest.fixture
def gpt2_only() -> Iterator[None]:
    """A registry without other models from the hub; afterwards as it was, its order too."""
    kept = dict(models.MODELS)
    for name in kept.keys() - {"mini", "gpt2-small"}:
        del models.MODELS[name]
    yield
    models.MODELS.clear()
    models.MODELS.update(kept)


def test_doctor_says_what_is_cached_and_asks_nobody(gpt2_only, repos, tmp_path, monkeypatch, capsys) -> None:
    partial = {name: content for name, content in repos[RES_JB].items() if name.startswith("blocks.6")}
    partial["blocks.8.hook_resid_pre/cfg.json"] = b"{}"
    write_cache(tmp_path, {MODEL: repos[MODEL], RES_JB: partial})
    with serve(repos) as running:
        use_hub(monkeypatch, tmp_path, running.endpoint)
        status = cli.main(["doctor"])
        assert running.requests == []
    lines = {line[:17].strip(): line[18:] for line in capsys.readouterr().out.splitlines()}
    assert lines["hub cache"] == f"{tmp_path} (HF_HUB_OFFLINE is not set)"
    size = sum(len(repos[MODEL][file.filename]) for file in hub._cached_model_files(MODEL)) / 1e6
    assert lines["gpt2-small"] == f"cached ({size:.0f} MB)" and lines["6-res-jb"] == "cached (0 MB)"
    assert lines["8-res-jb"] == lines["10-res-jb"] == lines["6-mlp-out"] == "not cached"
    assert lines["missing"] == "prism fetch gpt2-small (about 1500 MB in all)"
    assert status == 0, "what is missing of the hub is no failure"


def test_doctor_has_nothing_to_fetch_when_all_is_there(gpt2_only, repos, tmp_path, monkeypatch, capsys) -> None:
    write_cache(tmp_path, repos)
    use_hub(monkeypatch, tmp_path)
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    cli.main(["doctor"])
    shown = capsys.readouterr().out
    assert "prism fetch gpt2" not in shown and "not cached" not in shown and "HF_HUB_OFFLINE is set" in shown


def test_fetch_of_the_embedded_model(capsys) -> None:
    assert cli.main(["fetch", "mini"]) == 0
    assert capsys.readouterr().out == "mini is part of this repository; nothing to fetch\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["gpt2"], "did you mean 'gpt2-small'"),
        (["gpt2-small", "--sae", "6-res"], "did you mean '6-res-jb'"),
        (["mini", "--sae", "zzz"], "choose from 2-res"),
    ],
)
def test_fetch_of_something_unknown(capsys, arguments, says) -> None:
    assert cli.main(["fetch", *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_fetch_shows_what_it_got(repos, tmp_path, monkeypatch, capsys) -> None:
    with serve(repos) as running:
        use_hub(monkeypatch, tmp_path, running.endpoint)
        assert cli.main(["fetch", "gpt2-small", "--sae", "6-res-jb", "--no-corpus"]) == 0
        lines = capsys.readouterr().out.splitlines()
        running.requests.clear()
        assert cli.main(["fetch", "gpt2-small", "--sae", "6-res-jb", "--no-corpus"]) == 0
        assert running.requests == []
    assert len(lines) == 7 + 3 + 1 and lines[-1].endswith("MB  in all")
    assert all(" MB  downloaded  verified  " in line for line in lines[:-1])
    assert lines[6].endswith("openai-community/gpt2/model.safetensors")
    again = capsys.readouterr().out.splitlines()
    assert [line.replace("cached    ", "downloaded") for line in again] == lines
    assert not list(tmp_path.glob("*/snapshots/*/blocks.8*"))


def test_fetch_of_everything_includes_the_corpus(repos, tmp_path, monkeypatch, capsys) -> None:
    asked: list[str] = []
    monkeypatch.setattr(data, "load_corpus", asked.append)
    with serve(repos) as running:
        use_hub(monkeypatch, tmp_path, running.endpoint)
        assert cli.main(["fetch", "gpt2-small", "--no-corpus"]) == 0 and asked == []
        assert cli.main(["fetch", "gpt2-small"]) == 0 and asked == ["tinystories"]
    shown = capsys.readouterr().out
    assert all(
        f"/{part}/" in shown for part in ("blocks.6.hook_resid_pre", "blocks.10.hook_resid_pre", "v5_32k_layer_6")
    )


def test_fetch_that_fails_is_one_line(repos, tmp_path, monkeypatch, capsys) -> None:
    with serve({MODEL: repos[MODEL]}) as running:
        use_hub(monkeypatch, tmp_path, running.endpoint)
        assert cli.main(["fetch", "gpt2-small"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"prism: {RES_JB}, file blocks.6.hook_resid_pre/cfg.json: ") and "HTTP 404" in error


def test_fetch_without_a_network_is_one_line(tmp_path, monkeypatch, capsys) -> None:
    use_hub(monkeypatch, tmp_path)
    assert cli.main(["fetch", "gpt2-small"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"prism: {MODEL}, file config.json: ") and error.count("\n") == 1


def test_fetch_that_is_stopped_can_go_on(tmp_path, monkeypatch, capsys) -> None:
    def stop(*args) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(hub, "model_files", stop)
    assert cli.main(["fetch", "gpt2-small"]) == 130
    assert "stopped; `prism fetch gpt2-small` goes on: files that are complete are kept" in capsys.readouterr().err


@pytest.mark.slow
def test_fetch_as_a_command(repos, tmp_path) -> None:
    """`python -m prism fetch`, with the hub and its cache set in the environment."""
    with serve(repos) as running:
        settings = {"HF_HUB_CACHE": str(tmp_path), "HF_ENDPOINT": running.endpoint, "HF_HUB_OFFLINE": "0"}
        command = [sys.executable, "-m", "prism", "fetch", "gpt2-small", "--sae", "6-mlp-out", "--no-corpus"]
        environment = {**os.environ, **settings, "NO_PROXY": "127.0.0.1"}
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("downloaded  verified") == 9


def test_unknown_command_exits_2(capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["rum"])
    assert stop.value.code == 2 and "run" in capsys.readouterr().err


def test_import_is_light() -> None:
    """`import prism`, and the command line itself, do without the libraries that take seconds or may be missing."""
    code = "import sys\nfor name in ('torch', 'sae_lens', 'pandas'): sys.modules[name] = None\nimport prism, prism.cli"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
