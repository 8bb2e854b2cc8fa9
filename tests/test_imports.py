"""Rooms look only into the rooms that WORKSPACE.md allows, and heavy imports wait."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
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
        found = set(imported_rooms(path)) - {room}
        assert found <= ALLOWED[room], f"{path} imports {found - ALLOWED[room]}"


def test_every_room_is_listed():
    rooms = {p.parent.name for p in (ROOT / "opnorm").glob("*/__init__.py")}
    assert rooms == set(ALLOWED)


def test_importing_opnorm_loads_nothing_heavy():
    heavy = ("tensorflow_datasets", "tensorflow", "matplotlib", "orbax", "PIL")
    code = f"import sys, opnorm; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert result.stdout.strip() == "[]", result.stdout + result.stderr
