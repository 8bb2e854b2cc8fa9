"""The README's examples run, and its test command is the one that CI runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
CHECKS = """
assert norm.value.shape == (20,)
assert norm.right.shape == (20, 32, 32, 3)
assert norm.left.shape == (20, 10)
assert x_adv.shape == (20, 32, 32, 3)
again = break_it(variables, x, y, jax.random.key(0))
assert abs(again - x_adv).max() < 1e-4
"""


def test_the_examples_run():
    example = "\n".join(re.findall(r"```python\n(.*?)```", README, re.S))
    tiny = 'model="mlp1", width=8, train_examples=64'
    small = example.replace("train_examples=1000", tiny)
    smaller = small.replace("[:100]", "[:20]")
    assert smaller != small != example
    # In a process of its own, with one device, as a reader has.
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


def test_files_that_the_readme_shows_are_there():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    for link in links:
        if "://" not in link:
            assert (ROOT / link).exists(), link
