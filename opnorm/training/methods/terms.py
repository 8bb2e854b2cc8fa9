"""Terms of the losses, and their metrics."""

import jax
import jax.numpy as jnp
import optax

from opnorm import linalg
from opnorm.training.config import Config
from opnorm.training.methods.method import Batch


def part_of(batch: Batch, fraction: float) -> Batch:
    """Returns the first examples of a batch, at least one.

    Batches are shuffled, so a mean over them is an unbiased estimate of the mean over
    the batch.
    """
    count = max(1, round(len(batch.images) * fraction))
    return Batch(*(array[:count] for array in batch))


def cross_entropies(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the cross-entropy of each example, ``(B,)``."""
    losses: jax.Array = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the mean cross-entropy, a scalar."""
    return cross_entropies(logits, labels).mean()


def metrics(logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    """Returns the metrics of every method."""
    return {"accuracy": _accuracy(logits, labels)}


def adversarial_metrics(logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    """Returns the metrics of the logits at perturbed images."""
    return {
        "adversarial_loss": cross_entropy(logits, labels),
        "adversarial_accuracy": _accuracy(logits, labels),
    }


def penalty_metrics(
    penalty: jax.Array, change: jax.Array, config: Config
) -> dict[str, jax.Array]:
    """Returns the metrics of a penalty on the change of the logits."""
    gain = linalg.norm(change, config.q).mean() / max(config.epsilon, 1e-12)
    return {"penalty": penalty, "jacobian_norm": gain}


def _accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.mean(jnp.argmax(logits, -1) == labels)
