"""The committed notebooks and the documents as a static site: relative links, no server, no network."""

from __future__ import annotations

import functools
import html
import os
import re
import shutil
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from prism.notebooks import find_notebooks, title_of, to_html, write_atomically

PLOTLY_JS = "plotly.min.js"
UNAVAILABLE = "unavailable:"  # what a run writes is no part of the site
_NAV = "padding: .5rem 1rem; font: 14px system-ui, sans-serif"

_UNAVAILABLE_LINK = re.compile(rf'<a\b[^>]*href="{UNAVAILABLE}[^>]*>(.*?)</a>', re.DOTALL)


def build(notebooks: Path, out: Path) -> list[Path]:
    """Writes a page for each notebook, document and source file that they link, and `index.html`; executes nothing.

    The pages stand in the same folders as their sources. Other linked files are copied beside them, so that the
    folder may be moved or published as it is. Links to what only a run writes become plain text.

    Args:
        notebooks: folder of the executed notebooks; the documents are looked for in the folder above it.
        out: folder to write.

    Returns:
        The pages, the index first.

    Raises:
        ValueError: there is no notebook, or a link leads nowhere; names the file and the link.
    """
    from plotly.offline import get_plotlyjs

    root = notebooks.resolve().parent
    paths = [path.resolve() for path in find_notebooks(notebooks)]
    documents = _documents(root)
    sources = sorted({*root.glob("src/prism/**/*.py")})
    pages = {path: path.relative_to(root).with_suffix(".html") for path in (*paths, *documents, *sources)}
    copies: set[Path] = set()
    texts = {}
    for path in (*paths, *documents):
        texts[pages[path]] = _page(path, root, pages, copies)
    for path in sorted(copies & set(sources)):
        texts[pages[path]] = _page(path, root, pages, copies)
    write_atomically(out / PLOTLY_JS, get_plotlyjs())
    for path in copies - set(pages):
        _copy(path, out / path.relative_to(root))
    for page, text in texts.items():
        write_atomically(out / page, text)
    write_atomically(out / "index.html", _index(paths, documents, pages))
    return [out / "index.html", *(out / page for page in texts)]


def _documents(root: Path) -> list[Path]:
    """The project's Markdown files, the README first."""
    found = [*root.glob("*.md"), *root.glob("docs/*.md"), *root.glob("data/**/README.md")]
    return sorted(found, key=lambda path: (path != root / "README.md", len(path.parts), path))


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _page(path: Path, root: Path, pages: dict[Path, Path], linked: set[Path]) -> str:
    """One source file as a page; adds the files that it links to `linked`."""
    notebook = _as_notebook(path)
    link = functools.partial(_link, path=path, root=root, pages=pages, linked=linked)
    up = Path(os.path.relpath(root, path.parent)).as_posix()
    page = to_html(notebook, title_of(notebook, path.stem), link, f"{up}/{PLOTLY_JS}")
    note = r'<span title="Written when the notebook is run">\1</span>'
    page = _UNAVAILABLE_LINK.sub(note, page)
    home = f'<nav style="{_NAV}"><a style="color: #0b5cad" href="{up}/index.html">Prism: all pages</a></nav>'
    return re.sub(r"<body[^>]*>", lambda match: f"{match.group()}\n{home}", page, count=1)


def _as_notebook(path: Path) -> NotebookNode:
    """A notebook as it is; a document, or a source file under its name, as a new notebook."""
    new = nbformat.v4
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        return nbformat.reads(text, as_version=4)
    if path.suffix == ".py":
        return new.new_notebook(cells=[new.new_markdown_cell(f"# {path.name}"), new.new_code_cell(text)])
    return new.new_notebook(cells=[new.new_markdown_cell(text)])


def _link(link: str, path: Path, root: Path, pages: dict[Path, Path], linked: set[Path]) -> str:
    """The site's link for a relative link in the file `path`."""
    target = (path.parent / link).resolve()
    if target.is_relative_to(root / "outputs"):
        return UNAVAILABLE + link
    if not target.is_file() or not target.is_relative_to(root):
        raise ValueError(f"{path.relative_to(root)} links '{link}', which is no file of the project")
    linked.add(target)
    place = root / pages.get(target, target.relative_to(root))
    return Path(os.path.relpath(place, path.parent)).as_posix()


# --- index -----------------------------------------------------------------------------------------------------------


def _index(notebooks: list[Path], documents: list[Path], pages: dict[Path, Path]) -> str:
    """The page that links all others."""

    def items(paths: list[Path]) -> str:
        titles = [html.escape(title_of(_as_notebook(path), path.stem).replace("`", "")) for path in paths]
        links = [pages[path].as_posix() for path in paths]
        return "\n".join(f'<li><a href="{a}">{title}</a></li>' for a, title in zip(links, titles, strict=True))

    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Prism</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.6 system-ui, sans-serif; max-width: 50rem; margin: 2rem auto; padding: 0 1rem; }}
</style></head><body>
<h1>Prism</h1>
<p>A hands-on curriculum that splits a language model's activations into readable features. The notebooks are shown as
they were run on the embedded model; to run them yourself, begin with the first document, the README.</p>
<h2>Notebooks</h2>
<ul>
{items(notebooks)}
</ul>
<h2>Documents</h2>
<ul>
{items(documents)}
</ul>
</body></html>
"""
