"""A penalty on the norm of the network's Jacobian at each example.

The direction of the penalty is found in one of three ways (``search``):

- "iterative": power steps from a random start;
- "dense": the exact dense Jacobian of the logits, one backward pass per logit;
- "amortized": a table keeps every example's left vector u (one number per logit)
  between epochs. A step pulls it back, ``v = T_{p*}(J^T u)``, one backward pass; and
  the change of the logits that the penalty computes anyway is the next u for free.
  Logit space moves less under augmentation and updates than input space, where a
  table of v lags behind.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from opnorm import linalg, operators, regularizers
from opnorm.linalg import Params, PyTree
from opnorm.training.config import Config
from opnorm.training.methods import terms
from opnorm.training.methods.method import Auxiliary, Batch, Init, Method
from opnorm.training.modes import Modes


class Search(NamedTuple):
    """How the direction v of a penalty is found and remembered.

    Attributes:
      init: ``(params, key, num_examples, num_classes) -> state``.
      direction: ``(params, batch_stats, state, batch, key) -> v`` of the images' shape,
        of length 1 in the norm p, without a gradient.
      refresh: ``(state, batch, change of the logits) -> state``.
    """

    init: Init
    direction: Callable[[Params, PyTree, PyTree, Batch, jax.Array], jax.Array]
    refresh: Callable[[PyTree, Batch, jax.Array], PyTree]


def data_dependent_snr(config: Config, modes: Modes) -> Method:
    """Returns training with half the squared spectral norm of the Jacobian."""
    return _penalized(config, modes, squared=True)


def data_dependent_onr(config: Config, modes: Modes) -> Method:
    """Returns training with the (p, q) operator norm of the Jacobian."""
    return _penalized(config, modes, squared=False)


def check_spectral(config: Config) -> None:
    """Raises ValueError unless the norm is the spectral one."""
    if (config.p, config.q) != (2, 2):
        raise ValueError(
            f"method {config.method!r} is for the (2, 2) norm, and p, q are "
            f"{config.p}, {config.q}; for others use method 'data_dependent_onr'."
        )


def find_direction(config: Config, modes: Modes) -> Search:
    """Returns the search that a validated configuration names."""
    amortized = config.search == "amortized"

    def init(
        params: Params, key: jax.Array, num_examples: int, num_classes: int
    ) -> PyTree:
        if not amortized:
            return {}
        shape = (num_examples, num_classes)
        return {"left": linalg.draw(jax.random.normal, key, shape, float)}

    def direction(
        params: Params, batch_stats: PyTree, state: PyTree, batch: Batch, key: jax.Array
    ) -> jax.Array:
        frozen = lax.stop_gradient((params, batch_stats))
        x, p, q = batch.images, config.p, config.q

        def f(x: jax.Array) -> jax.Array:
            return modes.infer(*frozen, x)

        if amortized:
            _, pull = jax.vjp(f, x)
            (pulled,) = pull(linalg.dual_map(state["left"][batch.indices], q))
            return lax.stop_gradient(
                linalg.dual_map(pulled, linalg.conjugate_exponent(p))
            )
        found = operators.jacobian_norm(
            f, x, p=p, q=q, method=config.search, num_steps=config.num_steps, key=key
        )
        return lax.stop_gradient(found.right)

    def refresh(state: PyTree, batch: Batch, change: jax.Array) -> PyTree:
        if not amortized:
            return state
        left = state["left"].at[batch.indices].set(lax.stop_gradient(change))
        return {"left": left}

    return Search(init, direction, refresh)


def _penalized(config: Config, modes: Modes, *, squared: bool) -> Method:
    init, direction, refresh = find_direction(config, modes)
    fraction = config.penalty_fraction if config.variant == "difference" else 1.0

    def loss(
        params: Params, batch_stats: PyTree, state: PyTree, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Auxiliary]:
        x, part = batch.images, terms.part_of(batch, fraction)
        v = direction(params, batch_stats, state, part, key)
        if config.variant == "derivative":
            logits, change, batch_stats = jax.jvp(
                lambda z: modes.train(params, batch_stats, z, key),
                (x,),
                (v,),
                has_aux=True,
            )
            change = config.epsilon * change
        else:
            inputs = jnp.concatenate([x, part.images + config.epsilon * v])
            outputs, batch_stats = modes.train(params, batch_stats, inputs, key)
            logits = outputs[: len(x)]
            change = outputs[len(x) :] - logits[: len(v)]
        penalty = regularizers.size_penalty(change, q=config.q, squared=squared).mean()
        value = terms.cross_entropy(logits, batch.labels) + config.weight * penalty
        metrics = terms.metrics(logits, batch.labels)
        metrics |= terms.penalty_metrics(penalty, change, config)
        state = refresh(state, part, change)
        return value, Auxiliary(batch_stats, state, metrics)

    return Method(init, loss)
