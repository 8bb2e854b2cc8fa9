"""Packages that only some parts of the library need, and the extras that bring them.

The core of the library needs JAX, Flax, Optax, NumPy, absl and Pillow. Every other
package is imported when it is used, inside :func:`needed`, so that one line says how to
install it. ``pip install 'opnorm[all]'`` brings all that the commands need.
"""

import contextlib
import importlib.util
from collections.abc import Iterator

# The names to install packages by, where they are not those of their modules.
_DISTRIBUTIONS = {
    "orbax": "orbax-checkpoint",
    "tensorflow_datasets": "tensorflow-datasets",
}


class MissingPackage(ImportError):
    """A package of an extra is not installed; one line names both."""


@contextlib.contextmanager
def needed(by: str, extra: str) -> Iterator[None]:
    """Says which extra to install where an import in the ``with`` block fails.

    Args:
      by: the function or the command that needs the package, such as
        ``"opnorm.data.open_stream"``.
      extra: the extra of opnorm that brings it, such as ``"train"``.

    Raises:
      MissingPackage: if a package cannot be imported.

    >>> with needed("opnorm.data.open_stream", extra="train"):
    ...     import a_package_that_is_missing
    Traceback (most recent call last):
      ...
    opnorm.extras.MissingPackage: opnorm.data.open_stream needs \
a_package_that_is_missing: pip install 'opnorm[train]'
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise _missing(by, str(error.name), extra) from error
    except ImportError as error:
        raise _missing(by, str(error.name), extra, f" ({error})") from error


def check(by: str, module: str, extra: str) -> None:
    """Raises MissingPackage unless a module is installed; nothing is imported.

    Args:
      by: as for :func:`needed`.
      module: the module's name, such as ``"matplotlib"``.
      extra: as for :func:`needed`.
    """
    if importlib.util.find_spec(module) is None:
        raise _missing(by, module, extra)


def _missing(by: str, module: str, extra: str, reason: str = "") -> MissingPackage:
    top = module.partition(".")[0]
    package = _DISTRIBUTIONS.get(top, top)
    text = f"{by} needs {package}{reason}: pip install 'opnorm[{extra}]'"
    return MissingPackage(" ".join(text.split()), name=top)
