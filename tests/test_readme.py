"""The front pages are short, and CI finds the test command in the README."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_ci_finds_the_test_command():
    assert re.search(r"<!-- test command -->\n```bash\npython3 .*pytest.*\n```", README)
    assert "<!-- test command -->" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize(
    ("name", "most"), [("README.md", 8 * 1024), ("WORKSPACE.md", 4 * 1024)]
)
def test_the_front_pages_are_short(name, most):
    assert len((ROOT / name).read_bytes()) <= most
