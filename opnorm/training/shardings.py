"""Where batches and the leaves of a state lie: whole, or in parts over the devices."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from opnorm.linalg import ArrayShape
from opnorm.training.state import TrainState

NAMES = ("replicated", "fsdp")
# Smaller leaves cost more to gather than they take room.
_LEAST_SHARDED = 1024

_spec: Callable[..., PartitionSpec] = PartitionSpec


def data_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """Returns a mesh with one axis, "data", over the given or all devices."""
    devices = jax.devices() if devices is None else devices
    return Mesh(np.asarray(devices), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array that every device holds whole."""
    return NamedSharding(mesh, _spec())


def sharded(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array whose leading axis is split over devices."""
    return NamedSharding(mesh, _spec("data"))


def state_shardings(state: TrainState, mesh: Mesh, parameters: str) -> TrainState:
    """Returns the sharding of each leaf of a state.

    Args:
      state: a state, or its shapes.
      mesh: from :func:`data_mesh`.
      parameters: "replicated", or "fsdp": parameters and optimiser state split along
        their longest axis that the devices divide, unless they are small.

    Raises:
      ValueError: for another name.
    """
    if parameters not in NAMES:
        raise ValueError(
            f"parameter_sharding is {parameters!r}; it may be {' or '.join(NAMES)}."
        )
    whole = replicated(mesh)

    def split(leaf: ArrayShape) -> NamedSharding:
        axes = [axis for axis, size in enumerate(leaf.shape) if size % mesh.size == 0]
        if leaf.size < _LEAST_SHARDED or not axes:
            return whole
        longest = max(axes, key=lambda axis: leaf.shape[axis])
        spec = [None] * leaf.ndim
        return NamedSharding(mesh, _spec(*spec[:longest], "data", *spec[longest + 1 :]))

    placed: TrainState = jax.tree.map(lambda _: whole, state)
    if parameters == "replicated":
        return placed
    return dataclasses.replace(
        placed,
        params=jax.tree.map(split, state.params),
        optimizer_state=jax.tree.map(split, state.optimizer_state),
    )


def place(state: TrainState, shardings: TrainState) -> TrainState:
    """Copies a state of host or local arrays to where its leaves belong.

    Every process of a run calls it with the same values.
    """

    def put(leaf: jax.Array, sharding: NamedSharding) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            words = put(jax.random.key_data(leaf), sharding)
            key: jax.Array = jax.random.wrap_key_data(
                words, impl=jax.random.key_impl(leaf)
            )
            return key
        # Copies: the state is donated, and one buffer may lie under two names.
        copy: jax.Array = jax.device_put(np.asarray(leaf), sharding, may_alias=False)
        return copy

    placed: TrainState = jax.tree.map(put, state, shardings)
    return placed
