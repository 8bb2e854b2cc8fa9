"""A report as Markdown, with its figures as files beside it."""

import re
from collections.abc import Iterator

from experiments.report import blocks
from experiments.report.blocks import Block, Figure, Link, Report

# Characters that begin something in Markdown, and those of HTML.
_MARKS = re.compile(r"([\\`*\[\]|$~])")


def write(report: Report, folder: str) -> str:
    """Returns a report as Markdown.

    Args:
      report: the report.
      folder: the name of the folder of figures, beside the file.
    """
    lines = [f"# {_text(report.title)}", *_blocks(report.lead, folder)]
    contents = [f"- [{_text(s.title)}](#{s.anchor})" for s in report.sections]
    lines += ["## Contents", "\n".join(contents)]
    for section in report.sections:
        lines += [f'<a id="{section.anchor}"></a>', f"## {_text(section.title)}"]
        lines += _blocks(section.blocks, folder)
    return "\n\n".join(line for line in lines if line) + "\n"


def file_name(figure: Figure) -> str:
    """Returns the name of the file of a figure."""
    return f"{figure.name}.{'png' if figure.svg is None else 'svg'}"


def _blocks(parts: tuple[Block, ...], folder: str) -> Iterator[str]:
    for part in parts:
        if isinstance(part, blocks.Details):
            yield f"<details><summary>{_text(part.summary)}</summary>"
            yield from _blocks(part.parts, folder)
            yield "</details>"
        else:
            yield _block(part, folder)


def _block(part: Block, folder: str) -> str:
    match part:
        case blocks.Heading(text):
            return f"### {_text(text)}"
        case blocks.Paragraph(text):
            return _text(text)
        case blocks.Note(text):
            return f"> **Note:** {_text(text)}"
        case blocks.Bullets(items):
            return "\n".join(f"- {_text(item)}" for item in items)
        case blocks.Code(text):
            return _code(text)
        case blocks.Table():
            return _table(part)
        case blocks.Figure():
            place = f"{folder}/{file_name(part)}"
            return f"![{_text(part.alt)}]({place})\n\n*{_text(part.caption)}*"
        case _:
            raise TypeError(f"{type(part).__name__} is no block.")


def _code(text: str) -> str:
    """Lines between fences that are longer than any in the text."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def _table(table: blocks.Table) -> str:
    def line(cells: tuple[str | Link, ...]) -> str:
        return "| " + " | ".join(map(_cell, cells)) + " |"

    rule = "|" + "---|" * len(table.titles)
    caption = f"**{_text(table.caption)}**\n\n" if table.caption else ""
    return caption + "\n".join([line(table.titles), rule, *map(line, table.rows)])


def _cell(cell: str | Link) -> str:
    if isinstance(cell, Link):
        return f"[{_text(cell.text)}](#{cell.anchor})"
    return _text(cell)


def _text(text: str) -> str:
    """The text on one line, with nothing in it that Markdown or HTML would read."""
    flat = _MARKS.sub(r"\\\1", " ".join(text.split()))
    # A text that begins as a list, a heading or a quotation does.
    flat = re.sub(r"^([-+#>]|\d+[.)](?=\s))", r"\\\1", flat)
    return flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
