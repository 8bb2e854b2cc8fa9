"""The installed package has extras, late imports and a console command."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from PIL import Image

from experiments import __main__ as listing
from experiments.common import cli, help_text
from opnorm import extras

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
# The modules of packages that are installed by another name.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "absl": "absl-py",
    "orbax": "orbax-checkpoint",
    "tensorflow_datasets": "tensorflow-datasets",
}
# JAX brings it.
CORE = {"jaxlib"}
# A terminal without tqdm gets plain lines.
UNGUARDED = {"opnorm/runs/progress.py": {"tqdm"}}
# Hides packages as if they were not installed, and calls what needs them.
WITHOUT = """
import contextlib, importlib, json, runpy, sys

class Hiding:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HIDDEN:
            return None
        return self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

HIDDEN = {"array_record", "grain", "importlib_resources", "matplotlib", "orbax"}
HIDDEN |= {"submitit", "tensorboardX", "tensorflow_datasets", "torch", "tqdm"}
sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
folder = sys.argv[1]

import opnorm
from opnorm import analysis, data, models, reports, runs, torch, training
from opnorm.runs.progress import _has_bars
from experiments.common import cli

def stream():
    found = data.open_stream(f"image_folder:{folder}/images", split="train")
    next(iter(found.batches([(0, [0, 1])], image_size=8)))

def draw():
    sys.argv = ["train", "--run=there"]
    with contextlib.redirect_stderr(sys.stdout):
        runpy.run_module("experiments.train", run_name="__main__", alter_sys=True)

tried = {
    "checkpoint": lambda: runs.CheckpointStore(f"{folder}/run").save(0, {}, {}),
    "stream": stream,
    "prepared": lambda: data.load("mnist", split="test", data_dir=f"{folder}/tfds"),
    "module": lambda: torch.from_torch(None),
    "file": lambda: models.read_arrays(f"{folder}/weights.pt"),
    "jobs": lambda: cli.import_optional("submitit", "cluster"),
}
said = {"bars": _has_bars()}
for name, call in tried.items():
    try:
        call()
    except opnorm.extras.MissingPackage as error:
        said[name] = str(error)
print(json.dumps(said))
draw()
"""
IMPORTS = """
import sys
def loaded():
    return {name.partition(".")[0] for name in sys.modules} & WATCHED
import opnorm
assert not loaded(), loaded()
from opnorm import attacks, linalg
assert loaded() <= {"absl", "jax", "numpy", "optax"}, loaded()
from opnorm import *
assert loaded() <= {"absl", "flax", "jax", "numpy", "optax"}, loaded()
assert opnorm.network.__module__ == "opnorm.models.network"
assert opnorm.__version__ and {"__version__", *opnorm.__all__} <= set(dir(opnorm))
"""
WATCHED = {"absl", "flax", "grain", "jax", "matplotlib", "numpy", "optax", "orbax"}
WATCHED |= {"PIL", "tensorflow", "tensorflow_datasets", "torch", "tqdm"}


def python(code, *arguments, cwd=ROOT):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"}
    command = [sys.executable, *(["-c", code] if code else []), *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True
    )


def names(requirements):
    """Names of packages, those of the extras of opnorm that are among them included."""
    for requirement in requirements:
        name, own = re.match(r"([\w-]+)(?:\[([\w,]+)\])?", requirement).groups()
        if name == "opnorm":
            for extra in own.split(","):
                yield from names(EXTRAS[extra])
        else:
            yield name


def guarded_imports(path):
    """``(module, extra)`` of imports, with the extra that ``needed`` names or None."""

    def visit(node, extra):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.With):
            call = node.items[0].context_expr
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "extras.needed":
                extra = call.keywords[0].value.value
        if isinstance(node, ast.Import):
            found.extend((alias.name.partition(".")[0], extra) for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.module:
            found.append((node.module.partition(".")[0], extra))
        for child in ast.iter_child_nodes(node):
            visit(child, extra)

    found = []
    visit(ast.parse(path.read_text()), None)
    return found


def test_the_library_imports_the_core_or_names_an_extra_that_has_the_package():
    core = {*names(PROJECT["dependencies"]), *CORE}
    for path in sorted((ROOT / "opnorm").rglob("*.py")):
        place = str(path.relative_to(ROOT))
        for module, extra in guarded_imports(path):
            package = DISTRIBUTIONS.get(module, module)
            if module in (*sys.stdlib_module_names, "opnorm") or package in core:
                continue
            if module in UNGUARDED.get(place, ()):
                continue
            assert extra in EXTRAS, f"{place}: {module} is imported without an extra"
            assert package in names(EXTRAS[extra]), f"{place}: {package} in {extra}"


def test_the_extras_hold_each_other():
    single = ("train", "figures", "cluster", "tensorboard")
    assert set(names(EXTRAS["all"])) == {n for e in single for n in names(EXTRAS[e])}
    assert set(names(EXTRAS["all"])) < set(names(EXTRAS["test"]))
    assert not set(names(EXTRAS["all"])) & set(names(PROJECT["dependencies"]))


def test_a_package_that_is_not_installed_is_named_with_its_extra(tmp_path):
    (tmp_path / "images" / "train" / "a").mkdir(parents=True)
    for number in range(2):
        file = tmp_path / "images" / "train" / "a" / f"{number}.png"
        Image.new("RGB", (8, 8)).save(file)
    (tmp_path / "weights.pt").write_bytes(b"")
    prepared = tmp_path / "tfds" / "mnist" / "3.0.1"
    prepared.mkdir(parents=True)
    (prepared / "dataset_info.json").write_text("{}")
    features = {"type": "tensorflow_datasets.core.features.image_feature.Image"}
    (prepared / "features.json").write_text(json.dumps(features))
    done = python(WITHOUT, tmp_path)
    assert done.returncode == 2, done.stderr
    said, last = done.stdout.strip().splitlines()
    assert json.loads(said) == {
        "bars": False,
        "checkpoint": "opnorm.runs.CheckpointStore needs orbax-checkpoint: "
        "pip install 'opnorm[train]'",
        "stream": "opnorm.data.open_stream needs grain: pip install 'opnorm[train]'",
        "prepared": "opnorm.data.load needs tensorflow-datasets: "
        "pip install 'opnorm[train]'",
        "module": "opnorm.torch.from_torch needs torch: pip install 'opnorm[torch]'",
        "file": f"opnorm.models.read_arrays of {tmp_path}/weights.pt needs torch: "
        "pip install 'opnorm[torch]'",
        "jobs": "opnorm -c needs submitit: pip install 'opnorm[cluster]'",
    }
    assert last == (
        "train: opnorm train needs matplotlib: pip install 'opnorm[figures]'"
    )
    assert not (tmp_path / "run").exists()


def test_a_package_that_is_broken_is_named_with_the_reason():
    broken = ImportError("libcudart.so is missing", name="torch")
    with (
        pytest.raises(extras.MissingPackage, match=r"^f needs torch \(libcudart.so is"),
        extras.needed("f", extra="torch"),
    ):
        raise broken


def test_rooms_are_imported_when_they_are_used():
    done = python(f"WATCHED = {WATCHED}\n{IMPORTS}")
    assert done.returncode == 0, done.stderr


def test_the_command_is_found_beside_a_folder_of_the_same_name(tmp_path):
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "__init__.py").write_text("raise ImportError('mine')")
    done = python("", "-m", "opnorm", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("opnorm NAME runs a command")
    listed = {line.split()[0] for line in done.stdout.splitlines()[2:]}
    assert listed == set(listing.commands())


def test_an_argument_that_is_no_command_is_an_error_of_one_line(capsys):
    for given, words in {
        "spectral-normalisation": "did you mean spectral_normalization?",
        "xyz": "it may be benchmark, compare_attacks,",
        "--run=there": "flags stand behind it",
    }.items():
        assert listing.main([given]) == 2
        said = capsys.readouterr().err
        assert said.startswith("opnorm: ")
        assert words in said
        assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "call"),
    [
        (["python", "-m", "experiments.train", "-m"], "python -m experiments.train"),
        (["python", "-m", "experiments", "train"], "python -m experiments.train"),
        (["python", "-m", "opnorm", "train"], "opnorm train"),
        (["python", "/bin/opnorm", "train", "--run=a"], "opnorm train"),
    ],
)
def test_messages_name_a_command_as_it_was_called(words, call, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", words)
    assert cli.call("train") == call
    monkeypatch.setitem(sys.modules, "__main__", sys.modules[__name__])
    monkeypatch.setattr(sys.modules[__name__], "__doc__", "T.\n\n  opnorm train --a\n")
    assert f"\n  {call} --a\n" in help_text.make()
