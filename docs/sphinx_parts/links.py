"""Links that GitHub resolves by the tree of files, and names in inline code.

A link to a folder leads to the ``README.md`` in it; a folder without one has no page
here, so its name is shown without a link. A name of the library in inline code, such as
``attacks.pga``, is a link to its place in the API.
"""

import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

from sphinx_parts import api

_NAME = re.compile(rf"(?:opnorm\.)?(?:{'|'.join(api.ROOMS)})(?:\.\w+)+|opnorm\.network")
# A link of Markdown to another place than a host or a heading.
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(((?!\w+:)[^)#\s]+)\)")


def setup(app: Sphinx) -> dict[str, bool]:
    """Adds this part to Sphinx."""
    app.connect("source-read", resolve_folders)
    app.add_transform(LinkedNames)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def resolve_folders(app: Sphinx, page: str, source: list[str]) -> None:
    """Gives links to folders a page, or shows them as text."""
    folder = (Path(app.srcdir) / page).parent

    def replace(found: re.Match[str]) -> str:
        text, target = found.groups()
        if not (folder / target).is_dir():
            return found[0]
        if (folder / target / "README.md").exists():
            return f"[{text}]({target.rstrip('/')}/README.md)"
        return text

    if str(app.env.doc2path(page)).endswith(".md"):
        source[0] = _LINK.sub(replace, source[0])


class LinkedNames(SphinxTransform):
    """Makes inline code that names a part of the library a link to it."""

    default_priority = 400

    def apply(self, **options: Any) -> None:
        """Changes the document."""
        del options
        for code in list(self.document.findall(nodes.literal)):
            name = code.astext().partition("(")[0]
            if _NAME.fullmatch(name):
                full = f"opnorm.{name.removeprefix('opnorm.')}"
                if api.is_promised(full):
                    self._link(code, full)

    def _link(self, code: nodes.literal, name: str) -> None:
        gone = self.env.docname == "CHANGELOG"
        if gone or isinstance(code.parent, nodes.reference | addnodes.pending_xref):
            return
        reference = addnodes.pending_xref(
            "",
            code.deepcopy(),
            refdomain="py",
            reftype="obj",
            reftarget=name,
            refdoc=self.env.docname,
        )
        code.replace_self(reference)
