"""Runs the code of a Markdown page; its argument is the path of the page.

Exit code ``SKIPPED`` says that nothing could run, since a package is missing.
"""

import doctest
import importlib.util
import sys
import types
from pathlib import Path

from tests.support import pages

SKIPPED = 77
_OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def main(path: Path) -> int:
    """Returns the exit code."""
    # Modules and pickles look up the classes of a page by the name of its module.
    module = types.ModuleType("page")
    sys.modules["page"] = module
    sys.path.insert(0, "")
    found = [b for b in pages.blocks(path.read_text()) if b.language == "python"]
    shown = [block for block in found if not block.hidden]
    missing = {name for block in found for name in block.needs if not _is_here(name)}
    if shown and missing & {*shown[0].needs}:
        print(f"{', '.join(sorted(missing))} cannot be imported", file=sys.stderr)
        return SKIPPED
    failed = 0
    for block in found:
        runs = block.reason is None and not missing & {*block.needs}
        failed += _run(block, path, vars(module), runs)
    return 1 if failed else 0


def _is_here(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _run(block: pages.Block, path: Path, space: dict, runs: bool) -> int:
    """Runs or compiles a block; returns how many examples of a doctest failed."""
    if block.code.startswith(">>> "):
        parser = doctest.DocTestParser()
        name = f"line {block.line}"
        test = parser.get_doctest(block.small, {}, name, str(path), block.line - 1)
        if not runs:
            return 0
        test.globs = space
        runner = doctest.DocTestRunner(optionflags=_OPTIONS)
        return runner.run(test, clear_globs=False).failed
    # Tracebacks then name the line of the page.
    code = compile("\n" * (block.line - 1) + block.small, str(path), "exec")
    if runs:
        first = block.code.partition("\n")[0]
        if first.startswith("# ") and first.endswith(".py"):
            Path(first.removeprefix("# ")).write_text(block.small)
        exec(code, space)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
