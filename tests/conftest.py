"""Settings and fixtures of all tests; their parts are in ``tests/support``."""

import gc
from collections.abc import Iterator

import pytest

from tests.support import compiler, forking

# JAX reads its settings when it is imported, which any other conftest.py may do.
compiler.configure()


def pytest_collection_finish() -> None:
    """Exempts all imported objects from garbage collection; they stay to the end."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(autouse=True, scope="module")
def _release_compiled_programs() -> Iterator[None]:
    yield
    compiler.release_programs()


@pytest.fixture(scope="session")
def serve():
    """``(code) -> ask``: code in a process of its own that answers lines of JSON."""
    servers = forking.Servers()
    yield servers.serve
    servers.close()


@pytest.fixture(scope="session")
def start(serve, tmp_path_factory):
    """``(name, *arguments, devices=1) ->`` a process of a binary, just begun.

    ``constants`` are values of modules that differ there: ``{module: {name: value}}``.
    """
    ask = serve(forking.BINARIES)

    def start(name, *arguments, devices=1, constants=None):
        return forking.Forked(
            ask,
            tmp_path_factory.mktemp("output"),
            module=f"experiments.{name}",
            arguments=[str(argument) for argument in arguments],
            devices=devices,
            constants=constants or {},
        )

    return start
