"""The pages of the documentation: links, names, indexes, and code that runs.

``tests/support/pages.py`` says how a page marks code that cannot run here. The tests
under the marker ``docs`` run whole pages and are not in the default set.
"""

import dataclasses
import importlib
import importlib.util
import json
import re
from pathlib import Path

import pytest

from experiments.__main__ import commands as known_commands
from tests.support import forking, pages, run_page

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
FRONT = sorted(ROOT.glob("*.md"))
DOCUMENTS = [*FRONT, *sorted(DOCS.rglob("*.md")), ROOT / "experiments" / "README.md"]
if (ROOT / "notebooks" / "README.md").exists():
    DOCUMENTS.append(ROOT / "notebooks" / "README.md")
ROOMS = sorted(path.parent.name for path in (ROOT / "opnorm").glob("*/__init__.py"))
# "data.md" names a file, `metrics.jsonl` too.
FILES = {"json", "jsonl", "md", "npz", "pkl", "png", "py", "safetensors", "txt"}


def relative(path):
    return str(path.relative_to(ROOT))


def with_code(path):
    return any(
        block.language == "python" and not block.hidden
        for block in pages.blocks(path.read_text())
    )


@pytest.fixture(scope="module")
def forked(serve, tmp_path_factory):
    """``(module, *arguments) -> (exit code, stdout, stderr)`` of a process."""
    ask = serve(forking.BINARIES)

    def forked(module, *arguments):
        folder = tmp_path_factory.mktemp("page")
        process = forking.Forked(
            ask,
            folder,
            module=module,
            arguments=arguments,
            devices=1,
            constants={},
            cwd=str(folder),
        )
        out, err = process.communicate()
        return process.returncode, out, err

    return forked


@pytest.mark.docs
@pytest.mark.parametrize("path", list(filter(with_code, DOCUMENTS)), ids=relative)
def test_the_code_of_a_page_runs(path, forked):
    code, out, err = forked("tests.support.run_page", str(path))
    if code == run_page.SKIPPED:
        pytest.skip(err.strip())
    assert code == 0, out + err


@pytest.mark.docs
def test_commands_have_the_flags_that_pages_give_them(forked):
    lines = {}
    for path in DOCUMENTS:
        for command in pages.commands(path.read_text()):
            lines.setdefault(command.name, []).append((path, command))
    assert sum(map(len, lines.values())) > 50
    wrong = []
    for name, found in lines.items():
        errors = [f"{name} is no command"] * len(found)
        if name in known_commands():
            given = json.dumps([command.arguments for _, command in found])
            code, out, err = forked("tests.support.parse_flags", name, given)
            assert code == 0, err
            errors = json.loads(out.splitlines()[-1])
        for (path, command), error in zip(found, errors, strict=True):
            # A sentence may name a flag without a value: `opnorm evaluate --targets`.
            named = command.inline and "Missing value for flag" in str(error)
            if error and not named:
                wrong.append(f"{relative(path)}:{command.line}: {name}: {error}")
    assert wrong == [], "\n".join(wrong)


@pytest.mark.docs
def test_wrong_code_and_wrong_flags_are_found(forked, tmp_path):
    page = tmp_path / "page.md"
    for code in ("1 / 0", ">>> 1 + 1\n3"):
        page.write_text(f"```python\n{code}\n```\n")
        assert forked("tests.support.run_page", str(page))[0] == 1
    page.write_text("```python\n>>> 1 + 1\n2\n```\n")
    assert forked("tests.support.run_page", str(page))[0] == 0
    page.write_text("<!-- needs: missing_package -->\n```python\n1 / 0\n```\n")
    assert forked("tests.support.run_page", str(page))[0] == run_page.SKIPPED
    lines = [["--p=2"], ["--no_such_flag=1"], ["--preset=none_such"], ["--method=?"]]
    code, out, err = forked("tests.support.parse_flags", "train", json.dumps(lines))
    assert code == 0, err
    assert [error is None for error in json.loads(out)] == [True, False, False, False]


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_blocks_can_be_read(path):
    for block in pages.blocks(path.read_text()):
        if block.language == "json":
            json.loads(block.code)
        if block.language == "python" and not block.code.startswith(">>> "):
            compile(block.small, f"{path}:{block.line}", "exec")


# The list of changes has names that are gone.
PRESENT = [path for path in DOCUMENTS if path.name != "CHANGELOG.md"]


@pytest.mark.parametrize("path", PRESENT, ids=relative)
def test_names_of_the_library_are_there(path):
    missing = [name for name in names(path.read_text()) if not is_there(name)]
    assert missing == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_links_lead_to_files_and_headings(path):
    broken = [link for link in links(path.read_text()) if not resolves(link, path)]
    assert not broken


@pytest.mark.parametrize(
    "folder", [p.parent.name for p in sorted(DOCS.glob("*/README.md"))]
)
def test_every_page_is_in_its_index(folder):
    index = DOCS / folder / "README.md"
    listed = {link.partition("#")[0] for link in links(index.read_text())}
    found = {path.name for path in index.parent.glob("*.md")} - {index.name}
    assert found
    assert found <= listed


@pytest.mark.parametrize("room", ROOMS)
def test_the_page_of_a_room_has_every_name_that_it_promises(room):
    """Once each, so that the site has one place for each name."""
    listed = [
        name
        for block in pages.blocks((DOCS / "api" / f"{room}.md").read_text())
        if block.language == "names"
        for name in block.code.split()
    ]
    module = importlib.import_module(f"opnorm.{room}")
    assert sorted(listed) == sorted(module.__all__)


def test_links_and_anchors_are_recognised(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# `f(x)`: a **gain**\n\n```\n# code [a](b)\n```\n\n[c](#d) ![e](f)\n"
    )
    assert links(page.read_text()) == ["#d", "f"]
    assert anchors(page.read_text()) == {"fx-a-gain"}
    assert resolves("#fx-a-gain", page)
    assert resolves("page.md#fx-a-gain", page)
    assert not resolves("#code-ab", page)
    assert not resolves("missing.md", page)


def test_blocks_and_commands_are_recognised():
    text = """
    <!-- run first
    x = 1
    -->
<!-- run with: 1000 => 10 -->
```python
f(1000)
```
<!-- not run: needs a GPU -->
```python
g()
```
```bash
A=1 opnorm train --p=2 \\
  --epochs=3  # text
pip install x && .venv/bin/python -m experiments.spectrum --run='a b' | tail
```
The command `opnorm NAME` and `opnorm evaluate --run=RUN`.
"""
    first, f, g, _ = pages.blocks(text)
    assert (first.code, first.hidden, f.hidden) == ("x = 1", True, False)
    assert (f.small, g.reason) == ("f(10)", "needs a GPU")
    assert [command[:2] for command in pages.commands(text)] == [
        ("train", ("--p=2", "--epochs=3")),
        ("spectrum", ("--run=a b",)),
        ("evaluate", ("--run=RUN",)),
    ]
    with pytest.raises(ValueError, match="has no block"):
        pages.blocks("<!-- not run: a reason -->\ntext\n")
    with pytest.raises(ValueError, match="is not in the block"):
        _ = pages.Block("python", "a", 1, replaced=(("b", "c"),)).small


def test_names_are_recognised():
    text = "`attacks.pga(p=2)`, opnorm.attacks.Stage.init; `data.md` `runs/x.y` `a.b`"
    assert names(text) == ["attacks.pga", "opnorm.attacks.Stage.init"]
    assert is_there("attacks.pga")
    assert is_there("opnorm.training.Config.method")
    assert not is_there("attacks.no_such_attack")


def names(text: str) -> list[str]:
    """The names of the library that a page gives outside of its code blocks."""
    text = without_code(text)
    inline = " ; ".join(re.findall(r"`([^`\n]+)`", text))
    # "torch.nn" is of PyTorch.
    short = "|".join(room for room in ROOMS if room != "torch")
    rooms = rf"(?<![\w./])(?:{short})(?:\.[A-Za-z]\w*)+"
    found = re.findall(rooms, inline)
    found += re.findall(r"(?<![\w./])opnorm(?:\.[A-Za-z]\w*)+", text)
    return [name for name in found if name.rpartition(".")[2] not in FILES]


def is_there(name: str) -> bool:
    parts = name.removeprefix("opnorm.").split(".")
    value = importlib.import_module("opnorm")
    for part in parts:
        if isinstance(value, type) and part in fields(value):
            return True
        if not hasattr(value, part):
            module = f"{getattr(value, '__name__', '')}.{part}"
            if not hasattr(value, "__path__") or not importlib.util.find_spec(module):
                return False
            importlib.import_module(module)
        value = getattr(value, part)
    return True


def fields(cls: type) -> set[str]:
    """The fields of a dataclass, which are no attributes of it without a default."""
    if not dataclasses.is_dataclass(cls):
        return set()
    return {field.name for field in dataclasses.fields(cls)}


def without_code(text: str) -> str:
    """A page without its code blocks and comments."""
    return re.sub(r"^ *```.*?^ *```$|<!--.*?-->", "", text, flags=re.S | re.M)


def links(text: str) -> list[str]:
    """The targets of the links and images of a page, without those in code blocks."""
    return re.findall(r"\]\(([^)\s]+)\)", without_code(text))


def anchors(text: str) -> set[str]:
    """The anchors of the headings of a page, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", without_code(text), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def resolves(link: str, page: Path) -> bool:
    if "://" in link:
        return True
    name, _, anchor = link.partition("#")
    target = page.parent / name if name else page
    return target.exists() and (not anchor or anchor in anchors(target.read_text()))
