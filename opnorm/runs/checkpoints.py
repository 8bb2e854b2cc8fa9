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
from logging import LogRecord
from pathlib import Path
from typing import TYPE_CHECKING, Generic, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from opnorm import extras
from opnorm.runs import leaves, lock
from opnorm.runs.json_values import JsonObject
from opnorm.runs.leaves import State

if TYPE_CHECKING:
    import orbax.checkpoint as ocp

FOLDER = "checkpoints"
# The folder of the checkpoint that a run kept as its best.
BEST = "best"

# The name that orbax gives a checkpoint until it is complete.
_UNFINISHED = re.compile(r"\d+\.orbax-checkpoint-tmp(-\d+)?")
# Bytes of a checkpoint besides its arrays: metadata, and rounding by file systems.
_SPACE_FOR_FILES = 64 * 1024


class Restored(NamedTuple, Generic[State]):
    """A checkpoint that was read and verified.

    Attributes:
      step: its number.
      state: the state.
      metadata: the values that were saved beside it.
    """

    step: int
    state: State
    metadata: JsonObject


class _Damaged(Exception):
    """The checkpoint cannot be trusted; the message says why."""


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
        self._manager: ocp.CheckpointManager | None = None
        self._held = contextlib.ExitStack()

    def save(self, step: int, state: object, metadata: JsonObject) -> None:
        """Writes a checkpoint, and returns when it is complete.

        Other processes cannot save in the directory until :meth:`close`. Unfinished
        checkpoints of killed processes are removed.

        Args:
          step: its number; greater than those saved before.
          state: a pytree of arrays, NumPy scalars and typed keys; no key of a dict
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
        with extras.needed("opnorm.runs.CheckpointStore", extra="train"):
            import orbax.checkpoint as ocp

        arrays = {n: leaves.on_host(leaf) for n, leaf in leaves.named(state).items()}
        body = json.dumps(
            {
                "metadata": {**metadata, "step": step},
                "leaves": {
                    name: leaves.describe(leaf) for name, leaf in arrays.items()
                },
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
            _check_space(self._directory, sum(v.nbytes for v in arrays.values()))
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    # Orbax refuses empty arrays; their description says all of them.
                    state=ocp.args.StandardSave(
                        {k: v for k, v in arrays.items() if v.size}
                    ),
                    meta=ocp.args.JsonSave({"body": body, "checksum": _checksum(body)}),
                ),
            )

    def restore(
        self, example: State, *, optional: Collection[str] = ()
    ) -> Restored[State] | None:
        """Reads the newest checkpoint that is whole.

        Damaged ones that are newer are moved to a folder beside, ``damaged``, so that
        their steps can be saved again; nothing is deleted.

        Args:
          example: a state of the same structure, shapes, dtypes and shardings. Leaves
            that are not JAX arrays come back as NumPy's.
          optional: names of leaves that older checkpoints may lack; they then come
            from the example.

        Returns:
          The checkpoint, or None if there is none.

        Raises:
          ValueError: if there are checkpoints but none is whole, or if one belongs to a
            state of another structure.
        """
        for step in (steps := _steps(self._directory)):
            try:
                body, found = _read(self._directory / str(step))
            except _Damaged as damage:
                logging.warning("Checkpoint %d is damaged: %s.", step, damage)
                continue
            names = leaves.named(example)
            added = {n: leaves.on_host(names[n]) for n in optional if n in names}
            state = leaves.fill(example, added | found, self._directory / str(step))
            for newer in steps[: steps.index(step)]:
                self._move_aside(newer)
            return Restored(step, state, body["metadata"])
        if steps:
            raise ValueError(
                f"{self._directory} has checkpoints of steps {steps}, and all of them "
                "are damaged."
            )
        return None

    def discard_after(self, step: int) -> None:
        """Removes checkpoints of later steps, and unfinished ones, before any is saved.

        A run that goes on from ``step`` saves them again. The caller keeps other
        processes out.
        """
        if self._directory.is_dir():
            _remove_unfinished(self._directory)
        for later in _steps(self._directory):
            if later > step:
                shutil.rmtree(self._directory / str(later))

    def close(self) -> None:
        """Closes orbax, and lets other processes save."""
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
) -> tuple[dict[str, JsonObject], JsonObject]:
    """Reads fields of the state of a run; changes nothing.

    Args:
      path: a run directory, or its folder of checkpoints.
      names: names of the fields.

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
            body, found = _read(folder / str(step))
        except _Damaged as damage:
            logging.warning("Checkpoint %d is damaged: %s.", step, damage)
            continue
        parts: dict[str, JsonObject] = {name: {} for name in names}
        for name, leaf in found.items():
            part, *keys = name.split(".")
            if part in parts:
                try:
                    leaves.insert(parts[part], keys, leaf)
                except (IndexError, AttributeError, TypeError):
                    raise ValueError(
                        f"{folder / str(step)} is not a checkpoint of opnorm: its "
                        f"leaf {name[:80]} lies at no place in a state."
                    ) from None
        return parts, body["metadata"]
    raise ValueError(f"all checkpoints in {path} are damaged: steps {steps}.")


def digest(state: object) -> str:
    """Returns a digest of a pytree: names, shapes, dtypes and content of its arrays."""
    found = hashlib.sha256()
    for name, leaf in leaves.named(state).items():
        host = np.ascontiguousarray(leaves.on_host(leaf))
        found.update(f"{name} {host.shape} {host.dtype}".encode())
        found.update(host.tobytes())
    return found.hexdigest()[:32]


def _alone() -> "ocp.options.MultiprocessingOptions":
    """Orbax's options for one process that waits for no other."""
    with extras.needed("opnorm.runs.CheckpointStore", extra="train"):
        import orbax.checkpoint as ocp

    number = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=number,
        active_processes={number},
        barrier_sync_key_prefix=f"process{number}",
    )


def _remove_unfinished(directory: Path) -> None:
    """Removes unfinished checkpoints. The lock keeps their writers out."""
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


def _is_not_of_orbax(record: LogRecord) -> bool:
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


def _read(directory: Path) -> tuple[JsonObject, dict[str, np.ndarray]]:
    """The body and the verified leaves of one checkpoint, or _Damaged."""
    with extras.needed("opnorm.runs.CheckpointStore", extra="train"):
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
            arrays = blank | reader.restore(directory / "state", stored)
    except _Damaged:
        raise
    # Orbax and its libraries raise all kinds of errors for a damaged file.
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise _Damaged(f"it cannot be read ({lines[0][:200]})") from error
    for name, leaf in arrays.items():
        if leaves.describe(leaf) != body["leaves"][name]:
            raise _Damaged(f"{name} does not have its checksum")
    return body, arrays


def _checksum(text: str) -> int:
    return zlib.crc32(text.encode())
