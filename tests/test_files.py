"""Files are whole or not there."""

import os
import subprocess
import sys

import pytest

from prism.files import replacing, write_text


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "page.html"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new \ud800")
    assert path.read_text(encoding="utf-8") == "old" and list(tmp_path.iterdir()) == [path]


def test_nothing_shows_before_the_end(tmp_path):
    path = tmp_path / "new" / "folder" / "file"
    with replacing(path) as temporary:
        temporary.write_text("half", encoding="utf-8")
        assert not path.exists() and temporary.parent == path.parent
    assert path.read_text(encoding="utf-8") == "half" and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full")])
def test_what_stops_it_removes_the_half(tmp_path, error):
    path = tmp_path / "file"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(type(error) if isinstance(error, Exception) else error), replacing(path) as temporary:
        temporary.write_text("half", encoding="utf-8")
        raise error
    assert path.read_text(encoding="utf-8") == "old" and list(tmp_path.iterdir()) == [path]


def test_the_explorer_does_not_wait_for_what_it_does_not_use():
    """nbformat builds a grammar of web addresses when it is imported: nine seconds on one machine; and scikit-learn."""
    code = "import sys, prism.explorer.app; sys.exit(bool({'nbformat', 'sklearn'} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_an_ascii_locale_changes_no_file(tmp_path):
    write_text(tmp_path / "cfg.json", '{"text": "Ünïcode 今日は"}')
    code = "import sys; from prism.files import read_json, write_text; write_text('out', read_json('cfg.json')['text'])"
    locale = os.environ | {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, cwd=tmp_path, env=locale)
    assert (tmp_path / "out").read_text(encoding="utf-8") == "Ünïcode 今日は"
