"""Rooms import what they may, and programs import them through their faces."""

import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Commands of the shell and of IPython in a notebook.
SHELL = re.compile(r"^( *)[!%].*$", re.MULTILINE)
# Files of the package itself, which every room may import.
EVERYWHERE = {"extras"}
ALLOWED = {
    "linalg": set(),
    "models": set(),
    "data": set(),
    "runs": set(),
    "papers": set(),
    "operators": {"linalg"},
    "attacks": {"linalg"},
    "regularizers": {"linalg", "operators"},
    "analysis": {"linalg", "operators", "attacks"},
    "reports": {"linalg", "attacks", "analysis", "runs"},
    "torch": {"linalg", "models"},
    "training": {
        "linalg",
        "operators",
        "attacks",
        "regularizers",
        "analysis",
        "models",
        "data",
        "runs",
        "papers",
    },
}


def imported_rooms(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "opnorm":
            names = [f"opnorm.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [node.module or ""]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "opnorm" and len(parts) > 1:
                yield parts[1]
            assert parts[0] != "experiments", f"{path}: a room imports experiments"


@pytest.mark.parametrize("room", ALLOWED)
def test_rooms_import_only_what_they_may(room):
    files = list((ROOT / "opnorm" / room).rglob("*.py"))
    assert files
    for path in files:
        found = set(imported_rooms(path)) - {room, *EVERYWHERE}
        assert found <= ALLOWED[room], f"{path} imports {found - ALLOWED[room]}"


def test_every_room_is_listed():
    rooms = {p.parent.name for p in (ROOT / "opnorm").glob("*/__init__.py")}
    assert rooms == set(ALLOWED)


def programs():
    """The Python outside the library: ``(place, source)``."""
    for path in sorted((ROOT / "experiments").rglob("*.py")):
        yield path, path.read_text()
    for path in [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]:
        for block in re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL):
            yield path, block
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for cell in json.loads(path.read_text())["cells"]:
            if cell["cell_type"] == "code":
                yield path, SHELL.sub(r"\1pass", "".join(cell["source"]))


def below_faces(source):
    """Names that are imported from a file of a room, not from the room."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] != "opnorm" or len(parts) < 3:
                continue
            folder = ROOT.joinpath(*parts[:2])
            if folder.joinpath(f"{parts[2]}.py").exists() or len(parts) > 3:
                yield name


def test_programs_import_rooms_through_their_faces():
    found = [
        f"{path.relative_to(ROOT)}: {name}"
        for path, source in programs()
        for name in below_faces(source)
    ]
    assert found == [], "\n".join(found)


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("from opnorm.linalg import loops", 1),
        ("from opnorm.linalg.loops import scan", 1),
        ("import opnorm.linalg.loops", 1),
        ("from opnorm.linalg import norm", 0),
        ("from opnorm import linalg", 0),
        ("import opnorm.linalg", 0),
    ],
)
def test_imports_below_a_face_are_found(source, count):
    assert len(list(below_faces(source))) == count
