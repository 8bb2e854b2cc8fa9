"""Checkpoints that are whole or not there, checked byte for byte.

Orbax writes a checkpoint under another name and renames it, so one that a kill
interrupted does not count. But it keeps no checksum, and a flipped bit in an array
would be restored as another number; so a checksum of every leaf is stored beside the
state and compared when it is read, and a damaged checkpoint is passed over for the one
before.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from opnorm.runs import lock

FOLDER = "checkpoints"

# The name that orbax gives a checkpoint until it is complete.
_UNFINISHED = re.compile(r"\d+\.orbax-checkpoint-tmp(-\d+)?")
# Bytes of a checkpoint besides its arrays: metadata, and rounding by file systems.
_SPACE_FOR_FILES = 64 * 1024


class Restored(NamedTuple):
    """A checkpoint that was read and verified.

    Attributes:
      step: its number.
      state: the state.
      metadata: what was saved beside it.
    """

    step: int
    state: Any
    metadata: dict[str, Any]


class _Damaged(Exception):
    """What is wrong with a checkpoint."""


class CheckpointStore:
    """The checkpoints of one run.

    Args:
      directory: where they are; made when one is saved.
      max_to_keep: how many; older ones are removed once a newer one is complete.
    """

    def __init__(self, directory: str | os.PathLike[str], max_to_keep: int = 2) -> None:
        if max_to_keep < 1:
            raise ValueError(f"max_to_keep is {max_to_keep}; it must be at least 1.")
        self._directory = Path(directory).absolute()
        self._max_to_keep = max_to_keep
        self._manager: Any = None
        self._held = contextlib.ExitStack()

    def save(self, step: int, state: Any, metadata: dict[str, Any]) -> None:
        """Writes a checkpoint, and returns when it is complete.

        Other processes cannot save in the directory until :meth:`close`. Unfinished
        checkpoints of killed processes are removed.

        Args:
          step: its number; greater than those saved before.
          state: a pytree of arrays, numpy scalars and typed keys; no key of a dict
            holds a ".".
          metadata: anything that JSON can hold; "step" is added.

        Raises:
          ValueError: if there is a checkpoint of this or a later step, the step is
            negative, or the state cannot be stored.
          RunInUse: an OSError, if another process saves in the directory.
          OSError: if the checkpoint cannot be written; earlier ones are whole.
        """
        if step < 0:
            raise ValueError(f"step is {step}; it must be at least 0.")
        newest = max(_steps(self._directory), default=-1)
        if step <= newest:
            raise ValueError(
                f"step is {step}; {self._directory} has one of step {newest} already, "
                "and steps must rise."
            )
        import orbax.checkpoint as ocp

        leaves = {name: _host(leaf) for name, leaf in _named_leaves(state).items()}
        body = json.dumps(
            {
                "metadata": {**metadata, "step": step},
                "leaves": {name: _description(leaf) for name, leaf in leaves.items()},
            }
        )
        if self._manager is None:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._held.enter_context(lock.hold(self._directory, keep=False))
            _remove_unfinished(self._directory)
            options = ocp.CheckpointManagerOptions(
                max_to_keep=self._max_to_keep,
                enable_async_checkpointing=False,
                create=False,
                multiprocessing_options=_alone(),
            )
            self._manager = ocp.CheckpointManager(self._directory, options=options)
        with _explain_failure(self._directory, step):
            # Tensorstore prints pages where the disk fills up under it.
            _check_space(self._directory, sum(v.nbytes for v in leaves.values()))
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    # Orbax refuses empty arrays; their description says all of them.
                    state=ocp.args.StandardSave(
                        {k: v for k, v in leaves.items() if v.size}
                    ),
                    meta=ocp.args.JsonSave({"body": body, "checksum": _checksum(body)}),
                ),
            )

    def restore(
        self, example: Any, *, optional: Collection[str] = ()
    ) -> Restored | None:
        """Reads the newest checkpoint that is whole.

        Damaged ones that are newer are moved to a folder beside, ``damaged``, so that
        their steps can be saved again; nothing is deleted.

        Args:
          example: a state of the same structure, shapes, dtypes and shardings. Leaves
            that are not jax arrays come back as numpy's.
          optional: names of leaves that older checkpoints may lack; they then come
            from the example.

        Returns:
          The checkpoint, or None if there is none.

        Raises:
          ValueError: if there are checkpoints but none is whole, or if one belongs to a
            state of another structure.
        """
        for step in (found := _steps(self._directory)):
            try:
                body, leaves = _read(self._directory / str(step))
            except _Damaged as damage:
                logging.warning("Checkpoint %d is damaged: %s.", step, damage)
                continue
            names = _named_leaves(example)
            added = {n: _host(names[n]) for n in optional if n in names}
            state = _fill(example, added | leaves, self._directory / str(step))
            for newer in found[: found.index(step)]:
                self._move_aside(newer)
            return Restored(step, state, body["metadata"])
        if found:
            raise ValueError(
                f"{self._directory} has checkpoints of steps {found}, and all of them "
                "are damaged."
            )
        return None

    def close(self) -> None:
        """Ends what orbax keeps open, and lets other processes save."""
        with self._held:
            if self._manager is not None:
                self._manager.close()
                self._manager = None

    def _move_aside(self, step: int) -> None:
        shelf = self._directory.parent / "damaged"
        shelf.mkdir(exist_ok=True)
        number = sum(1 for _ in shelf.iterdir())
        shutil.move(self._directory / str(step), shelf / f"{step}-{number}")


def restore_parts(
    path: str | os.PathLike[str], names: Collection[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads fields of the state of a run; changes nothing.

    Args:
      path: a run directory, or its folder of checkpoints.
      names: of the fields.

    Returns:
      (fields by name, metadata) of the newest whole checkpoint; fields as nested dicts
      of numpy arrays, empty ones as empty dicts.

    Raises:
      FileNotFoundError: if there is no checkpoint.
      ValueError: if all are damaged, or one does not hold a state.
    """
    folder = Path(path).absolute()
    if (folder / FOLDER).is_dir():
        folder = folder / FOLDER
    steps = _steps(folder)
    if not steps:
        raise FileNotFoundError(f"there is no checkpoint in {path}.")
    for step in steps:
        try:
            body, leaves = _read(folder / str(step))
        except _Damaged as damage:
            logging.warning("Checkpoint %d is damaged: %s.", step, damage)
            continue
        parts: dict[str, Any] = {name: {} for name in names}
        for name, leaf in leaves.items():
            part, *keys = name.split(".")
            if part in parts:
                try:
                    _insert(parts[part], keys, leaf)
                except (IndexError, AttributeError, TypeError):
                    raise ValueError(
                        f"{folder / str(step)} is not a checkpoint of opnorm: its "
                        f"leaf {name[:80]} lies at no place in a state."
                    ) from None
        return parts, body["metadata"]
    raise ValueError(f"all checkpoints in {path} are damaged: steps {steps}.")


def digest(state: Any) -> str:
    """Says which arrays a pytree holds, by name, shape, dtype and content."""
    found = hashlib.sha256()
    for name, leaf in _named_leaves(state).items():
        host = np.ascontiguousarray(_host(leaf))
        found.update(f"{name} {host.shape} {host.dtype}".encode())
        found.update(host.tobytes())
    return found.hexdigest()[:32]


def _alone() -> Any:
    """Orbax's options for one process that waits for no other."""
    import orbax.checkpoint as ocp

    number = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=number,
        active_processes={number},
        barrier_sync_key_prefix=f"process{number}",
    )


def _remove_unfinished(directory: Path) -> None:
    """Removes unfinished checkpoints; the lock says that nobody is at work on them."""
    for entry in directory.iterdir():
        if _UNFINISHED.fullmatch(entry.name) and not entry.is_symlink():
            shutil.rmtree(entry)


@contextlib.contextmanager
def _explain_failure(directory: Path, step: int) -> Iterator[None]:
    """Raises an OSError that names the directory for whatever saving raises.

    Orbax and tensorstore raise a full disk as a ValueError, among others. Orbax's
    threads log the traceback of an error that is raised here, too; these pages are left
    out.
    """
    logger = logging.get_absl_logger()
    logger.addFilter(_is_not_of_orbax)
    try:
        yield
    except Exception as error:
        text = str(error)
        number = error.errno if isinstance(error, OSError) else None
        if "RESOURCE_EXHAUSTED" in text or "No space left" in text:
            number = errno.ENOSPC
        elif "PERMISSION_DENIED" in text:
            number = errno.EACCES
        reason = (text.strip().splitlines() or [type(error).__name__])[0]
        if number is not None:
            reason = os.strerror(number)
        raise OSError(
            errno.EIO if number is None else number,
            f"the checkpoint of step {step} cannot be written ({reason[:200]}); "
            "earlier ones are whole, and the run can go on from there",
            str(directory),
        ) from error
    finally:
        logger.removeFilter(_is_not_of_orbax)


def _is_not_of_orbax(record: Any) -> bool:
    return "orbax" not in Path(record.pathname).parts


def _check_space(directory: Path, size: int) -> None:
    """Raises an OSError if the disk has no room for a checkpoint of so many bytes."""
    if shutil.disk_usage(directory).free < size + _SPACE_FOR_FILES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory))


def _steps(directory: Path) -> list[int]:
    """Steps that have a complete checkpoint, newest first."""
    if not directory.is_dir():
        return []
    names = (entry.name for entry in directory.iterdir() if entry.is_dir())
    return sorted((int(name) for name in names if name.isdigit()), reverse=True)


def _read(directory: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The body and the verified leaves of one checkpoint, or _Damaged."""
    import orbax.checkpoint as ocp

    try:
        handler = ocp.JsonCheckpointHandler(multiprocessing_options=_alone())
        with ocp.Checkpointer(handler, multiprocessing_options=_alone()) as reader:
            meta = reader.restore(directory / "meta")
        if _checksum(meta["body"]) != meta["checksum"]:
            raise _Damaged("its metadata do not have their checksum")
        body = json.loads(meta["body"])
        if str(body["metadata"]["step"]) != directory.name:
            raise _Damaged(f"it is one of step {body['metadata']['step']}")
        blank = {
            name: np.zeros(leaf["shape"], jnp.dtype(leaf["dtype"]))
            for name, leaf in body["leaves"].items()
        }
        with ocp.StandardCheckpointer(multiprocessing_options=_alone()) as reader:
            stored = {name: leaf for name, leaf in blank.items() if leaf.size}
            leaves = blank | reader.restore(directory / "state", stored)
    except _Damaged:
        raise
    # Whatever a damaged file makes orbax or its libraries raise.
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise _Damaged(f"it cannot be read ({lines[0][:200]})") from error
    for name, leaf in leaves.items():
        if _description(leaf) != body["leaves"][name]:
            raise _Damaged(f"{name} does not have its checksum")
    return body, leaves


def _fill(example: Any, leaves: dict[str, np.ndarray], source: Path) -> Any:
    """The leaves in the structure, and on the devices, of the example."""
    names = _named_leaves(example)
    expected = {name: _shape_and_dtype(leaf) for name, leaf in names.items()}
    found = {name: (leaf.shape, str(leaf.dtype)) for name, leaf in leaves.items()}
    for name in [*expected, *found]:
        if expected.get(name) != found.get(name):
            raise ValueError(
                f"{source} belongs to another run: {name} is {found.get(name)} there "
                f"and {expected.get(name)} here."
            )

    def restore(name: str, like: Any) -> Any:
        value: Any = leaves[name]
        if _is_key(like):
            value = jax.random.wrap_key_data(value, impl=jax.random.key_impl(like))
            return jax.device_put(value, like.sharding)
        if isinstance(like, jax.Array):
            # Copied: the state may be donated, and this memory is numpy's.
            return jax.device_put(value, like.sharding, may_alias=False)
        return value[()] if isinstance(like, np.generic) else value

    filled = [restore(name, leaf) for name, leaf in names.items()]
    return jax.tree.unflatten(jax.tree.structure(example), filled)


def _named_leaves(state: Any) -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name = _name(path)
        # Otherwise two leaves could share a name, or restore_parts split one.
        if name in leaves or name.count(".") != len(path) - 1:
            raise ValueError(f"state has a key with a '.', or two alike, at {name}.")
        if not hasattr(leaf, "dtype"):
            raise ValueError(
                f"state is a {type(leaf).__name__} at {name}; leaves must be arrays, "
                "numpy scalars or typed keys."
            )
        leaves[name] = leaf
    return leaves


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _host(leaf: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _shape_and_dtype(leaf: Any) -> tuple[tuple[int, ...], str]:
    if _is_key(leaf):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    return tuple(leaf.shape), str(leaf.dtype)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _description(leaf: np.ndarray) -> dict[str, Any]:
    content = np.ascontiguousarray(leaf).tobytes()
    return {
        "shape": list(leaf.shape),
        "dtype": str(leaf.dtype),
        "checksum": zlib.crc32(content),
    }


def _checksum(text: str) -> int:
    return zlib.crc32(text.encode())


def _insert(tree: dict[str, Any], keys: list[str], leaf: np.ndarray) -> None:
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
    tree[keys[-1]] = leaf
