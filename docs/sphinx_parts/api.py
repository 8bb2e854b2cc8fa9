"""API pages: every name that a room promises, with its docstring.

A page of ``docs/api`` groups the names of a room in blocks of code of the language
"names", which GitHub shows as they are. Here each becomes the documentation of its
names, under the path that the room promises: ``opnorm.attacks.pga``, in whichever file
it is defined. Signatures are as they are written in the source, so that a type has the
name that the library gives it.
"""

import ast
import functools
import importlib
import inspect
import re
import sys
import typing
from pathlib import Path
from types import ModuleType
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

PACKAGE = Path(__file__).parent.parent.parent / "opnorm"
ROOMS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
# Other projects have no pages here, and the site is built without a network.
NOT_DOCUMENTED_HERE = [(r"py:.*", r"(jax|numpy|flax|optax|torch)\..*")]
_BLOCK = re.compile(r"^```names\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# "mean, std: see ResNet50" in a section of a docstring.
_SHARED = re.compile(r"^  \w+(, \w+)+(?=: )")
_HEADING = re.compile(r"\A(# .+\n)", re.MULTILINE)
# Longer values of constants say more in a sentence.
_LONGEST_VALUE = 80


def setup(app: Sphinx) -> dict[str, bool]:
    """Adds this part to Sphinx."""
    app.connect("source-read", document)
    # Before napoleon, which reads the sections of a docstring.
    app.connect("autodoc-process-docstring", prepare, priority=400)
    app.connect("autodoc-process-signature", signature)
    app.connect("autodoc-skip-member", skips)
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def document(app: Sphinx, page: str, source: list[str]) -> None:
    """Replaces the blocks of a page of the API by directives of autodoc."""
    del app
    if not page.startswith("docs/api/"):
        return
    stem = page.rpartition("/")[2]
    room = "opnorm" if stem == "README" else f"opnorm.{stem}"
    begun = _HEADING.sub(
        rf"\1\n{_directives([f'.. automodule:: {room}'])}\n", source[0]
    )
    source[0] = _BLOCK.sub(lambda found: _group(room, found[1].split()), begun)


def prepare(
    app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]
) -> None:
    """Prepares a docstring for Sphinx.

    Formulas, which are indented, are shown as they are written. Names that share a
    description are joined, since Sphinx takes all but the last one for a type.
    """
    del app, what, name, thing, options
    last = ""
    prepared: list[str] = []
    for line in lines:
        after_prose = last and not last.startswith((" ", ".", "-", ">>>"))
        after_gap = prepared and not prepared[-1].strip() and not last.endswith("::")
        if line.startswith("    ") and after_gap and after_prose:
            prepared += ["::", ""]
        prepared.append(_SHARED.sub(lambda found: found[0].replace(", ", ","), line))
        last = line if line.strip() else last
    lines[:] = prepared


def signature(
    app: Sphinx,
    what: str,
    name: str,
    thing: Any,
    options: Any,
    arguments: str | None,
    returned: str | None,
) -> tuple[str | None, str | None]:
    """Returns a signature as the source has it."""
    del app, name, options
    found = _definition(thing) if arguments is not None else None
    if isinstance(found, ast.FunctionDef):
        return _arguments(found, what == "method"), _unquoted(found.returns)
    if isinstance(found, ast.ClassDef):
        return _constructor(found), None
    return arguments, returned


def skips(
    app: Sphinx, what: str, name: str, thing: Any, skip: bool, options: Any
) -> bool | None:
    """Leaves out fields, which the section "Attributes" of a class describes."""
    del app, options
    if what not in ("class", "exception") or name == "__call__":
        return None
    is_member = inspect.isroutine(inspect.unwrap(thing)) if callable(thing) else False
    return skip or not (
        is_member or isinstance(thing, property | functools.cached_property)
    )


def resolve(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, shown: nodes.Element
) -> nodes.Element | None:
    """Leads a reference to the path that a room promises."""
    if node.get("refdomain") != "py":
        return None
    for name in _candidates(node["reftarget"], node.get("py:module") or ""):
        found = env.domains.python_domain.resolve_xref(
            env, node["refdoc"], app.builder, "obj", name, node, shown
        )
        if found is not None:
            return found
    # A type in a signature may be one that no room promises, or of another project. A
    # reference in a sentence must lead to a place.
    return None if isinstance(shown, nodes.literal) else shown


def is_promised(name: str) -> bool:
    """Says whether a room promises a name, or the class whose attribute it is."""
    return name in promised() or name.rpartition(".")[0] in promised()


@functools.cache
def promised() -> dict[str, str]:
    """Returns the promised path of every path at which a name can be found."""
    found = {}
    for room in ROOMS:
        module = importlib.import_module(f"opnorm.{room}")
        for name in module.__all__:
            thing = inspect.unwrap(getattr(module, name))
            place = f"opnorm.{room}.{name}"
            found[place] = place
            if hasattr(thing, "__qualname__"):
                found.setdefault(f"{thing.__module__}.{thing.__qualname__}", place)
    return found


def _candidates(target: str, module: str) -> list[str]:
    """Returns the promised paths that a reference may mean, the likeliest first."""
    head = target.rpartition(".")[0]
    found = []
    for name in (target, head):
        if not name:
            continue
        found += [f"{module}.{name}", name, f"opnorm.{name}"]
        if name in promised():
            found.append(promised()[name])
        ending = f".{name}"
        found += [place for place in promised().values() if place.endswith(ending)]
    return [name for name in dict.fromkeys(found) if name not in ("opnorm", module)]


def _group(room: str, names: list[str]) -> str:
    lines = [f".. currentmodule:: {room}", ""]
    for name in names:
        lines += _entry(room, name)
    return _directives(lines)


def _directives(lines: list[str]) -> str:
    return "\n".join(["```{eval-rst}", *lines, "```"])


def _entry(room: str, name: str) -> list[str]:
    """Returns the directive for a name."""
    thing = getattr(importlib.import_module(room), name)
    if isinstance(thing, ModuleType):
        return [f".. automodule:: {room}.{name}", ""]
    if isinstance(thing, type) and thing.__module__.startswith("opnorm"):
        kind = "exception" if issubclass(thing, BaseException) else "class"
        members = ["   :members:", "   :special-members: __call__"]
        return [f".. auto{kind}:: {room}.{name}", *members, ""]
    is_alias = typing.get_origin(thing) is not None
    if callable(thing) and not is_alias:
        return [f".. autofunction:: {room}.{name}", ""]
    value, comment = _constant(room, name)
    shown = [f"   :value: {value}"] if len(value) <= _LONGEST_VALUE else []
    return [f".. py:data:: {name}", *shown, "", f"   {comment}", ""]


def _constant(room: str, name: str) -> tuple[str, str]:
    """Returns the value of a constant and the comment above it, from the source."""
    module = room
    for statement in _tree(room).body:
        if isinstance(statement, ast.ImportFrom) and name in [
            alias.asname or alias.name for alias in statement.names
        ]:
            module = str(statement.module)
    for statement in _tree(module).body:
        targets = getattr(statement, "targets", [getattr(statement, "target", None)])
        if any(isinstance(t, ast.Name) and t.id == name for t in targets):
            value = " ".join(ast.unparse(statement.value).split())
            return value, _comment(module, statement.lineno)
    if module != room:
        return _constant(module, name)
    raise ValueError(f"{room}.{name} is no constant of a file.")


def _comment(module: str, line: int) -> str:
    lines = _source(module).splitlines()[: line - 1]
    found: list[str] = []
    while lines and lines[-1].startswith("#"):
        found.insert(0, lines.pop().removeprefix("#").strip())
    return re.sub(r"([*|])", r"\\\1", " ".join(found))


@functools.cache
def _source(module: str) -> str:
    return inspect.getsource(importlib.import_module(module))


@functools.cache
def _tree(module: str) -> ast.Module:
    return ast.parse(_source(module))


def _definition(thing: Any) -> ast.stmt | None:
    """Returns the statement that defines a function or a class of the library."""
    thing = inspect.unwrap(thing)
    module = getattr(thing, "__module__", None) or ""
    if not module.startswith("opnorm") or module not in sys.modules:
        return None
    body: list[ast.stmt] = _tree(module).body
    found = None
    for name in thing.__qualname__.split("."):
        # The last one is the implementation of those before it, its overloads.
        found = next(
            (s for s in reversed(body) if getattr(s, "name", "") == name), None
        )
        body = getattr(found, "body", [])
    return found


def _arguments(function: ast.FunctionDef, is_method: bool) -> str:
    """Returns the arguments of a function, without the first one of a method."""
    given = function.args
    static = any(ast.unparse(d) == "staticmethod" for d in function.decorator_list)
    if is_method and not static:
        dropped = 1 if given.args else 0
        given = ast.arguments(**{**vars(given), "args": given.args[dropped:]})
    for argument in [*given.posonlyargs, *given.args, *given.kwonlyargs]:
        if annotation := _unquoted(argument.annotation):
            argument.annotation = ast.parse(annotation, mode="eval").body
    return f"({ast.unparse(given)})"


def _constructor(cls: ast.ClassDef) -> str:
    """Returns the arguments that make an object of a class."""
    for statement in cls.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
            return _arguments(statement, is_method=True)
    fields = [
        ast.unparse(statement)
        for statement in cls.body
        if isinstance(statement, ast.AnnAssign)
        and not ast.unparse(statement.target).startswith("_")
        and "ClassVar" not in ast.unparse(statement.annotation)
    ]
    return f"({', '.join(fields)})"


def _unquoted(annotation: ast.expr | None) -> str | None:
    """Returns the text of an annotation, without quotes around it."""
    if annotation is None:
        return None
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        return annotation.value
    return ast.unparse(annotation)
