"""The README's examples run, the front pages are short, and all links resolve."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
CHECKS = """
import chex

chex.assert_shape(norm.value, (20,))
chex.assert_shape(norm.right, (20, 32, 32, 3))
chex.assert_shape(norm.left, (20, 10))
chex.assert_shape(x_adv, (20, 32, 32, 3))
chex.assert_shape([found.success, found.distance], (20,))
chex.assert_tree_all_finite((norm.value, x_adv))
"""


def test_the_examples_run():
    example = "\n".join(re.findall(r"```python\n(.*?)```", README, re.S))
    tiny = 'model="mlp1", width=8, train_examples=64'
    small = example.replace("train_examples=1000", tiny)
    smaller = small.replace("[:100]", "[:20]")
    assert smaller != small != example
    # The process of a reader has one device.
    done = subprocess.run(
        [sys.executable, "-c", smaller + CHECKS],
        cwd=ROOT,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_ci_finds_the_test_command():
    assert re.search(r"<!-- test command -->\n```bash\npython3 .*pytest.*\n```", README)
    assert "<!-- test command -->" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize(
    ("name", "most"), [("README.md", 8 * 1024), ("WORKSPACE.md", 4 * 1024)]
)
def test_the_front_pages_are_short(name, most):
    assert len((ROOT / name).read_bytes()) <= most


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(path):
    broken = [link for link in links(path.read_text()) if not resolves(link, path)]
    assert not broken


@pytest.mark.parametrize("folder", ["results", "decisions"])
def test_every_page_is_in_its_index(folder):
    index = ROOT / "docs" / folder / "README.md"
    listed = {link.partition("#")[0] for link in links(index.read_text())}
    pages = {path.name for path in index.parent.glob("*.md")} - {index.name}
    assert pages
    assert pages <= listed


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


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M)


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
