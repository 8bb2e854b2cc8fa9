"""The state of a run, which a step changes and a checkpoint holds."""

import flax.struct
import jax
import jax.numpy as jnp
import optax

from opnorm.linalg import Params, PyTree
from opnorm.training.methods import Method


@flax.struct.dataclass
class TrainState:
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
      skipped_in_a_row: int32 scalar, how many of the last steps were skipped.
    """

    step: jax.Array
    params: Params
    batch_stats: PyTree
    optimizer_state: optax.OptState
    method_state: PyTree
    key: jax.Array
    skipped_updates: jax.Array
    skipped_in_a_row: jax.Array


def init_state(
    params: Params,
    batch_stats: PyTree,
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
      method: the training method, such as ``program.method``.
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
