"""training: the state of a run and its one compiled step, data-parallel by sharding.

The batch is sharded over all devices. XLA sums gradients and BatchNorm statistics over
the global batch, so that a step means the same on one device and on eight. Parameters
and optimiser state lie whole on every device, or in parts over all of them ("fsdp"):
then each step gathers the parameters where it uses them and leaves every device the
gradient of its own part.
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
from opnorm.training.methods import Auxiliary, Batch, Method


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
      skipped_updates: int32 scalar, steps whose loss or gradient was not finite: they
        changed nothing else here but ``step`` and the counters.
      skipped_in_a_row: int32 scalar, how many of them were the last ones.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    optimizer_state: Any
    method_state: Any
    key: jax.Array
    skipped_updates: jax.Array
    skipped_in_a_row: jax.Array


PARAMETER_SHARDINGS = ("replicated", "fsdp")
# Smaller leaves cost more to gather than they take room.
_LEAST_SHARDED = 1024

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


def state_shardings(state: TrainState, mesh: Mesh, parameters: str) -> TrainState:
    """Where each leaf of a state lies.

    Args:
      state: a state, or its shapes.
      mesh: from :func:`data_mesh`.
      parameters: "replicated", or "fsdp": parameters and optimiser state split along
        their longest axis that the devices divide, unless they are small.

    Raises:
      ValueError: for another name.
    """
    if parameters not in PARAMETER_SHARDINGS:
        raise ValueError(
            f"parameter_sharding is {parameters!r}; it may be "
            f"{' or '.join(PARAMETER_SHARDINGS)}."
        )
    whole = replicated(mesh)

    def split(leaf: Any) -> NamedSharding:
        axes = [axis for axis, size in enumerate(leaf.shape) if size % mesh.size == 0]
        if leaf.size < _LEAST_SHARDED or not axes:
            return whole
        longest = max(axes, key=lambda axis: leaf.shape[axis])
        spec = [None] * leaf.ndim
        return NamedSharding(
            mesh, PartitionSpec(*spec[:longest], "data", *spec[longest + 1 :])
        )

    shardings = jax.tree.map(lambda _: whole, state)
    if parameters == "replicated":
        return shardings
    return shardings.replace(
        params=jax.tree.map(split, state.params),
        optimizer_state=jax.tree.map(split, state.optimizer_state),
    )


def make_step(
    method: Method,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    augmentation: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    accumulation_steps: int = 1,
    shardings: TrainState | None = None,
) -> Step:
    """Compiles one update: augmentation, search, loss, gradient and optimiser.

    A step whose loss, gradient or running statistics would not be finite updates
    nothing.

    Args:
      method: from :func:`opnorm.training.methods.create`.
      optimizer: an optax transformation.
      mesh: from :func:`data_mesh`; its devices share each batch.
      augmentation: ``(key, images) -> images`` on float images in [0, 1], or None.
      accumulation_steps: parts that a batch is computed in, one after the other; the
        loss and its gradient are means over them.
      shardings: from :func:`state_shardings`; None for a state that every device holds
        whole.

    Returns:
      ``(state, images, labels, indices) -> (state, metrics)`` for images ``(B, H, W,
      C)`` uint8, labels and indices ``(B,)`` int32, B a multiple of the number of
      devices times ``accumulation_steps``. The given state is donated. Metrics are
      float scalars, among them "loss", "accuracy", "gradient_norm", "update_norm" and
      "skipped_updates".
    """
    whole, split = replicated(mesh), sharded(mesh)

    def gradient_of(
        state: TrainState, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Auxiliary, Any]:
        """The loss, what comes with it, and the gradient in the parameters."""
        value_and_gradient = jax.value_and_grad(method.loss, has_aux=True)
        params = state.params
        if shardings is not None:
            # Gathered here, or XLA would rather split the layers' channels.
            params = jax.lax.with_sharding_constraint(params, whole)
        if accumulation_steps == 1:
            (loss, auxiliary), gradient = linalg.fast_convolutions(value_and_gradient)(
                params, state.batch_stats, state.method_state, batch, key
            )
            return loss, auxiliary, gradient
        # Every device keeps its own share of each part.
        parts = jax.tree.map(
            lambda leaf: leaf.reshape(-1, accumulation_steps, *leaf.shape[1:]), batch
        )

        def add(number: jax.Array, carry: Any) -> Any:
            batch_stats, method_state, *sums = carry
            part = jax.tree.map(lambda leaf: leaf[:, number], parts)
            (loss, auxiliary), gradient = value_and_gradient(
                params, batch_stats, method_state, part, jax.random.fold_in(key, number)
            )
            found = [loss, auxiliary.metrics, gradient]
            return (
                auxiliary.batch_stats,
                auxiliary.method_state,
                *jax.tree.map(jnp.add, sums, found),
            )

        first = jax.tree.map(lambda leaf: leaf[:, 0], parts)
        (loss, auxiliary), gradient = jax.eval_shape(
            value_and_gradient,
            params,
            state.batch_stats,
            state.method_state,
            first,
            key,
        )
        zeros = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
            [loss, auxiliary.metrics, gradient],
        )
        batch_stats, method_state, *sums = linalg.fori_loop(
            accumulation_steps, add, (state.batch_stats, state.method_state, *zeros)
        )
        loss, metrics, gradient = jax.tree.map(
            lambda leaf: leaf / accumulation_steps, sums
        )
        return loss, Auxiliary(batch_stats, method_state, metrics), gradient

    def step(
        state: TrainState, images: jax.Array, labels: jax.Array, indices: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(state.key, state.step)
        augment_key, method_key = jax.random.split(key)
        x = data.to_float(images)
        if augmentation is not None:
            x = augmentation(augment_key, x)
        loss, auxiliary, gradient = gradient_of(
            state, Batch(x, labels, indices), method_key
        )
        if shardings is not None:
            gradient = jax.lax.with_sharding_constraint(gradient, shardings.params)
        updates, optimizer_state = optimizer.update(
            gradient, state.optimizer_state, state.params
        )
        gradient_norm = optax.tree.norm(gradient)
        finite = jnp.isfinite(loss) & jnp.isfinite(gradient_norm)
        for statistics in jax.tree.leaves(auxiliary.batch_stats):
            finite &= jnp.isfinite(statistics).all()
        skipped = 1 - finite.astype(jnp.int32)
        updated = {
            "params": optax.apply_updates(state.params, updates),
            "batch_stats": auxiliary.batch_stats,
            "optimizer_state": optimizer_state,
            "method_state": auxiliary.method_state,
        }
        kept = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            updated,
            {name: getattr(state, name) for name in updated},
        )
        new_state = state.replace(
            **kept,
            step=state.step + 1,
            skipped_updates=state.skipped_updates + skipped,
            skipped_in_a_row=(state.skipped_in_a_row + 1) * skipped,
        )
        metrics = auxiliary.metrics | {
            "loss": loss,
            "gradient_norm": gradient_norm,
            "update_norm": optax.tree.norm(updates),
            "skipped_updates": new_state.skipped_updates.astype(loss.dtype),
        }
        return new_state, metrics

    placed = whole if shardings is None else shardings
    return jax.jit(
        step,
        in_shardings=(placed, split, split, split),
        out_shardings=(placed, whole),
        donate_argnums=0,
    )


def init_state(
    params: Any,
    batch_stats: Any,
    method: Method,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    *,
    num_examples: int,
    num_classes: int,
) -> TrainState:
    """Builds the state before the first update.

    Args:
      params: initial parameters.
      batch_stats: initial running statistics.
      method: from :func:`opnorm.training.methods.create`.
      optimizer: an optax transformation.
      key: typed key of the run.
      num_examples: size of the training set, for per-example state.
      num_classes: number of logits.
    """
    state_key, method_key = jax.random.split(key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        optimizer_state=optimizer.init(params),
        method_state=method.init(params, method_key, num_examples, num_classes),
        key=state_key,
        skipped_updates=jnp.zeros((), jnp.int32),
        skipped_in_a_row=jnp.zeros((), jnp.int32),
    )


def place(state: TrainState, shardings: TrainState) -> TrainState:
    """Copies a state of host or local arrays to where its leaves belong.

    Every process of a run calls it with the same values.
    """

    def put(leaf: Any, sharding: NamedSharding) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            words = put(jax.random.key_data(leaf), sharding)
            return jax.random.wrap_key_data(words, impl=jax.random.key_impl(leaf))
        # Copies: the state is donated, and one buffer may lie under two names.
        return jax.device_put(np.asarray(leaf), sharding, may_alias=False)

    return jax.tree.map(put, state, shardings)
