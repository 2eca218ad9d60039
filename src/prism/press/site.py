"""The committed notebooks and the documents as a static site: relative links, no server, no network."""

from __future__ import annotations

import functools
import html
import os
import re
import shutil
from pathlib import Path
from urllib.parse import quote, unquote

from nbformat import NotebookNode

from prism.files import replacing, write_text
from prism.press.notebooks import find_notebooks, read_any, title_of
from prism.press.pages import PLOTLY_JS, to_html

GALLERY = "gallery"  # folder of the pages about features
UNAVAILABLE = "unavailable:"  # what a run writes is no part of the site
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


# --- index -----------------------------------------------------------------------------------------------------------


def _index(notebooks: list[Path], documents: list[Path], pages: dict[Path, Path], n_features: int) -> str:
    """The page that links all others."""

    def items(paths: list[Path]) -> str:
        return "\n".join(_item(read_any(path), path.stem, pages[path].as_posix()) for path in paths)

    gallery = f"""<h2>Feature pages</h2>
<ul>
<li><a href="{GALLERY}/index.html">{n_features} features of a model</a>
<p>What each of them fires on, what it writes, and an automatic explanation with its score on other text.</p></li>
</ul>
"""
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Prism</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
:root {{ color-scheme: light dark; --ink: #1d2329; --soft: #5a6169; --link: #0b5cad; --page: #fff; }}
@media (prefers-color-scheme: dark) {{ :root {{ --ink: #e8ebee; --soft: #a5adb6; --link: #7cc0f5; --page: #0d1014; }} }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem;
 color: var(--ink); background: var(--page); }}
ul {{ list-style: none; padding: 0; }} li {{ margin: 0 0 .8rem; }}
li p {{ margin: .1rem 0 0; color: var(--soft); font-size: 14px; }} a {{ color: var(--link); }}
a:focus-visible {{ outline: 3px solid var(--link); outline-offset: 2px; }}
</style></head><body>
<h1>Prism</h1>
<p>A hands-on curriculum that splits a language model's activations into readable features. The notebooks are shown as
they were run, on the model beside each name; to run them yourself, begin with the README, first of the documents.</p>
<h2>Notebooks</h2>
<ul>
{items(notebooks)}
</ul>
{gallery if n_features else ""}<h2>Documents</h2>
<ul>
{items(documents)}
</ul>
</body></html>
"""


def _item(notebook: NotebookNode, stem: str, address: str) -> str:
    """A link with the page's title and, for a notebook that says so, what its reader does and how long it takes."""
    first = notebook.cells[0].source if notebook.cells else ""
    title = html.escape(title_of(notebook, stem).replace("`", ""))
    does, takes = re.search(r"\*\*What you'll do\.\*\* (.+)", first), re.search(r"about [^·]+ on a laptop CPU", first)
    words = re.sub(r"\[(.+?)\]\(.+?\)|[*`]", r"\1", does[1]) if does else ""
    about = f"<p>{html.escape(words)} ({takes[0]})</p>" if does and takes else f"<p>{html.escape(words)}</p>"
    return f'<li><a href="{address}">{title}</a>{about if does else ""}</li>'
