"""Nothing in a file that the library reads can become code that it runs."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Modules whose readers run what a file says.
MODULES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "yaml"}
# Where a function that needs care is called, and nowhere else.
ALLOWED = {
    # The worker gets the name of one of our modules from the process that starts it;
    # --network names a module of the user's own on the command line. Rooms, commands
    # and tables are imported by names that stand in the source.
    "import_module": {
        "experiments/report/entries.py",
        "opnorm/__init__.py",
        "opnorm/__main__.py",
        "experiments/common/cli.py",
        "experiments/common/own_networks.py",
        "experiments/benchmark/worker.py",
    },
    "builder_from_directory": {"opnorm/data/tfds_source.py"},
    # Figures are written whole and never through a link.
    "savefig": {"experiments/common/figures.py"},
}
FORBIDDEN = {"eval", "exec", "compile", "__import__"}
# Parsing every file would take seconds.
WORDS = re.compile(rf"\b({'|'.join([*MODULES, *ALLOWED, *FORBIDDEN, 'load'])})\b")


def calls(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func
            yield (
                node,
                name.id if isinstance(name, ast.Name) else getattr(name, "attr", ""),
                isinstance(name, ast.Name),
            )


def test_no_file_that_is_read_becomes_code():
    files = [*ROOT.glob("opnorm/**/*.py"), *ROOT.glob("experiments/**/*.py")]
    assert len(files) > 100
    for file in files:
        where, text = file.relative_to(ROOT).as_posix(), file.read_text()
        if not WORDS.search(text):
            continue
        tree = ast.parse(text)
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not MODULES & {name.split(".")[0] for name in names}, where
        for node, name, plain in calls(tree):
            options = {word.arg: word.value for word in node.keywords}
            if name in ALLOWED:
                assert where in ALLOWED[name], (where, name)
            # A method of such a name is another thing, as in lowered.compile().
            if plain:
                assert name not in FORBIDDEN, (where, name)
            if name == "load" and ast.unparse(node.func) in ("np.load", "numpy.load"):
                assert ast.unparse(options["allow_pickle"]) == "False", where
            if name == "load" and ast.unparse(node.func) == "torch.load":
                assert ast.unparse(options["weights_only"]) == "True", where
