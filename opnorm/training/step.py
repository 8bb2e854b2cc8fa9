"""training: the state of a run and its one compiled step, data-parallel by sharding.

Parameters and the rest of the state are replicated over all devices, the batch is
sharded over them; XLA then sums gradients and BatchNorm statistics over the global
batch, so that a step means the same on one device and on eight.
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from opnorm import data, linalg
from opnorm.training.methods import Batch, Method


class TrainState(flax.struct.PyTreeNode):
    """Everything that a step changes, and so everything a checkpoint holds.

    Attributes:
      step: int32 scalar, updates done so far. The data position, the learning rate and
        the step's randomness are functions of it.
      params: parameters.
      batch_stats: BatchNorm's running statistics, perhaps empty.
      optimizer_state: optax state.
      method_state: persistent vectors of the training method, perhaps empty.
      key: typed key; each step folds its number in.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    optimizer_state: Any
    method_state: Any
    key: jax.Array


Step = Callable[
    [TrainState, jax.Array, jax.Array, jax.Array],
    tuple[TrainState, dict[str, jax.Array]],
]


def data_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """Returns a mesh with one axis, "data", over the given or all devices."""
    devices = jax.devices() if devices is None else devices
    return Mesh(np.asarray(devices), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def sharded(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array whose leading axis is split over devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def make_step(
    method: Method,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    augment: bool,
    flip: bool = True,
) -> Step:
    """Compiles one update: augmentation, search, loss, gradient and optimiser.

    Args:
      method: from :func:`opnorm.training.methods.create`.
      optimizer: an optax transformation.
      mesh: from :func:`data_mesh`; its devices share each batch.
      augment: random crop after padding by 4 and, with ``flip``, horizontal flip.
      flip: whether augmentation may mirror (not for digits).

    Returns:
      ``(state, images, labels, indices) -> (state, metrics)`` for images ``(B, H, W,
      C)`` uint8, labels and indices ``(B,)`` int32, B a multiple of the number of
      devices. The given state is donated. Metrics are float scalars, among them "loss",
      "accuracy", "gradient_norm" and "update_norm".
    """

    def step(
        state: TrainState, images: jax.Array, labels: jax.Array, indices: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(state.key, state.step)
        augment_key, method_key = jax.random.split(key)
        x = data.to_float(images)
        if augment:
            x = data.augment(augment_key, x, flip=flip)
        gradient_of = linalg.fast_convolutions(
            jax.value_and_grad(method.loss, has_aux=True)
        )
        (loss, auxiliary), gradient = gradient_of(
            state.params,
            state.batch_stats,
            state.method_state,
            Batch(x, labels, indices),
            method_key,
        )
        updates, optimizer_state = optimizer.update(
            gradient, state.optimizer_state, state.params
        )
        metrics = auxiliary.metrics | {
            "loss": loss,
            "gradient_norm": optax.tree.norm(gradient),
            "update_norm": optax.tree.norm(updates),
        }
        return (
            TrainState(
                step=state.step + 1,
                params=optax.apply_updates(state.params, updates),
                batch_stats=auxiliary.batch_stats,
                optimizer_state=optimizer_state,
                method_state=auxiliary.method_state,
                key=state.key,
            ),
            metrics,
        )

    whole, split = replicated(mesh), sharded(mesh)
    return jax.jit(
        step,
        in_shardings=(whole, split, split, split),
        out_shardings=(whole, whole),
        donate_argnums=0,
    )


def init_state(
    params: Any,
    batch_stats: Any,
    method: Method,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    mesh: Mesh,
    *,
    num_examples: int,
    num_classes: int,
) -> TrainState:
    """Builds the state before the first update, replicated over the mesh.

    Args:
      params: initial parameters.
      batch_stats: initial running statistics.
      method: from :func:`opnorm.training.methods.create`.
      optimizer: an optax transformation.
      key: typed key of the run.
      mesh: from :func:`data_mesh`.
      num_examples: size of the training set, for per-example state.
      num_classes: number of logits.
    """
    state_key, method_key = jax.random.split(key)
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        optimizer_state=optimizer.init(params),
        method_state=method.init(params, method_key, num_examples, num_classes),
        key=state_key,
    )
    # Copies, because donating one buffer under two names is an error.
    return jax.device_put(jax.tree.map(jnp.copy, state), replicated(mesh))
