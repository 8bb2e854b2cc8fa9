"""Results that are kept on disk, so that a measurement goes on where it was ended.

A kept result is bound to its measurement: its key holds a digest over the network, the
examples and the version of opnorm, besides all options. The file holds a
digest over its key and its content, so that one that was damaged, edited, or taken from
another measurement is noticed and computed again.

A digest is no signature: whoever can write the files can compute it, too. Therefore
each store counts what it has reused, the binaries report it, and ``--fresh`` computes
everything again.
"""

import dataclasses
import hashlib
import json
import sys
import zipfile
import zlib
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags, logging

import opnorm
from opnorm import data, models, runs
from opnorm.training import Config

_DIGEST = "digest"
# The fields that decide, besides its variables, which function a network is.
_FUNCTION = (
    "model",
    "width",
    "activation",
    "logit_activation",
    "normalization",
    "compute_dtype",
)

# Flags defined here belong to the binary that calls for them.
flags.disclaim_key_flags()


def define_fresh_flag() -> None:
    """Defines --fresh, which the stores of a binary are made with."""
    flags.DEFINE_boolean(
        "fresh", False, "measure everything again: results kept earlier are not read"
    )


def fingerprint(
    config: Config, network: models.Network, *examples: data.Dataset
) -> str:
    """Computes a digest over all that decides what is measured of a network.

    Args:
      config: of the training.
      network: to be measured.
      *examples: what it is measured on.

    Returns:
      A hexadecimal text. It differs where the architecture, an array of the network, an
      example, a class name or the version of opnorm does.
    """
    digest = hashlib.sha256()

    def add(name: str, array: Any) -> None:
        array = np.ascontiguousarray(array)
        digest.update(f"{name} {array.shape} {array.dtype} ".encode())
        digest.update(array.tobytes())

    function = {name: getattr(config, name) for name in _FUNCTION}
    digest.update(_text({"opnorm": opnorm.__version__, **function}).encode())
    arrays = (network.params, network.batch_stats)
    for path, leaf in jax.tree_util.tree_leaves_with_path(arrays):
        add(jax.tree_util.keystr(path), leaf)
    for part in examples:
        digest.update(_text(part.class_names).encode())
        add("images", part.images)
        add("labels", part.labels)
    return digest.hexdigest()


class Parts:
    """Pieces of results on disk, so that a killed evaluation resumes.

    Attributes:
      reused: how many pieces have been read from the disk.

    Args:
      directory: where; made when the first piece is written. Its caller has checked
        that neither it nor the folder it is in is a link to another place.
      fresh: whether pieces that are there already are ignored.
    """

    def __init__(self, directory: Path, *, fresh: bool = False) -> None:
        self._directory = directory
        self._fresh = fresh
        self.reused = 0

    def get(self, key: Mapping[str, Any]) -> dict[str, np.ndarray] | None:
        """The piece saved under this key, or None; a damaged one counts as missing."""
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
        """Saves a piece; a kill leaves the whole piece or none."""
        file = self._file(key)
        file.parent.mkdir(parents=True, exist_ok=True)
        arrays = {name: np.asarray(array) for name, array in arrays.items()}
        digest = np.array(_digest_of_arrays(key, arrays))
        stream = BytesIO()
        np.savez_compressed(stream, **arrays, **{_DIGEST: digest})  # type: ignore[arg-type]
        runs.write_whole(file, stream.getvalue())

    def below(self, name: str) -> "Parts":
        """The store in a folder of this one's, fresh where this one is."""
        return Parts(self._directory / name, fresh=self._fresh)

    def _file(self, key: Mapping[str, Any]) -> Path:
        name = hashlib.sha256(_text(key).encode()).hexdigest()[:24]
        return self._directory / f"{name}.npz"


def cached(
    file: Path,
    settings: Mapping[str, Any],
    compute: Callable[[], dict[str, Any]],
    *,
    fresh: bool = False,
) -> dict[str, Any]:
    """Reads what was measured with the same settings, or measures and keeps it.

    A line on stderr says so if it is read, and a warning if it is damaged.

    Args:
      file: JSON, in a directory of results.
      settings: all that decides the measurement: strings, numbers, lists and dicts.
      compute: what is measured, as JSON holds it.
      fresh: whether what is there already is ignored.

    Returns:
      As it is read: NaN is None, and infinity a string, which float() takes.
    """
    # As they are read again.
    settings = json.loads(_text(settings))
    if not fresh and (known := _read(file)) is not None:
        known = checked(file, known)
        if known is not None and known["settings"] == settings:
            print(f"{file} is taken from an earlier measurement", file=sys.stderr)
            return known
    # As a reader of the file finds it, which the digest is over.
    found: dict[str, Any] = runs.as_json({"settings": settings, **compute()})
    runs.RunDirectory(file.parent).write_json(file.name, with_digest(found))
    return found


def with_digest(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns content with a digest over it, as :func:`checked` expects it in a file.

    Args:
      content: as JSON holds it.
    """
    found: dict[str, Any] = runs.as_json(content)
    return found | {_DIGEST: _digest_of_json(found)}


def checked(
    file: Path, content: Mapping[str, Any], *, warn: bool = True
) -> dict[str, Any] | None:
    """Returns content without its digest, or None if that does not fit.

    Args:
      file: what a warning names.
      content: what was read from it.
      warn: whether there is one.
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
      config: of its training. A run to which epochs are added is another network.
      identity: of :func:`fingerprint`.
    """
    chosen = {k: v for k, v in dataclasses.asdict(config).items() if k != "data_dir"}
    # JSON holds no infinity.
    return {"config": {k: str(v) for k, v in chosen.items()}, "identity": identity}


def _read(file: Path) -> dict[str, Any] | None:
    """Reads a JSON file; an empty dict if it cannot be read, None if missing."""
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
