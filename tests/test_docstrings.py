"""The examples in docstrings run, and the names that a user meets first have one."""

import doctest
import importlib
import pkgutil

import pytest

import opnorm

# Names that must have an example, such as "network" or "linalg.norm".
REQUIRED: tuple[str, ...] = ()


def modules():
    for found in pkgutil.walk_packages(opnorm.__path__, "opnorm."):
        yield importlib.import_module(found.name)


def examples():
    """Every docstring of the library that has an example, once."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    return [
        test
        for module in modules()
        for test in finder.find(module, module.__name__)
        if test.examples
    ]


EXAMPLES = examples()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_the_example_runs(example):
    report = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    result = runner.run(example, out=report.append)
    assert result.failed == 0, "".join(report)


def test_the_required_names_have_an_example():
    missing = [name for name in REQUIRED if ">>> " not in documentation(name)]
    assert missing == []


def documentation(name):
    room, _, attribute = name.rpartition(".")
    module = importlib.import_module(f"opnorm.{room}".rstrip("."))
    return getattr(module, attribute).__doc__ or ""


def test_a_wrong_example_fails():
    """The runner compares: an example whose output is wrong is counted."""
    wrong = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    result = doctest.DocTestRunner().run(wrong, out=lambda text: None)
    assert result.failed == 1
