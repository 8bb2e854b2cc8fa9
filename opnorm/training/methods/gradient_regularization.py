"""A penalty on the gradient of the loss in the input (Finlay & Oberman 2019)."""

import jax
import jax.numpy as jnp
from jax import lax

from opnorm import regularizers
from opnorm.linalg import Params, PyTree
from opnorm.training.config import Config
from opnorm.training.methods import terms
from opnorm.training.methods.method import Auxiliary, Batch, Method, no_state
from opnorm.training.modes import Modes


def check(config: Config) -> None:
    """Raises ValueError unless the network computes in float32."""
    if config.compute_dtype != "float32":
        raise ValueError(
            f"compute_dtype is {config.compute_dtype!r}; a finite difference of step "
            f"{config.difference_step} would be rounding. The method "
            f"{config.method!r} needs float32."
        )


def gradient_regularization(config: Config, modes: Modes) -> Method:
    """Returns training with half the squared dual norm of the gradient."""
    step = config.difference_step

    def loss(
        params: Params, batch_stats: PyTree, state: PyTree, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Auxiliary]:
        x, labels = batch.images, batch.labels
        part = terms.part_of(batch, config.penalty_fraction)
        frozen = lax.stop_gradient((params, batch_stats))

        def total(z: jax.Array) -> jax.Array:
            return jnp.sum(terms.cross_entropies(modes.infer(*frozen, z), part.labels))

        d = regularizers.gradient_direction(jax.grad(total)(part.images), config.p)
        inputs = jnp.concatenate([x, part.images + step * d])
        outputs, batch_stats = modes.train(params, batch_stats, inputs, key)
        logits = outputs[: len(x)]
        clean = terms.cross_entropies(logits, labels)
        shifted = terms.cross_entropies(outputs[len(x) :], part.labels)
        slope = (shifted - clean[: len(d)]) / step
        penalty = regularizers.slope_penalty(
            slope, d, config.p, divide_by_size=config.divide_by_size
        ).mean()
        value = clean.mean() + config.weight * penalty
        metrics = terms.metrics(logits, labels) | {"penalty": penalty}
        return value, Auxiliary(batch_stats, state, metrics)

    return Method(no_state, loss)
