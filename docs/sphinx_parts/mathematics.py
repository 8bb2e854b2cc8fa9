"""Formulas as MathML, which browsers show without a script of another host."""

import re

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

_LOGGER = logging.getLogger(__name__)
# Parentheses of MathML grow with their content, and the converter has no fixed sizes.
_SIZE = re.compile(r"\\[bB]igg?(?![a-zA-Z])")


def setup(app: Sphinx) -> dict[str, bool]:
    """Adds this part to Sphinx."""
    app.add_html_math_renderer(
        "mathml", inline_renderers=(inline, None), block_renderers=(displayed, None)
    )
    app.config.html_math_renderer = "mathml"
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def inline(translator: HTML5Translator, node: nodes.math) -> None:
    """Writes a formula in a line."""
    translator.body.append(convert(node, as_block=False))
    raise nodes.SkipNode


def displayed(translator: HTML5Translator, node: nodes.math_block) -> None:
    """Writes a formula of its own."""
    formula = convert(node, as_block=True)
    translator.body.append(f'<div class="formula">{formula}</div>\n')
    raise nodes.SkipNode


def convert(node: nodes.math | nodes.math_block, *, as_block: bool) -> str:
    """Returns the MathML of a formula; a warning names one that cannot be read."""
    try:
        return tex2mathml(_SIZE.sub("", node.astext()), as_block=as_block)
    except (MathError, AttributeError) as error:
        _LOGGER.warning("formula %r: %s", node.astext(), error, location=node)
        return f"<code>{node.astext()}</code>"
