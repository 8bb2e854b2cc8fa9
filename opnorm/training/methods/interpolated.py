"""Adversarial training and the spectral penalty of the Jacobian in one loss."""

import jax
import jax.numpy as jnp

from opnorm import regularizers
from opnorm.linalg import Params, PyTree
from opnorm.training.config import Config
from opnorm.training.methods import adversarial, data_dependent, terms
from opnorm.training.methods.method import Auxiliary, Batch, Method
from opnorm.training.modes import Modes


def check(config: Config) -> None:
    """Raises ValueError for another norm or another variant of the penalty."""
    data_dependent.check_spectral(config)
    if config.variant != "difference":
        raise ValueError(
            f"variant is {config.variant!r}; the method 'interpolated' has only "
            "'difference'."
        )


def interpolated(config: Config, modes: Modes) -> Method:
    """Returns training with ``(1 - mix)`` of one term and ``mix`` of the other.

    ``mix`` 0 and 1 use the plain methods: no second search, and no third group in the
    batch statistics.
    """
    if config.mix == 0:
        return adversarial.adversarial(config, modes)
    if config.mix == 1:
        return data_dependent.data_dependent_snr(config, modes)
    perturb = adversarial.detached(adversarial.pga(config, 1.0), modes)
    init, direction, refresh = data_dependent.find_direction(config, modes)

    def loss(
        params: Params, batch_stats: PyTree, state: PyTree, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Auxiliary]:
        x, labels = batch.images, batch.labels
        part = terms.part_of(batch, config.penalty_fraction)
        attack_key, search_key = jax.random.split(key)
        perturbed = perturb(params, batch_stats, batch, attack_key)
        v = direction(params, batch_stats, state, part, search_key)
        inputs = [x, perturbed, part.images + config.epsilon * v]
        outputs, batch_stats = modes.train(
            params, batch_stats, jnp.concatenate(inputs), key
        )
        logits, attacked = outputs[: len(x)], outputs[len(x) : 2 * len(x)]
        change = outputs[2 * len(x) :] - logits[: len(v)]
        penalty = regularizers.size_penalty(change, q=2.0, squared=True).mean()
        term = (1 - config.mix) * terms.cross_entropy(attacked, labels)
        term += config.mix * penalty
        value = terms.cross_entropy(logits, labels) + config.weight * term
        metrics = (
            terms.metrics(logits, labels)
            | terms.adversarial_metrics(attacked, labels)
            | terms.penalty_metrics(penalty, change, config)
        )
        return value, Auxiliary(batch_stats, refresh(state, part, change), metrics)

    return Method(init, loss)
