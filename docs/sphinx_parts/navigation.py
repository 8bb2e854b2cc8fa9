"""The order of the pages in the sidebar, and the first page.

GitHub shows a table of contents of Sphinx as code, so pages have none: the root gets
those of ``NAVIGATION`` in ``conf.py``, and a ``README.md`` one of the pages that it
links to in its own folder.
"""

import re
from pathlib import Path

from sphinx.application import Sphinx

_LINK = re.compile(r"\]\(([\w/]+)\.(?:md|ipynb)(?:#[\w-]*)?\)")
# The browser goes on to the first page.
_FIRST_PAGE = """<!doctype html>
<meta charset="utf-8">
<title>{title}</title>
<meta http-equiv="refresh" content="0; url={page}">
<a href="{page}">{title}</a>
"""


def setup(app: Sphinx) -> dict[str, bool]:
    """Adds this part to Sphinx."""
    app.add_config_value("NAVIGATION", {}, "env")
    app.connect("source-read", add_contents)
    app.connect("build-finished", write_first_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def add_contents(app: Sphinx, page: str, source: list[str]) -> None:
    """Adds the pages below a page, and marks pages that are below none."""
    if page == app.config.root_doc:
        tables = [
            contents([_page(app, entry) for entry in entries], caption)
            for caption, entries in app.config.NAVIGATION.items()
        ]
        source[0] += "".join(tables)
    elif page.startswith("experiments/results/") or page.startswith("opnorm/"):
        source[0] = f"---\norphan: true\n---\n\n{source[0]}"
    elif page.endswith("/README"):
        folder = Path(page).parent
        linked = dict.fromkeys(_LINK.findall(source[0]))
        here = [str(folder / name) for name in linked if "/" not in name]
        found = [name for name in here if name in app.env.found_docs and name != page]
        source[0] += contents(found)


def contents(found: list[str], caption: str = "") -> str:
    """Returns a table of contents that only the sidebar shows."""
    title = [f":caption: {caption}"] if caption else []
    lines = [":hidden:", *title, "", *(f"/{name}" for name in found)]
    return "\n\n```{toctree}\n" + "\n".join(lines) + "\n```\n"


def write_first_page(app: Sphinx, failure: Exception | None) -> None:
    """Writes an ``index.html`` that leads to the first page."""
    if failure is None and app.builder.format == "html":
        page = app.builder.get_target_uri(app.config.root_doc)
        text = _FIRST_PAGE.format(title=app.config.html_title, page=page)
        (Path(app.outdir) / "index.html").write_text(text)


def _page(app: Sphinx, entry: str) -> str:
    path = Path(app.srcdir) / entry
    if path.is_dir():
        return f"{entry}/README"
    return entry.removesuffix(path.suffix)
