"""The flags of every command, from the help that the command itself prints."""

import importlib
import multiprocessing
import re
from collections.abc import Iterable
from multiprocessing.connection import Connection

from sphinx.application import Sphinx

_BLOCK = re.compile(r"^```flags\n.*?^```$", re.DOTALL | re.MULTILINE)


def setup(app: Sphinx) -> dict[str, bool]:
    """Adds this part to Sphinx."""
    app.connect("source-read", document)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def document(app: Sphinx, page: str, source: list[str]) -> None:
    """Replaces the block of the page by the flags of all commands."""
    del app
    if page == "docs/flags":
        from experiments.__main__ import commands

        text = "\n\n".join(map(describe, commands()))
        source[0] = _BLOCK.sub(lambda _: text, source[0])


def describe(name: str) -> str:
    """Returns the section of a command.

    A flag belongs to a process, so each command is imported in one of its own.
    """
    fork = multiprocessing.get_context("fork")
    here, there = fork.Pipe()
    process = fork.Process(target=_send, args=(name, there))
    process.start()
    there.close()
    text: str = here.recv()
    process.join()
    return text


def _send(name: str, there: Connection) -> None:
    there.send(_section(name))


def _section(name: str) -> str:
    from absl import flags

    from experiments.common import help_text

    module = importlib.import_module(f"experiments.{name}")
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"experiments.{name}.__main__")
    found = flags.FLAGS.get_key_flags_for_module(module.__name__)
    summary, _, rest = help_text.plain(str(module.__doc__)).partition("\n\n")
    parts = [f"## opnorm {name}", " ".join(summary.split())]
    if rest.strip():
        parts.append(f"```text\n{rest.rstrip()}\n```")
    for group, entries in help_text.entries(found).items():
        parts += [f"**{group}**", _listed(entries)]
    return "\n\n".join(parts)


def _listed(entries: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f"- `{head}` — {_escaped(text)}" for head, text in entries)


def _escaped(text: str) -> str:
    return re.sub(r"([|*_<>\[\]`$])", r"\\\1", text)
