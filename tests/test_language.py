"""Sentences name their subject first, and one thing has one name, in code and pages.

CONTRIBUTING.md gives the rules for prose; the ones here can be checked by a program.
"""

import ast
import io
import json
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# "Of ..." and "What ..." at the beginning of a sentence that is not a question.
FRAGMENT = re.compile(r"(?:^|[.!?:]\s+|\n\s*\n\s*)((?:Of|What) [^.!?]*(?:[.!]|$))")
# An image of a data set is an image; a drawing of results is a figure.
WORD = re.compile(r"\bpictures?\b", re.IGNORECASE)
# "attacks: every attack by its name".
PREFIX = re.compile(r"^\w+: ")


def documents(folder):
    # Committed results stay as their commands wrote them.
    results = ROOT / "experiments" / "results"
    return sorted(
        path
        for kind in ("*.py", "*.md", "*.ipynb")
        for path in (ROOT / folder).rglob(kind)
        if path.name != Path(__file__).name and results not in path.parents
    )


def findings(path):
    """Lines that break a rule, as ``place: text``."""
    source = path.read_text()
    prose = {".md": page, ".ipynb": notebook, ".py": code}[path.suffix]
    found = []
    for line, text in prose(source):
        for rule in (FRAGMENT, WORD):
            found += [(line, hit.group().strip()) for hit in rule.finditer(text)]
    if path.suffix == ".py":
        head = ast.get_docstring(ast.parse(source)) or ""
        found += [(1, hit.group()) for hit in PREFIX.finditer(head)]
    return [f"{path.relative_to(ROOT)}:{line}: {text[:60]!r}" for line, text in found]


def page(source):
    """The paragraphs of a Markdown page without its code, with their first lines."""
    blank = re.sub(
        r"^```.*?^```$|`[^`\n]*`|\]\([^)]*\)",
        lambda hit: "\n" * hit.group().count("\n"),
        source,
        flags=re.DOTALL | re.MULTILINE,
    )
    line = 1
    for paragraph in re.split(r"(\n\s*\n)", blank):
        yield line, re.sub(r"^[#>*\-|\s]+", "", paragraph)
        line += paragraph.count("\n")


def notebook(source):
    """The text of a notebook, and its docstrings and comments, by number of cell."""
    for number, cell in enumerate(json.loads(source)["cells"], 1):
        markdown = cell["cell_type"] == "markdown"
        text = re.sub(r"^( *)[!%].*$", r"\1pass", "".join(cell["source"]), flags=re.M)
        for _, found in (page if markdown else code)(text):
            yield number, found


def code(source):
    """The docstrings and comments of a file; lines of one comment are joined."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "lineno", 1), re.sub(r"``.*?``", "", text)
    first, last, words = 0, 0, []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        if token.start[0] != last + 1:
            yield first, " ".join(words)
            first, words = token.start[0], []
        last = token.start[0]
        words.append(token.string.lstrip("# "))
    yield first, " ".join(words)


@pytest.mark.parametrize(
    "folder", ["opnorm", "experiments", "scripts", "tests", "docs", "notebooks"]
)
def test_prose_keeps_the_rules(folder):
    found = [finding for path in documents(folder) for finding in findings(path)]
    assert found == [], "\n".join(found)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("Of these, one is kept.", 1),
        ("It ends. What is left is kept.", 1),
        ("What is an attack?", 0),
        ("One of these is what counts.", 0),
        ("A picture.", 1),
    ],
)
def test_the_rules_find_what_they_forbid(text, count):
    sources = (f'"""{text}"""\n', f"x = 1\n# {text}\n")
    for source in sources:
        hits = [
            hit
            for _, prose in code(source)
            for rule in (FRAGMENT, WORD)
            for hit in rule.finditer(prose)
        ]
        assert len(hits) == count
    hits = [hit for _, prose in page(text) for hit in FRAGMENT.finditer(prose)]
    assert len(hits) == count - bool(WORD.search(text))
