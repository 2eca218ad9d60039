"""Files are whole or not there."""

import subprocess
import sys

import pytest

from prism.files import replacing, write_text


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "page.html"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new \ud800")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_nothing_shows_before_the_end(tmp_path):
    path = tmp_path / "new" / "folder" / "file"
    with replacing(path) as temporary:
        temporary.write_text("half")
        assert not path.exists() and temporary.parent == path.parent
    assert path.read_text() == "half" and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full")])
def test_what_stops_it_removes_the_half(tmp_path, error):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(type(error) if isinstance(error, Exception) else error), replacing(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_the_explorer_does_not_wait_for_what_it_does_not_use():
    """nbformat builds a grammar of web addresses when it is imported: nine seconds on one machine."""
    code = "import sys, prism.app; sys.exit('nbformat' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
