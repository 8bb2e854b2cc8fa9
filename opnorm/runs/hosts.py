"""Several processes that share one run, one of which writes.

Every process runs the same program on its own devices, reads its own rows of each
batch, and takes part in every step. The first one alone reads and writes the run
directory, and sends the others what it found.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from typing import TypeVar

import jax
import numpy as np

from opnorm.runs import leaves
from opnorm.runs.json_values import JsonObject
from opnorm.runs.leaves import State
from opnorm.runs.lock import RunInUse

Value = TypeVar("Value")

# Set by the launchers whose clusters JAX can recognise by itself.
_CLUSTER_VARIABLES = (
    "JAX_COORDINATOR_ADDRESS",
    "SLURM_JOB_ID",
    "OMPI_MCA_orte_hnp_uri",
    "TPU_WORKER_HOSTNAMES",
    "MEGASCALE_COORDINATOR_ADDRESS",
    "KUBERNETES_SERVICE_HOST",
)
# Errors that all processes raise as the first one raised them.
_ERRORS: dict[str, type[Exception]] = {
    "ValueError": ValueError,
    "FileNotFoundError": FileNotFoundError,
    "RunInUse": RunInUse,
    "OSError": OSError,
}

# JAX's own is 100. A collective operation mostly fails at once when a process dies, but
# it may also wait for it forever; then JAX ends everybody after this time.
_HEARTBEAT_SECONDS = 30


class ProcessLost(RuntimeError):
    """Another process of the run is gone, and with it every step to come."""


def initialize(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    local_device_ids: list[int] | None = None,
) -> None:
    """Joins the processes of a run; before anything else touches a device.

    Give three arguments, or none where the cluster's environment says them (SLURM, Open
    MPI, TPU pods and others that ``jax.distributed.initialize`` knows).

    When one of them dies, the others end: mostly at once with ``ProcessLost``, and
    where they hang in an operation that waits for it, after 30 seconds by an abort
    that names the process.

    Args:
      coordinator_address: host:port of the first process, alike in all.
      num_processes: how many there are, at least 1.
      process_id: number of this process, from 0.
      local_device_ids: the devices of this machine that this process uses; None for
        all, or for those that the cluster says.

    Raises:
      ValueError: if only some arguments are given, or they do not fit each other.
      RuntimeError: if the others cannot be reached.
    """
    given = (coordinator_address, num_processes, process_id)
    names = "coordinator_address, num_processes and process_id"
    if any(value is None for value in given) and given != (None, None, None):
        raise ValueError(f"{names} are {given}; give all three of them or none.")
    if num_processes is not None and process_id is not None:
        if num_processes < 1 or not 0 <= process_id < num_processes:
            raise ValueError(
                f"process_id is {process_id} of {num_processes} processes; it must be "
                "from 0 to one less than their number."
            )
        if ":" not in (coordinator_address or ""):
            raise ValueError(
                f"coordinator_address is {coordinator_address!r}; it must be host:port."
            )
    elif not any(name in os.environ for name in _CLUSTER_VARIABLES):
        raise ValueError(
            f"{names} are not given, and the environment is not that of a cluster "
            "that JAX knows."
        )
    jax.distributed.initialize(
        coordinator_address,
        num_processes,
        process_id,
        local_device_ids=local_device_ids,
        heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
    )


def is_writer() -> bool:
    """Whether this process is the one that reads and writes the run directory."""
    return jax.process_index() == 0


def from_writer(function: Callable[[], Value]) -> Value:
    """Calls a function in the first process and returns its result in all of them.

    Args:
      function: its result is plain values that JSON can hold. Its error is raised
        everywhere, a ValueError, FileNotFoundError, RunInUse or OSError as such.
    """
    if jax.process_count() == 1:
        return function()
    outcome: JsonObject = {}
    failure: Exception | None = None
    if is_writer():
        try:
            outcome = {"value": function()}
        # After any error, the others must not wait for a process that has left.
        except Exception as error:
            failure = error
            kind = type(error).__name__
            if isinstance(error, OSError) and kind not in _ERRORS:
                kind = "OSError"
            outcome = {"error": kind, "message": str(error)}
    outcome = json.loads(_broadcast_text(json.dumps(outcome)))
    if failure is not None:
        raise failure
    if "error" in outcome:
        raise _ERRORS.get(outcome["error"], RuntimeError)(outcome["message"])
    value: Value = outcome["value"]
    return value


def broadcast(tree: State) -> State:
    """Returns the first process's arrays and typed keys in all of them.

    Args:
      tree: local arrays; the other processes give any of the same shapes and dtypes.
    """
    if jax.process_count() == 1:
        return tree
    from jax.experimental import multihost_utils

    plain = jax.tree.map(leaves.on_host, tree)
    sent = multihost_utils.broadcast_one_to_all(plain)
    state: State = jax.tree.map(
        lambda like, words: (
            jax.random.wrap_key_data(
                jax.numpy.asarray(words), impl=jax.random.key_impl(like)
            )
            if leaves.is_key(like)
            else np.asarray(words)
        ),
        tree,
        sent,
    )
    return state


def gather(tree: State) -> State:
    """Returns the leaves of a state whole, where parts of them lie in other processes.

    Every process calls it.
    """
    if jax.process_count() == 1:
        return tree
    from jax.experimental import multihost_utils

    def whole(leaf: jax.Array) -> leaves.Leaf:
        if leaf.is_fully_replicated:
            return leaf
        gathered: leaves.Leaf = multihost_utils.process_allgather(leaf, tiled=True)
        return gathered

    state: State = jax.tree.map(whole, tree)
    return state


def asked_to_end(step: int, *, own: bool) -> bool:
    """Whether to end after this step, because SIGTERM came to any process.

    Every process calls it after every step; JAX's coordination service settles on one
    step for all of them.

    Args:
      step: its number.
      own: whether this process was asked to; it decides where there is no other.
    """
    if jax.process_count() == 1:
        return own
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(step)


@contextlib.contextmanager
def explain_loss_of_others() -> Iterator[None]:
    """Explains the failure of a step because another process has left.

    Raises:
      ProcessLost: instead of the error of a collective operation.
    """
    if jax.process_count() == 1:
        yield
        return
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        first = str(error).strip().splitlines()[0]
        raise ProcessLost(
            "a step that all processes of the run take together failed, most likely "
            "because one of them is gone. Start all of them again with the same "
            f"flags: the run goes on from its last checkpoint. (JAX says: {first})"
        ) from error


def _broadcast_text(text: str) -> str:
    content = np.frombuffer(text.encode(), np.uint8)
    size = int(broadcast(np.asarray(content.size, np.int32)))
    padded = np.zeros(size, np.uint8)
    if is_writer():
        padded[:] = content
    sent: bytes = broadcast(padded).tobytes()
    return sent.decode()
