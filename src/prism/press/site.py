"""The committed notebooks and the documents as a static site: relative links, no server, no network."""

from __future__ import annotations

import functools
import os
import re
import shutil
from pathlib import Path
from urllib.parse import quote, unquote

from prism.files import replacing, write_text
from prism.press.notebooks import find_notebooks, read_any, title_of
from prism.press.pages import PLOTLY_JS, index, to_html

GALLERY = "gallery"  # folder of the pages about features
UNAVAILABLE = "unavailable:"  # what a run writes is no part of the site
_LEAD = (
    "A hands-on curriculum that splits a language model's activations into readable features. The notebooks are shown "
    "as they were run on SmolLM2; to run them yourself, begin with the README, first of the documents."
)
_NAV = "padding: .5rem 1rem; font: 14px system-ui, sans-serif"

_UNAVAILABLE_LINK = re.compile(rf'<a\b[^>]*href="{UNAVAILABLE}[^>]*>(.*?)</a>', re.DOTALL)


def build(notebooks: Path, out: Path, n_features: int = 0) -> list[Path]:
    """Writes a page for each notebook, document and source file that they link, and `index.html`; runs no notebook.

    The pages stand in the same folders as their sources. Other linked files are copied beside them, so that the
    folder may be moved or published as it is. Links to what only a run writes become plain text.

    Args:
        notebooks: folder of the executed notebooks; the documents are looked for in the folder above it.
        out: folder to write.
        n_features: pages about as many features of the default model, made by `gallery.write_gallery`.

    Returns:
        The pages, the index first; without those about features.

    Raises:
        ValueError: there is no notebook, one cannot be read, a link leads nowhere (names the file and the link), or
            the SAE has fewer features; then nothing is written.
    """
    from plotly.offline import get_plotlyjs

    if n_features < 0:
        raise ValueError(f"{n_features} pages about features; give 0 for none, or more, such as 50")
    root = notebooks.resolve().parent
    paths = [path.resolve() for path in find_notebooks(notebooks)]
    documents = _documents(root)
    sources = set(root.glob("src/prism/**/*.py"))
    pages = {path: path.relative_to(root).with_suffix(".html") for path in (*paths, *documents, *sources)}
    copies: set[Path] = set()
    texts = {pages[path]: _page(path, root, pages, copies) for path in (*paths, *documents)}
    texts |= {pages[path]: _page(path, root, pages, copies) for path in sorted(copies & sources)}
    if n_features:
        from prism.explorer.gallery import write_gallery
        from prism.models import get_spec

        spec = get_spec()
        write_gallery(spec, spec.sae(), n_features, out / GALLERY)
    write_text(out / PLOTLY_JS, get_plotlyjs())
    for path in copies - set(pages):
        with replacing(out / path.relative_to(root)) as temporary:
            shutil.copyfile(path, temporary)
    for page, text in texts.items():
        write_text(out / page, text)
    write_text(out / "index.html", _index(paths, documents, pages, n_features))
    return [out / "index.html", *(out / page for page in texts)]


def _documents(root: Path) -> list[Path]:
    """The project's Markdown files, the README first."""
    found = [*root.glob("*.md"), *root.glob("docs/*.md"), *root.glob("data/**/README.md")]
    return sorted(found, key=lambda path: (path != root / "README.md", len(path.parts), path))


def _page(path: Path, root: Path, pages: dict[Path, Path], linked: set[Path]) -> str:
    """One source file as a page; adds the files that it links to `linked`."""
    notebook = read_any(path)
    link = functools.partial(_link, path=path, root=root, pages=pages, linked=linked)
    up = Path(os.path.relpath(root, path.parent)).as_posix()
    page = to_html(notebook, title_of(notebook, path.stem), link, f"{up}/{PLOTLY_JS}")
    note = r'<span title="Written when the notebook is run">\1</span>'
    page = _UNAVAILABLE_LINK.sub(note, page)
    home = f'<nav style="{_NAV}"><a style="color: #0b5cad" href="{up}/index.html">Prism: all pages</a></nav>'
    return re.sub(r"<body[^>]*>", lambda match: f"{match.group()}\n{home}", page, count=1)


def _link(link: str, path: Path, root: Path, pages: dict[Path, Path], linked: set[Path]) -> str:
    """The site's link for a relative link in the file `path`."""
    target = (path.parent / unquote(link)).resolve()
    if target.is_relative_to(root / "outputs"):
        return UNAVAILABLE + link
    if not target.is_file() or not target.is_relative_to(root):
        raise ValueError(f"{path.relative_to(root)} links '{link}', which is no file of the project")
    linked.add(target)
    place = root / pages.get(target, target.relative_to(root))
    return quote(Path(os.path.relpath(place, path.parent)).as_posix())


def _index(notebooks: list[Path], documents: list[Path], pages: dict[Path, Path], n_features: int) -> str:
    """The page that links all others."""
    gallery = {
        "title": f"{n_features} features of a model",
        "page": f"{GALLERY}/index.html",
        "about": "What each fires on, what it writes, and an automatic explanation with its score on other text.",
    }
    sections = {"Notebooks": [_item(path, pages) for path in notebooks]}
    sections |= {"Feature pages": [gallery]} if n_features else {}
    return index(_LEAD, sections | {"Documents": [_item(path, pages) for path in documents]})


def _item(path: Path, pages: dict[Path, Path]) -> dict:
    """A page's title and, of a notebook that says so, what its reader does and how long it takes."""
    notebook = read_any(path)
    first = notebook.cells[0].source if notebook.cells else ""
    does, takes = re.search(r"\*\*What you'll do\.\*\* (.+)", first), re.search(r"about [^·]+ on a laptop CPU", first)
    about = re.sub(r"\[(.+?)\]\(.+?\)|[*`]", r"\1", does[1]) + (f" ({takes[0]})" if takes else "") if does else ""
    title = title_of(notebook, path.stem).replace("`", "")
    return {"title": title, "page": pages[path].as_posix(), "about": about}
