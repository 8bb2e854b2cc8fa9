"""The code of a Markdown page: what runs, what is only compiled, and its commands.

A page is one program: its Python blocks run from top to bottom in one namespace. A
comment above a block says where this differs, and stays invisible to the reader::

    <!-- not run: needs a GPU -->        the block is compiled and not run
    <!-- needs: equinox -->              not run where a package is missing; above the
                                         first block, it is meant for the whole page
    <!-- run with: OLD => NEW -->        the test replaces OLD by NEW, to be small
    <!-- run first                       the lines run before the blocks that follow,
    x, y = make_data()                   such as names that the reader has already
    -->
    <!-- run after                       the same, for assertions on the block above
    assert norms.shape == (4,)
    -->

A Python block that begins with ``>>>`` is a doctest. A block whose first line is a
comment with the name of a file, such as ``# mine.py``, is written to it too.
"""

import re
import shlex
import textwrap
from collections.abc import Iterator
from typing import NamedTuple

_FENCE = re.compile(r"^ *(```+)(\w*)")
_HIDDEN = ("run first", "run after")
_NOTE = re.compile(r"(not run|needs|run with): (.+)", re.DOTALL)
# A command of the project: `opnorm train` or `python -m experiments.train`.
_MODULE = re.compile(r"experiments\.(\w+)")
# A capital word stands for a name of the reader's choice.
_PLACEHOLDER = re.compile(r"[A-Z_]+|\.\.\.")


class Block(NamedTuple):
    """A block of code of a page.

    Attributes:
      language: the word behind the fence, such as "python"; "" if there is none.
      code: its lines, without the indentation of the fence.
      line: the number of its first line of code.
      reason: why it is not run; None if it is.
      needs: packages that it needs.
      replaced: pairs (old, new) of texts that the test replaces.
      hidden: whether readers do not see it, since it is in a comment.
    """

    language: str
    code: str
    line: int
    reason: str | None = None
    needs: tuple[str, ...] = ()
    replaced: tuple[tuple[str, str], ...] = ()
    hidden: bool = False

    @property
    def small(self) -> str:
        """The code as the test runs it.

        Raises:
          ValueError: if a text to replace is not there.
        """
        code = self.code
        for old, new in self.replaced:
            if old not in code:
                raise ValueError(f"line {self.line}: {old!r} is not in the block.")
            code = code.replace(old, new)
        return code


class Command(NamedTuple):
    """A command of the project, as a page shows it."""

    name: str
    arguments: tuple[str, ...]
    line: int
    inline: bool = False


def blocks(text: str) -> list[Block]:
    """Returns the blocks of a page in their order, hidden ones included.

    Raises:
      ValueError: for a fence or a comment that is not closed, and for a comment that
        belongs to no block.
    """
    lines = text.splitlines()
    found: list[Block] = []
    notes: list[tuple[str, str]] = []
    number = 0
    while number < len(lines):
        line = lines[number]
        if fence := _FENCE.match(line):
            ticks, language = fence.groups()
            end = _end(lines, number + 1, lambda s, t=ticks: s.strip() == t)
            code = textwrap.dedent("\n".join(lines[number + 1 : end]))
            found.append(_block(language, code, number + 2, notes))
            notes = []
            number = end
        elif line.lstrip().startswith("<!--"):
            end = _end(lines, number, lambda s: "-->" in s)
            comment = "\n".join(lines[number : end + 1])
            body = comment.split("<!--", 1)[1].rsplit("-->", 1)[0].strip()
            kind, _, code = body.partition("\n")
            if kind.strip() in _HIDDEN:
                found.append(
                    Block("python", textwrap.dedent(code), number + 2, hidden=True)
                )
            elif note := _NOTE.fullmatch(body):
                notes.append((note[1], note[2]))
            number = end
        elif line.strip() and notes:
            raise ValueError(f"line {number + 1}: the comment above has no block.")
        number += 1
    return found


def commands(text: str) -> Iterator[Command]:
    """Yields the commands in the bash blocks and the inline code of a page."""
    shown = blocks(text)
    for block in shown:
        if block.language in ("bash", "sh", "shell") and block.reason is None:
            joined = block.code.replace("\\\n", " " * 2)
            for offset, line in enumerate(joined.splitlines()):
                yield from _in_line(line, block.line + offset)
    prose = re.sub(
        r"^ *```.*?^ *```$|<!--.*?-->",
        lambda hit: "\n" * hit[0].count("\n"),
        text,
        flags=re.DOTALL | re.MULTILINE,
    )
    for hit in re.finditer(r"`([^`]+)`", prose):
        line = " ".join(hit[1].split())
        if re.match(r"opnorm \w|(python -m )?experiments\.\w+ ", line):
            number = prose.count("\n", 0, hit.start()) + 1
            for command in _in_line(line, number):
                yield command._replace(inline=True)


def _block(language: str, code: str, line: int, notes: list[tuple[str, str]]) -> Block:
    reasons = [text for kind, text in notes if kind == "not run"]
    replaced = []
    for kind, text in notes:
        if kind == "run with":
            old, arrow, new = text.partition(" => ")
            if not arrow:
                raise ValueError(f"line {line}: {text!r} must be OLD => NEW.")
            replaced.append((old, new))
    return Block(
        language,
        code,
        line,
        reasons[0] if reasons else None,
        tuple(text for kind, text in notes if kind == "needs"),
        tuple(replaced),
    )


def _end(lines, number, closes) -> int:
    for end in range(number, len(lines)):
        if closes(lines[end]):
            return end
    raise ValueError(f"line {number}: a fence or a comment is not closed.")


def _in_line(line: str, number: int) -> Iterator[Command]:
    """Yields the commands in a line of a shell."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;<>")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if set(word) <= set("&|;<>"):
            yield from _in_words(words, number)
            words = []
        else:
            words.append(word)


def _in_words(words: list[str], number: int) -> Iterator[Command]:
    while words and re.fullmatch(r"\w+=.*", words[0]):
        words = words[1:]
    if words[1:2] == ["-m"] and words[0].endswith("python"):
        words = words[2:]
    if not words:
        return
    if module := _MODULE.fullmatch(words[0]):
        words = ["opnorm", module[1], *words[1:]]
    if words[0].rpartition("/")[2] != "opnorm" or len(words) == 1:
        return
    name, *arguments = words[1:]
    # `opnorm --help` names no command, and `opnorm NAME` stands for all of them.
    if not name.startswith("-") and not _PLACEHOLDER.fullmatch(name):
        yield Command(name, tuple(a for a in arguments if a != "..."), number)
