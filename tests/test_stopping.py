"""Stopping: one line, the right exit status, within two seconds, with nothing left; `stopping_moments.py` has more."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from stopping_moments import stop, write_notebooks

from prism import cli, files, stopping
from prism.press import notebooks, running

BEGIN = "import os, time\nfrom prism import stopping\nstopping.listen()\n"
LIMIT = 2.0  # s


def _script(source: str, **how):
    """Runs some lines behind `listen()`; they print 'ready' when they may be stopped."""
    return stop([sys.executable, "-c", BEGIN + source], "ready", **how)


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_one_line_and_the_status_of_the_signal(name: str, status: int) -> None:
    told = _script("print('ready')\ntime.sleep(60)", how=getattr(signal, name), group=False)
    assert (told.status, told.out.strip(), told.err) == (status, "ready", "prism: stopped\n") and told.seconds < LIMIT


def test_a_signal_that_nohup_turned_off_stays_off() -> None:
    source = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + BEGIN
    told = stop(
        [sys.executable, "-c", f"{source}print('ready')\ntime.sleep(0.5)\nprint('done')"], "ready", how=signal.SIGHUP
    )
    assert (told.status, told.out) == (0, "ready\ndone\n")


def test_pressed_three_times() -> None:
    source = "with stopping.at_stop(lambda: time.sleep(0.3) or 'kept'):\n print('ready')\n time.sleep(60)"
    told = _script(source, times=3)
    assert (told.status, told.err) == (130, "prism: stopped; kept\n") and told.seconds < LIMIT


WAITS = {
    "a long operation": "import hashlib\nprint('ready')\nhashlib.pbkdf2_hmac('sha256', b'', b'', 100_000_000)",
    "a matrix product": "import numpy as np\nx = np.random.rand(4000, 4000)\nprint('ready')\nwhile True: x @ x",
    "a thread that waits": "import threading\nprint('ready')\nthreading.Thread(target=time.sleep, args=(60,)).start()",
    "what catches everything": "print('ready')\nwhile True:\n try: time.sleep(60)\n except BaseException: pass",
    "an event loop": "import asyncio\nprint('ready')\nasyncio.run(asyncio.sleep(60))",
    "an import": "import sys\nsys.path.insert(0, {tmp!r})\nimport slow",
    "a destructor": "class X:\n def __del__(self):\n  print('ready')\n  time.sleep(60)\nX()",
    "threads that work": "import threading\ndef work():\n while True: pass\n"
    "for _ in range(4): threading.Thread(target=work).start()"
    "\nprint('ready')\ntime.sleep(60)",
}


@pytest.mark.parametrize("source", WAITS.values(), ids=WAITS)
def test_whatever_it_is_about(source: str, tmp_path: Path) -> None:
    slow = "import time\nprint('ready')\ntry:\n time.sleep(60)\nexcept BaseException: pass"
    (tmp_path / "slow.py").write_text(slow, encoding="utf-8")
    told = _script(source.replace("{tmp!r}", repr(str(tmp_path))))
    assert (told.status, told.err, told.left) == (130, "prism: stopped\n", []) and told.seconds < LIMIT


def test_a_last_act_that_hangs_is_not_waited_for() -> None:
    told = _script("with stopping.at_stop(lambda: time.sleep(60)):\n print('ready')\n time.sleep(60)")
    assert told.status == 130 and told.seconds < LIMIT


def test_a_last_act_that_fails_hinders_nothing() -> None:
    source = "with stopping.at_stop(lambda: 'kept'), stopping.at_stop(lambda: 1 / 0):\n print('ready')\n time.sleep(60)"
    assert _script(source).err == "prism: stopped; kept\n"


def test_a_progress_bar_ends_first() -> None:
    told = _script("from tqdm import tqdm\nfor _ in tqdm(range(9), desc='bar'):\n print('ready')\n time.sleep(60)")
    assert told.err.startswith("\rbar:") and told.err.splitlines()[-1] == "prism: stopped"


def test_half_a_file_is_removed_and_the_old_one_stays(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old", encoding="utf-8")
    source = f"""from prism.files import replacing
with replacing({str(path)!r}) as temporary:
 temporary.write_text('new')
 print('ready')
 time.sleep(60)"""
    told = _script(source, how=signal.SIGTERM)
    assert told.status == 143 and path.read_text(encoding="utf-8") == "old" and list(tmp_path.iterdir()) == [path]


def test_processes_that_it_started_end_and_say_nothing() -> None:
    """Those of their own session, and a pool's; a forked one that is ended does not end its parent."""
    source = """import subprocess, sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
command = [sys.executable, '-c', 'import subprocess, sys; subprocess.run([sys.executable, "-c", "input()"])']
with ProcessPoolExecutor(1, get_context('spawn')) as pool, stopping.ending_children():
 with stopping.deaf():
  pool.submit(time.sleep, 60)
 subprocess.Popen(command, start_new_session=True, stdin=subprocess.PIPE)
 if (child := os.fork()) == 0:
  time.sleep(60)
  os._exit(0)
 time.sleep(0.2)
 os.kill(child, 15)
 assert os.waitpid(child, 0)[1] == 15
 time.sleep(1.5)
 print('ready')
 time.sleep(60)"""
    for how, group in ((signal.SIGINT, True), (signal.SIGTERM, False)):
        told = _script(source, how=how, group=group)
        assert (told.status, told.err, told.left) == (128 + how, "prism: stopped\n", []) and told.seconds < LIMIT


@pytest.mark.slow
def test_a_run_keeps_what_is_done_and_begins_nothing(tmp_path: Path) -> None:
    """Its kernel, and what that started, ends; the notebook under way has not failed."""
    begun = tmp_path / "begun"
    wait = f"""import subprocess, time
subprocess.Popen(['sleep', '600'], start_new_session=True)
open({str(begun)!r}, 'w').close()
time.sleep(600)"""
    write_notebooks(tmp_path / "notebooks", "print('one')", wait, f"open({str(tmp_path / 'third')!r}, 'w')")
    (tmp_path / "tmp").mkdir()
    environment = {"PRISM_MODEL": "mini", "TMPDIR": str(tmp_path / "tmp")}
    told = stop([sys.executable, "-m", "prism", "run"], begun.exists, cwd=tmp_path, env=environment)
    out = tmp_path / "outputs" / "run"
    assert told.err == f"prism: stopped; 1 of 3 notebooks ran, see {out / 'index.html'}\n"
    assert (told.status, told.left) == (130, []) and told.seconds < LIMIT and "FAILED" not in told.out
    index = (out / "index.html").read_text(encoding="utf-8")
    assert "The run was stopped: 1 of 3 notebooks ran." in index and "failed" not in index
    assert "phase_1_a.html" in index and "phase_2_a" not in index and not (tmp_path / "third").exists()
    assert not list((tmp_path / "tmp").glob("*.json")) and not list(out.glob(".*"))


@pytest.mark.parametrize(
    "command",
    [
        ["-m", "prism", "run"],
        ["-m", "prism", "app"],
        ["-m", "prism.build", "saes", "--corpus", "."],
        ["-c", "from prism.cli import main; main()", "docs"],
    ],
    ids=lambda words: words[1] if len(words) > 2 else "run",
)
def test_while_it_imports(command: list[str], tmp_path: Path) -> None:
    """At the first import of something large, for every way to start a command."""
    (tmp_path / "notebooks").mkdir()
    slow = "import time\nprint('ready', flush=True)\ntime.sleep(60)"
    for name in ("torch", "nbformat", "gradio", "numpy"):
        (tmp_path / f"{name}.py").write_text(slow, encoding="utf-8")
    told = stop([sys.executable, *command], "ready", cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)})
    assert (told.status, told.err.count("\n")) == (130, 1) and told.err.startswith("prism: stopped")


# --- in one process: what is kept where a KeyboardInterrupt comes from elsewhere --------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    write_notebooks(tmp_path / "notebooks", "1", "2")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(running, "model_name", lambda name: name or "mini")
    monkeypatch.setattr(running, "find_browser", lambda: "/bin/browser")
    return tmp_path


def _ran(path: Path, *rest) -> running.Run:
    return running.Run(path, "A title", notebooks.read(path), 1.0)


def _at_the_second(act):
    """`act(path, ...)`, but an interrupt where it comes to the second notebook."""

    def run(path: Path, *rest):
        if path.name.startswith("phase_2"):
            raise KeyboardInterrupt
        return act(path, *rest)

    return run


def test_an_interrupted_run(folder: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(running, "run_notebook", _at_the_second(_ran))
    assert cli.main(["run"]) == 130
    assert "prism: stopped; 1 of 2 notebooks ran" in capsys.readouterr().err
    assert "The run was stopped" in (folder / "outputs" / "run" / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("replaced", [0, 1])
def test_an_interrupted_execute_says_what_it_replaced(replaced: int, folder: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(running, "run_notebook", _ran if replaced else _at_the_second(_ran))
    monkeypatch.setattr(running, "write_text", _at_the_second(files.write_text))
    assert cli.main(["execute"]) == 130
    assert f"prism: stopped; {replaced} of 2 notebooks were replaced" in capsys.readouterr().err


def test_acts_are_forgotten_when_their_block_ends(tmp_path: Path) -> None:
    before = list(stopping._pending)
    files.write_text(tmp_path / "x", "y")
    with pytest.raises(KeyError), stopping.at_stop(os.getpid):
        raise KeyError
    assert stopping._pending == before
