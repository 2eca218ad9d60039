"""The static site: every link of every page leads somewhere, and nothing is loaded from a network."""

from __future__ import annotations

import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest

from prism import cli
from prism.press import pages, site

ROOT = Path(__file__).resolve().parents[1]
WEB = re.compile(r"(https?:)?//")


class _Page(HTMLParser):
    """What a page links, what it loads, its anchors, and the text of its scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.active = ""
        self._tag = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self._tag = tag
        for name, value in attributes:
            if name in ("href", "src", "xlink:href", "srcset", "data", "poster"):
                (self.links if (tag, name) == ("a", "href") else self.loads).append(value or "")
            elif name in ("id", "name"):
                self.anchors.add(value or "")
            elif name == "style":
                self.active += value or ""

    def handle_endtag(self, tag: str) -> None:
        self._tag = ""

    def handle_data(self, data: str) -> None:
        if self._tag in ("script", "style"):
            self.active += data


@cache
def _read(path: Path) -> _Page:
    return _Page(path.read_text(encoding="utf-8"))


def _problems(out: Path) -> list[str]:
    """Links that lead nowhere and resources of a network, over all pages in the folder."""
    problems = []
    for path in sorted(out.rglob("*.html")):
        page = _read(path)
        problems += [f"{path.name} loads {load}" for load in page.loads if WEB.match(load)]
        problems += [f"{path.name} loads {text}" for text in _loaded_by_code(page.active)]
        local = [link for link in (*page.links, *page.loads) if not re.match(r"[a-zA-Z][\w+.-]*:|//", link)]
        problems += [f"{path.name}: {link}" for link in local if not _leads_somewhere(path, link)]
    return problems


def _loaded_by_code(text: str) -> list[str]:
    """What scripts and styles fetch: `url(…)`, `@import`, `import`, `fetch(…)` of a web address."""
    return re.findall(r"""(?:url\(|@import\s|import\b[^;"'`]*|fetch\()\s*["'`]?(?:https?:)?//[^\s"')]+""", text)


def _leads_somewhere(path: Path, link: str) -> bool:
    file, _, anchor = link.partition("#")
    target = (path.parent / unquote(file)).resolve() if file else path
    if target.suffix == ".html" and anchor:
        return target.is_file() and unquote(anchor) in _read(target).anchors
    return target.is_file()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A small project: two notebooks, documents, a data card, a licence, a source file."""
    files = {
        "README.md": '# P <b>\n\n<a id="x"></a>[n](notebooks/phase_1_a.ipynb) [d](docs/D.md#term) [l](LICENSE)',
        "LICENSE": "free",
        "docs/D.md": '# D\n\n<a id="term"></a>[up](../README.md#x) ![p](p.png) [code](../src/prism/a.py)',
        "docs/p.png": "picture",
        "data/t/README.md": "# Card\n\n[web](https://example.org/a)",
        "src/prism/a.py": 'X = "[no link](nowhere.md) $5$ </script>"\n',
        "src/prism/b.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    new = nbformat.v4
    (tmp_path / "notebooks").mkdir()
    figure = {"application/vnd.plotly.v1+json": {"data": [], "layout": {}}, "image/png": "iVBORw0KGgo="}
    link = '<a href="../outputs/pages/f.html" target="_blank">feature <b>5</b></a>'
    table = {"text/html": link + ' href="<b>x</b>" [a](b)'}
    outputs = [new.new_output("display_data", data) for data in (figure, table)]
    first = [new.new_markdown_cell("# One\n[c](../README.md#x) [next](phase_2_b.ipynb) $x^2$")]
    first.append(new.new_code_cell("raise SystemExit", outputs=outputs))
    nbformat.write(new.new_notebook(cells=first), tmp_path / "notebooks" / "phase_1_a.ipynb")
    does = "**What you'll do.** Find *x* & [y](../docs/D.md#term).\n\nabout 2 minutes on a laptop CPU"
    second = [new.new_markdown_cell(f"# Two\n[term](../docs/D.md#term)\n\n{does}")]
    nbformat.write(new.new_notebook(cells=second), tmp_path / "notebooks" / "phase_2_b.ipynb")
    return tmp_path


def test_pages_mirror_the_project(project: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(project)
    assert cli.main(["site", "--features", "0"]) == 0
    out = project / "outputs" / "site"
    found = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    documents = ["LICENSE", "README.html", "data/t/README.html", "docs/D.html", "docs/p.png", "index.html"]
    assert found == [
        *documents,
        "notebooks/phase_1_a.html",
        "notebooks/phase_2_b.html",
        "plotly.min.js",
        "src/prism/a.html",
    ]
    assert "7 pages. Open " + str(out / "index.html") in capsys.readouterr().out
    assert _problems(out) == []

    page = (out / "notebooks" / "phase_1_a.html").read_text(encoding="utf-8")
    for link in ("../README.html#x", "phase_2_b.html", "../index.html"):
        assert f'href="{link}"' in page
    assert '<script src="../plotly.min.js">' in page and page.count("Plotly.newPlot(") == 1 and "<math" in page
    assert '<span title="Written when the notebook is run">feature <b>5</b></span> href="<b>x</b>" [a](b)' in page
    index = (out / "index.html").read_text(encoding="utf-8")
    assert "P &lt;b&gt;" in index and "Feature pages" not in index
    assert "<p>Find x &amp; y. (about 2 minutes on a laptop CPU)</p>" in index
    assert "[no link](nowhere.md) $5$ &lt;/script&gt;" in (out / "src" / "prism" / "a.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("link", ["docs/NONE.md", "docs", "../elsewhere.md"])
def test_link_that_leads_nowhere_stops_the_build(project: Path, capsys, link: str) -> None:
    (project.parent / "elsewhere.md").write_text("outside", encoding="utf-8")
    (project / "README.md").write_text(f"# P\n[x]({link})", encoding="utf-8")
    assert cli.main(["site", "--notebooks", str(project / "notebooks"), "--out", str(project / "o")]) == 2
    assert f"README.md links '{link}', which is no file of the project" in capsys.readouterr().err
    assert not (project / "o").exists()


def test_code_is_no_link_and_no_formula() -> None:
    fenced = '```python\ny = table[how](value)\n\nprice = "$5$"\n```'
    wrapped = "`a[b](c)\n<a href='d'>` ``e`[f](g)``"
    text = f"{fenced}\n{wrapped} [`name`](target) $x$\n\none ` tick\n\n[h](i) `j`"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)])
    page = pages.to_html(notebook, "t", lambda link: f"to/{link}")
    assert set(re.findall(r'(?<=href=")to/[^"]*', page)) == {"to/target", "to/i"} and page.count("<math") == 1
    assert "a[b](c) &lt;a href=" in page.replace("\n", " ") and "e`[f](g)" in page and "to/value" not in page


def test_links_may_have_spaces_and_titles(project: Path) -> None:
    (project / "docs" / "a b.md").write_text("# A b\n", encoding="utf-8")
    (project / "docs" / "c d.txt").write_text("text", encoding="utf-8")
    readme = '# P\n\n<a id="x"></a>[x](docs/a%20b.md "a title") [y](docs/c%20d.txt)'
    (project / "README.md").write_text(readme, encoding="utf-8")
    out = project / "o"
    site.build(project / "notebooks", out)
    assert 'href="docs/a%20b.html" title="a title"' in (out / "README.html").read_text(encoding="utf-8")
    assert _problems(out) == [] and (out / "docs" / "c d.txt").read_text(encoding="utf-8") == "text"


def test_nothing_is_written_for_more_features_than_there_are(project: Path, capsys) -> None:
    arguments = ["--notebooks", str(project / "notebooks"), "--out", str(project / "o"), "--features", "99999"]
    assert cli.main(["site", *arguments]) == 2
    assert "99,999 pages" in capsys.readouterr().err and not (project / "o").exists()


def test_a_notebook_that_cannot_be_read_is_named(project: Path, capsys) -> None:
    (project / "notebooks" / "phase_2_b.ipynb").write_text("{", encoding="utf-8")
    assert cli.main(["site", "--notebooks", str(project / "notebooks"), "--out", str(project / "o")]) == 2
    assert "phase_2_b.ipynb is not a readable notebook" in capsys.readouterr().err and not (project / "o").exists()


def test_a_copy_that_fails_leaves_the_old_file(project: Path, monkeypatch) -> None:
    def half(source: Path, target: Path) -> None:
        target.write_text("hal", encoding="utf-8")
        raise OSError("disk full")

    out = project / "o"
    site.build(project / "notebooks", out)
    monkeypatch.setattr(site.shutil, "copyfile", half)
    with pytest.raises(OSError, match="disk full"):
        site.build(project / "notebooks", out)
    assert (out / "LICENSE").read_text(encoding="utf-8") == "free"
    assert (out / "docs" / "p.png").read_text(encoding="utf-8") == "picture"
    assert not list(out.rglob(".*.part"))


@pytest.mark.parametrize(
    "body",
    [
        '<script src="https://x.org/a.js"></script>',
        '<img src="//x.org/a.png">',
        '<link rel="stylesheet" href="http://x.org/a.css">',
        "<style>@import 'https://x.org/a.css';</style>",
        '<p style="background: url(https://x.org/a.png)">',
        '<script type="module">import a from "https://x.org/a.mjs";</script>',
        '<a href="none.html">x</a>',
        '<a href="#none">x</a>',
    ],
)
def test_the_check_rejects(tmp_path: Path, body: str) -> None:
    page = f'<p id="there"><a href="https://x.org">web</a> <a href="#there">x</a>{body}'
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    assert len(_problems(tmp_path)) == 1


@pytest.mark.slow
def test_the_site_of_this_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRISM_MODEL", "mini")
    pages = site.build(ROOT / "notebooks", tmp_path, n_features=2)
    names = {path.relative_to(tmp_path).as_posix() for path in pages}
    notebooks = {f"notebooks/{path.stem}.html" for path in (ROOT / "notebooks").glob("phase_*.ipynb")}
    documents = {"README.html", "docs/GLOSSARY.html", "docs/CLAIMS.html", "docs/TEACHING.html"}
    assert notebooks | documents | {"index.html", "data/model/README.html"} <= names
    assert _problems(tmp_path) == []
    linked = {(tmp_path / link).resolve() for link in _read(tmp_path / "index.html").links}
    assert {tmp_path.resolve() / name for name in notebooks | documents | {"gallery/index.html"}} <= linked
    assert len(list((tmp_path / "gallery").glob("mini_2-res_*.html"))) == 2
    index = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert index.count("on a laptop CPU)</p>") == len(notebooks), "each says what its reader does and how long"
    assert "*" not in re.sub(r"<style>.*?</style>", "", index, flags=re.S)


def test_a_negative_number_of_features_is_refused(project: Path, capsys) -> None:
    arguments = ["--notebooks", str(project / "notebooks"), "--out", str(project / "o"), "--features", "-1"]
    assert cli.main(["site", *arguments]) == 2
    assert "-1 pages about features; give 0 for none" in capsys.readouterr().err and not (project / "o").exists()
