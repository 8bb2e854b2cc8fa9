"""A report as one HTML page that needs nothing else."""

import base64
import html
import re
import struct
from collections.abc import Iterable

from experiments.report import blocks, style
from experiments.report.blocks import Block, Figure, Link, Report, Table

# A cell that holds a number, perhaps with its error or several of them, or none.
_NUMBER = re.compile(r"[-+±]?(\d|inf\b|nan\b).*|-?")

_WIDTH = re.compile(r'<svg [^>]*?width="([0-9.]+)pt"')
# Larger than in print, where text has 8 points.
_PIXELS_PER_POINT = 1.6
_FALLBACK_WIDTH = 640.0


def write(report: Report) -> str:
    """Returns a report as HTML."""
    contents = "\n".join(
        f'<li><a href="#{_attribute(section.anchor)}">{_text(section.title)}</a></li>'
        for section in report.sections
    )
    sections = "\n".join(
        f'<section aria-labelledby="{_attribute(section.anchor)}">\n'
        f'<h2 id="{_attribute(section.anchor)}">{_text(section.title)}</h2>\n'
        f"{_blocks(section.blocks)}\n"
        f'<p class="up"><a href="#contents">Contents</a></p>\n</section>'
        for section in report.sections
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{style.POLICY}">
<title>{_text(report.title)}</title>
<style>
{style.CSS}</style>
</head>
<body>
<header>
<h1>{_text(report.title)}</h1>
{_blocks(report.lead)}
</header>
<nav aria-labelledby="contents">
<h2 id="contents">Contents</h2>
<ol>
{contents}
</ol>
</nav>
<main>
{sections}
</main>
</body>
</html>
"""


def file_svg(svg: str) -> bytes:
    """Returns a drawing as a file of its own, on white."""
    return svg.replace("<svg ", '<svg style="background: #fff" ', 1).encode()


def _blocks(parts: Iterable[Block]) -> str:
    return "\n".join(map(_block, parts))


def _block(part: Block) -> str:
    match part:
        case blocks.Heading(text):
            return f"<h3>{_text(text)}</h3>"
        case blocks.Paragraph(text):
            return f"<p>{_text(text)}</p>"
        case blocks.Note(text):
            return (
                f'<p class="note" role="note"><strong>Note.</strong> {_text(text)}</p>'
            )
        case blocks.Bullets(items):
            lines = "\n".join(f"<li>{_text(item)}</li>" for item in items)
            return f"<ul>\n{lines}\n</ul>"
        case blocks.Code(text):
            return f"<pre><code>{_text(text)}</code></pre>"
        case blocks.Table():
            return _table(part)
        case blocks.Figure():
            return _figure(part)
        case blocks.Details(summary, inner):
            return (
                f"<details>\n<summary>{_text(summary)}</summary>\n"
                f"{_blocks(inner)}\n</details>"
            )
        case _:
            raise TypeError(f"{type(part).__name__} is no block.")


def _table(table: Table) -> str:
    columns = list(zip(*table.rows, strict=True)) or [()] * len(table.titles)
    numeric = [all(map(_is_number, column)) for column in columns]
    kinds = [' class="number"' if each else "" for each in numeric]
    titles = "".join(
        f'<th scope="col"{kind}>{_text(title)}</th>'
        for title, kind in zip(table.titles, kinds, strict=True)
    )
    rows = []
    for cells in table.rows:
        first, *rest = (
            f"{kind}>{_cell(cell)}" for cell, kind in zip(cells, kinds, strict=True)
        )
        others = "".join(f"<td{cell}</td>" for cell in rest)
        rows.append(f'<tr><th scope="row"{first}</th>{others}</tr>')
    caption = f"<caption>{_text(table.caption)}</caption>\n" if table.caption else ""
    label = _attribute(table.caption or f"table of {table.titles[0] or 'results'}")
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{label}">\n'
        f"<table>\n{caption}<thead><tr>{titles}</tr></thead>\n"
        f"<tbody>\n{chr(10).join(rows)}\n</tbody>\n</table>\n</div>"
    )


def _is_number(cell: str | Link) -> bool:
    return isinstance(cell, str) and _NUMBER.fullmatch(cell) is not None


def _cell(cell: str | Link) -> str:
    if isinstance(cell, Link):
        return f'<a href="#{_attribute(cell.anchor)}">{_breakable(cell.text)}</a>'
    return _breakable(cell)


def _breakable(text: str) -> str:
    """The text, with places to break a long name of a folder or a network."""
    return re.sub(r"([/_])(?=\w)", r"\1<wbr>", _text(text))


def _figure(figure: Figure) -> str:
    if figure.svg is not None:
        found = _WIDTH.search(figure.svg)
        width = float(found[1]) * _PIXELS_PER_POINT if found else _FALLBACK_WIDTH
        drawing = (
            f'<div class="drawing" style="--width: {width:.0f}px" role="img" '
            f'aria-label="{_attribute(figure.alt)}">{figure.svg}</div>'
        )
    else:
        png = figure.png or b""
        width, height = struct.unpack(">II", png[16:24])
        drawing = (
            f'<img src="data:image/png;base64,{base64.b64encode(png).decode()}" '
            f'alt="{_attribute(figure.alt)}" width="{width}" height="{height}">'
        )
    return (
        f'<figure>\n<div class="wide" role="region" tabindex="0" '
        f'aria-label="figure: {_attribute(figure.caption)}">{drawing}</div>\n'
        f"<figcaption>{_text(figure.caption)}</figcaption>\n</figure>"
    )


def _text(text: str) -> str:
    return html.escape(text, quote=False)


def _attribute(text: str) -> str:
    return html.escape(" ".join(text.split()))
