"""Results that are kept on disk, so that a measurement that was ended can continue.

A kept result is bound to its measurement: its key holds a digest over the network, the
examples and the version of opnorm, besides all options. The file holds a digest over
its key and its content, so that a file that was damaged, edited, or taken from another
measurement is noticed and computed again.

A digest is not a signature: anybody who can write the files can compute it. Therefore
:class:`Parts` counts the results that it reused, the experiments report the count, and
``--fresh`` computes everything again.

===================  ==============================================================
:func:`cached`       one JSON file for each measurement
:class:`Parts`       a folder of results as arrays, found by their keys
:func:`in_parts`     the loop over the examples that keeps each part in that folder
===================  ==============================================================
"""

import dataclasses
import functools
import hashlib
import json
import sys
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags, logging

import opnorm
from opnorm import data, models, runs
from opnorm.training import Config

Arrays = dict[str, np.ndarray]

_DIGEST = "digest"
# The fields that decide, besides the variables, which function a network computes.
_FUNCTION = (
    "model",
    "width",
    "activation",
    "logit_activation",
    "normalization",
    "compute_dtype",
    "depth",
    "scalar_biases",
    "scalar_multipliers",
)
# Fields that earlier versions did not have. They are left out of identities at their
# defaults, so that measurements of those versions stay valid.
_ADDED = frozenset(
    (
        "depth",
        "scalar_biases",
        "scalar_multipliers",
        "epsilon_unit",
        "dropout",
        "validation_fraction",
    )
)

# A flag defined here is shown in the --help of the experiment that defines it.
flags.disclaim_key_flags()


def define_fresh_flag() -> None:
    """Defines --fresh, the value of ``fresh`` in :func:`cached` and :class:`Parts`."""
    flags.DEFINE_boolean(
        "fresh", False, "measure everything again: results kept earlier are not read"
    )


def fingerprint(
    config: Config, network: models.Network, *examples: data.Dataset
) -> str:
    """Computes a digest over everything that decides a measurement of a network.

    Args:
      config: the configuration of the training.
      network: the network to be measured.
      *examples: the examples to measure it on.

    Returns:
      A hexadecimal text. It differs where the architecture, an array of the network, an
      example, a class name or the version of opnorm does.
    """
    function = {name: v for name, v in _identity(config).items() if name in _FUNCTION}
    variables = (network.params, network.batch_stats)
    arrays = {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables)
    }
    return identity(function, arrays, *examples)


def identity(
    function: Mapping[str, Any], arrays: Mapping[str, Any], *examples: data.Dataset
) -> str:
    """Computes a digest over a network, examples and the version of opnorm.

    Args:
      function: everything besides the arrays that decides the function; values that
        JSON can hold.
      arrays: the arrays of the network by name, in a fixed order.
      *examples: the examples to measure it on.

    Returns:
      A hexadecimal text.
    """
    digest = hashlib.sha256()

    def add(name: str, array: Any) -> None:
        array = np.ascontiguousarray(array)
        digest.update(f"{name} {array.shape} {array.dtype} ".encode())
        digest.update(array.tobytes())

    digest.update(_text({"opnorm": opnorm.__version__, **function}).encode())
    for name, array in arrays.items():
        add(name, array)
    for part in examples:
        digest.update(_text(part.class_names).encode())
        add("images", part.images)
        add("labels", part.labels)
    return digest.hexdigest()


class Parts:
    """Parts of results in a folder, so that an interrupted measurement resumes.

    Attributes:
      reused: the number of parts that were read from the disk.

    Args:
      directory: the folder; it is made when the first part is written. The caller has
        checked that neither it nor its parent is a link to another place.
      fresh: whether parts that are there already are ignored.
    """

    def __init__(self, directory: Path, *, fresh: bool = False) -> None:
        self._directory = directory
        self._fresh = fresh
        self.reused = 0

    def get(self, key: Mapping[str, Any]) -> Arrays | None:
        """Returns the part saved under this key; None if it is missing or damaged."""
        file = self._file(key)
        if self._fresh or not file.exists():
            return None
        try:
            with np.load(file, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):
            arrays = {}
        digest = str(arrays.pop(_DIGEST, ""))
        if digest != _digest_of_arrays(key, arrays):
            logging.warning(
                "%s is damaged or was edited (its digest does not fit); it is computed "
                "again.",
                file,
            )
            return None
        self.reused += 1
        return arrays

    def put(self, key: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        """Saves a part; a kill leaves the whole part or none."""
        file = self._file(key)
        file.parent.mkdir(parents=True, exist_ok=True)
        arrays = {name: np.asarray(array) for name, array in arrays.items()}
        digest = np.array(_digest_of_arrays(key, arrays))
        runs.write_arrays(file, {**arrays, _DIGEST: digest})

    def cached(self, key: Mapping[str, Any], compute: Callable[[], Arrays]) -> Arrays:
        """Returns the part saved under this key, or computes and saves it."""
        part = self.get(key)
        if part is None:
            part = compute()
            self.put(key, part)
        return part

    def below(self, name: str) -> "Parts":
        """Returns the parts in a folder below this one, with the same ``fresh``."""
        return Parts(self._directory / name, fresh=self._fresh)

    def _file(self, key: Mapping[str, Any]) -> Path:
        name = hashlib.sha256(_text(key).encode()).hexdigest()[:24]
        return self._directory / f"{name}.npz"


def in_parts(
    parts: Parts,
    key: Mapping[str, Any],
    measure: Callable[[int, int, Callable[[float], None]], Arrays],
    *,
    count: int,
    part_size: int,
    description: str,
    unit: str = "example",
) -> list[Arrays]:
    """Measures examples part by part, and saves each part when it is finished.

    Args:
      parts: where finished parts are kept.
      key: everything that decides the result, besides the range of examples.
      measure: ``(first, last, tell)`` to the arrays of examples ``first`` to ``last``
        (exclusive). It may call ``tell`` with the fraction of the part that is done.
      count: the number of examples.
      part_size: examples in a part; the last part may have fewer.
      description: what the progress is called.
      unit: what an example is called in the progress.

    Returns:
      The arrays of each part, in the order of the examples.
    """
    found = []
    with runs.Progress(count, description=description, unit=unit) as progress:
        for first in range(0, count, part_size):
            last = min(first + part_size, count)

            def tell(fraction: float, first: int = first, last: int = last) -> None:
                progress.update(min(first + int(fraction * (last - first)), last - 1))

            compute = functools.partial(measure, first, last, tell)
            found.append(parts.cached({**key, "range": [first, last]}, compute))
            progress.update(last)
    return found


def cached(
    file: Path,
    settings: Mapping[str, Any],
    compute: Callable[[], dict[str, Any]],
    *,
    fresh: bool = False,
) -> dict[str, Any]:
    """Reads a result that was measured with the same settings, or measures it.

    A line on stderr says that a result was read, and a warning that one is damaged.

    Args:
      file: a JSON file in a directory of results.
      settings: everything that decides the measurement: strings, numbers, lists and
        dicts.
      compute: measures, and returns a result that JSON can hold.
      fresh: whether a result that is there already is ignored.

    Returns:
      The result as it is read from the file: NaN is None, and infinity is a string that
      ``float()`` takes. Its "settings" are the given ones.
    """
    # The settings in the file were converted by JSON too: tuples are lists there.
    settings = json.loads(_text(settings))
    if not fresh and (known := _read(file)) is not None:
        known = checked(file, known)
        if known is not None and known["settings"] == settings:
            print(f"{file} is taken from an earlier measurement", file=sys.stderr)
            return known
    # The digest is over the values as a reader of the file finds them.
    found: dict[str, Any] = runs.as_json({"settings": settings, **compute()})
    runs.RunDirectory(file.parent).write_json(file.name, with_digest(found))
    return found


def with_digest(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns content with a digest over it, as :func:`checked` expects it in a file.

    Args:
      content: values that JSON can hold.
    """
    found: dict[str, Any] = runs.as_json(content)
    return found | {_DIGEST: _digest_of_json(found)}


def checked(
    file: Path, content: Mapping[str, Any], *, warn: bool = True
) -> dict[str, Any] | None:
    """Returns content without its digest, or None if the digest does not fit.

    Args:
      file: the file that a warning names.
      content: the values read from the file.
      warn: whether a warning is logged.
    """
    found = {name: value for name, value in content.items() if name != _DIGEST}
    if content.get(_DIGEST) == _digest_of_json(found):
        return found
    if warn:
        logging.warning(
            "%s is damaged, was edited, or comes from an earlier version (its digest "
            "does not fit); it is measured again.",
            file,
        )
    return None


def network_settings(config: Config, identity: str) -> dict[str, Any]:
    """Returns the settings that bind a measurement to a trained network.

    Args:
      config: the configuration of its training. A run to which epochs are added is
        another network.
      identity: the result of :func:`fingerprint`.
    """
    chosen = {k: v for k, v in _identity(config).items() if k != "data_dir"}
    # Texts, because JSON cannot hold infinity.
    return {"config": {k: str(v) for k, v in chosen.items()}, "identity": identity}


def _identity(config: Config) -> dict[str, Any]:
    """Returns the fields of a configuration as every version names them."""
    default = Config()
    return {
        name: value
        for name, value in dataclasses.asdict(config).items()
        if name not in _ADDED or value != getattr(default, name)
    }


def _read(file: Path) -> dict[str, Any] | None:
    """Reads a JSON file; returns {} if it is damaged, and None if it is missing."""
    if not file.exists():
        return None
    try:
        found = json.loads(file.read_text())
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _digest_of_arrays(key: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(_text(key).encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {arrays[name].shape} {array.dtype} ".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _digest_of_json(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(_text(content).encode()).hexdigest()


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
