"""The one compiled step of a run, data-parallel by sharding.

The batch is sharded over all devices. XLA sums gradients and BatchNorm statistics over
the global batch, so that a step means the same on one device and on eight. Parameters
and optimiser state lie whole on every device, or in parts over all of them ("fsdp"):
then each step gathers the parameters where it uses them and leaves every device the
gradient of its own part.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from opnorm import data, linalg
from opnorm.linalg import Params, PyTree
from opnorm.training.methods import Auxiliary, Batch, Loss, Method
from opnorm.training.shardings import replicated, sharded
from opnorm.training.state import TrainState

Metrics = dict[str, jax.Array]
# (state, images, labels, indices) -> (state, metrics).
Step = Callable[
    [TrainState, jax.Array, jax.Array, jax.Array], tuple[TrainState, Metrics]
]
# (key, images) -> images.
Augmentation = Callable[[jax.Array, jax.Array], jax.Array]

_constrain: Callable[[Params, PyTree], Params] = jax.lax.with_sharding_constraint


class _Found(NamedTuple):
    """The loss of a batch, its other results, and the gradient in the parameters."""

    loss: jax.Array
    auxiliary: Auxiliary
    gradient: Params


def make_step(
    method: Method,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    augmentation: Augmentation | None = None,
    accumulation_steps: int = 1,
    shardings: TrainState | None = None,
) -> Step:
    """Compiles one update: augmentation, search, loss, gradient and optimiser.

    A step whose loss, gradient or running statistics would not be finite updates
    nothing.

    Args:
      method: the training method, such as ``program.method``.
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

    def step(
        state: TrainState, images: jax.Array, labels: jax.Array, indices: jax.Array
    ) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        augment_key, method_key = jax.random.split(key)
        x = data.to_float(images)
        if augmentation is not None:
            x = augmentation(augment_key, x)
        gathered = state
        if shardings is not None:
            # Gathered here, or XLA would rather split the layers' channels.
            params = _constrain(state.params, whole)
            gathered = dataclasses.replace(state, params=params)
        batch = Batch(x, labels, indices)
        find = _gradient if accumulation_steps == 1 else _accumulated_gradient
        found = find(method.loss, gathered, batch, method_key, accumulation_steps)
        if shardings is not None:
            gradient = _constrain(found.gradient, shardings.params)
            found = found._replace(gradient=gradient)
        return _update(state, found, optimizer)

    placed = whole if shardings is None else shardings
    compiled: Step = jax.jit(
        step,
        in_shardings=(placed, split, split, split),
        out_shardings=(placed, whole),
        donate_argnums=0,
    )
    return compiled


def _gradient(
    loss: Loss, state: TrainState, batch: Batch, key: jax.Array, num_parts: int
) -> _Found:
    del num_parts
    value_and_gradient = linalg.fast_convolutions(
        jax.value_and_grad(loss, has_aux=True)
    )
    (value, auxiliary), gradient = value_and_gradient(
        state.params, state.batch_stats, state.method_state, batch, key
    )
    return _Found(value, auxiliary, gradient)


def _accumulated_gradient(
    loss: Loss, state: TrainState, batch: Batch, key: jax.Array, num_parts: int
) -> _Found:
    """The means over the parts of a batch, one after the other."""
    value_and_gradient = jax.value_and_grad(loss, has_aux=True)
    params = state.params
    # Every device keeps its own share of each part.
    parts = jax.tree.map(
        lambda leaf: leaf.reshape(-1, num_parts, *leaf.shape[1:]), batch
    )

    def add(number: jax.Array, carry: tuple[PyTree, ...]) -> tuple[PyTree, ...]:
        batch_stats, method_state, *sums = carry
        part = jax.tree.map(lambda leaf: leaf[:, number], parts)
        (value, auxiliary), gradient = value_and_gradient(
            params, batch_stats, method_state, part, jax.random.fold_in(key, number)
        )
        found = [value, auxiliary.metrics, gradient]
        return (
            auxiliary.batch_stats,
            auxiliary.method_state,
            *jax.tree.map(jnp.add, sums, found),
        )

    first = jax.tree.map(lambda leaf: leaf[:, 0], parts)
    (value, auxiliary), gradient = jax.eval_shape(
        value_and_gradient, params, state.batch_stats, state.method_state, first, key
    )
    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
        [value, auxiliary.metrics, gradient],
    )
    batch_stats, method_state, *sums = linalg.fori_loop(
        num_parts, add, (state.batch_stats, state.method_state, *zeros)
    )
    value, metrics, gradient = jax.tree.map(lambda leaf: leaf / num_parts, sums)
    return _Found(value, Auxiliary(batch_stats, method_state, metrics), gradient)


def _update(
    state: TrainState, found: _Found, optimizer: optax.GradientTransformation
) -> tuple[TrainState, Metrics]:
    """The state after an update, or with one more skipped where it is not finite."""
    loss, auxiliary, gradient = found
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
    new_state = dataclasses.replace(
        state,
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
