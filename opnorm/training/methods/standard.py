"""Cross-entropy, alone or with a penalty on the norms of the layers."""

import jax

from opnorm import regularizers
from opnorm.linalg import Params, PyTree
from opnorm.training.config import Config
from opnorm.training.methods import terms
from opnorm.training.methods.method import Auxiliary, Batch, Method, no_state
from opnorm.training.modes import Modes


def standard(config: Config, modes: Modes) -> Method:
    """Returns plain training."""
    del config

    def loss(
        params: Params, batch_stats: PyTree, state: PyTree, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Auxiliary]:
        logits, batch_stats = modes.train(params, batch_stats, batch.images, key)
        value = terms.cross_entropy(logits, batch.labels)
        metrics = terms.metrics(logits, batch.labels)
        return value, Auxiliary(batch_stats, state, metrics)

    return Method(no_state, loss)


def global_snr(config: Config, modes: Modes) -> Method:
    """Returns training with half the sum of the layers' squared spectral norms."""

    def init(
        params: Params, key: jax.Array, num_examples: int, num_classes: int
    ) -> PyTree:
        return regularizers.init_vectors(params, key)

    def loss(
        params: Params, batch_stats: PyTree, state: PyTree, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Auxiliary]:
        logits, batch_stats = modes.train(params, batch_stats, batch.images, key)
        found = regularizers.global_spectral_norm(
            params, state, num_steps=config.num_steps
        )
        value = terms.cross_entropy(logits, batch.labels)
        value += config.weight * found.penalty
        metrics = terms.metrics(logits, batch.labels) | {"penalty": found.penalty}
        return value, Auxiliary(batch_stats, found.vectors, metrics)

    return Method(init, loss)
