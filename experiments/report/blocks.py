"""The parts that a report is made of, whatever it is written as.

All texts are plain: the writers of HTML and of Markdown escape them. The results of the
commands as Markdown are read into these parts, too.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Link(NamedTuple):
    """A text that leads to a section of the report.

    Attributes:
      text: the text.
      anchor: the anchor of the section.
    """

    text: str
    anchor: str


class Heading(NamedTuple):
    """A heading below that of the section."""

    text: str


class Paragraph(NamedTuple):
    """A paragraph."""

    text: str


class Note(NamedTuple):
    """A paragraph that must not be passed over."""

    text: str


class Bullets(NamedTuple):
    """A list."""

    items: tuple[str, ...]


class Code(NamedTuple):
    """Lines as they are written."""

    text: str


class Table(NamedTuple):
    """A table.

    Attributes:
      titles: the titles of its columns.
      rows: its cells by row, as many as there are columns.
      caption: the text above it; empty for none.
    """

    titles: tuple[str, ...]
    rows: tuple[tuple[str | Link, ...], ...]
    caption: str = ""


class Figure(NamedTuple):
    """A figure.

    Attributes:
      name: its name as a file, without the ending.
      caption: the text below it.
      alt: the text that stands for it.
      svg: the drawing, with ids that the page has once; None for an image.
      png: the image; None for a drawing.
    """

    name: str
    caption: str
    alt: str
    svg: str | None = None
    png: bytes | None = None


class Details(NamedTuple):
    """Parts that are shown when they are asked for.

    Attributes:
      summary: the text that is always shown.
      parts: the others.
    """

    summary: str
    parts: "tuple[Block, ...]"


Block = Heading | Paragraph | Note | Bullets | Code | Table | Figure | Details


class Section(NamedTuple):
    """A section of a report.

    Attributes:
      anchor: the place that links lead to.
      title: its heading.
      blocks: its content.
    """

    anchor: str
    title: str
    blocks: tuple[Block, ...]


class Report(NamedTuple):
    """A report.

    Attributes:
      title: its heading.
      lead: the parts in front of the table of contents.
      sections: the rest.
    """

    title: str
    lead: tuple[Block, ...]
    sections: tuple[Section, ...]


_RULE = re.compile(r"\|[-:|\s]+\|?")
_HEADING = re.compile(r"(#+)\s+(.*)")
# A bar that is not escaped.
_BAR = re.compile(r"(?<!\\)\|")


def read_markdown(text: str) -> Iterator[Block]:
    """Reads what commands write: headings, paragraphs, lists and tables.

    Emphasis is left out, and so is the title of the whole. Anything else is a
    paragraph, so that no text is an error.

    Args:
      text: Markdown.
    """
    for group in re.split(r"\n\s*\n", text.strip()):
        lines = [line.strip() for line in group.splitlines()]
        while lines and (heading := _HEADING.fullmatch(lines[0])):
            if len(heading[1]) > 1:
                yield Heading(_plain(heading[2]))
            lines = lines[1:]
        if len(lines) > 1 and lines[0].startswith("|") and _RULE.fullmatch(lines[1]):
            yield _table(lines)
        elif lines and all(line.startswith("- ") for line in lines):
            yield Bullets(tuple(_plain(line[2:]) for line in lines))
        elif lines:
            yield Paragraph(_plain(" ".join(lines)))


def _table(lines: Sequence[str]) -> Table:
    titles = _cells(lines[0])
    rows = []
    for line in lines[2:]:
        cells = _cells(line)[: len(titles)]
        rows.append(cells + ("",) * (len(titles) - len(cells)))
    return Table(titles, tuple(rows))


def _cells(line: str) -> tuple[str, ...]:
    return tuple(
        _plain(cell.replace("\\|", "|"))
        for cell in _BAR.split(line.strip().removeprefix("|").removesuffix("|"))
    )


def _plain(text: str) -> str:
    """The text without the marks of emphasis and of code."""
    return re.sub(r"\*\*(.+?)\*\*", r"\1", text.strip()).replace("`", "")
