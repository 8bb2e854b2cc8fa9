"""Cross-entropy at perturbed images, with or without that at the clean ones."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from opnorm import attacks
from opnorm.linalg import BatchFunction, Params, PyTree
from opnorm.training.config import Config
from opnorm.training.methods import terms
from opnorm.training.methods.method import Auxiliary, Batch, Method, Perturb, no_state
from opnorm.training.modes import Modes

# (params, batch_stats, batch, key) -> perturbed images.
Search = Callable[[Params, PyTree, Batch, jax.Array], jax.Array]


def adversarial(config: Config, modes: Modes) -> Method:
    """Returns training on clean images and on those of PGA."""
    return _trained_at(detached(pga(config, 1.0), modes), config, modes, clean_too=True)


def adversarial_only(config: Config, modes: Modes) -> Method:
    """Returns training on the images of PGA."""
    search = detached(pga(config, 1.0), modes)
    return _trained_at(search, config, modes, clean_too=False)


def wrm_only(config: Config, modes: Modes) -> Method:
    """Returns training on the images of WRM (Sinha et al. 2018)."""
    search = detached(wrm(config, 1.0), modes)
    return _trained_at(search, config, modes, clean_too=False)


def pga(config: Config, strength: float | jax.Array) -> Perturb:
    """Returns projected gradient ascent with the options of a configuration.

    Args:
      config: validated.
      strength: factor of the lengths of perturbation and step. Positive, may be traced.
    """
    size = config.step_size
    search = attacks.pga(
        p=config.p,
        epsilon=config.epsilon * strength,
        num_steps=config.num_steps,
        step_size=None if size is None else size * strength,
        random_start=config.random_start,
        # As published, and as runs have trained that may be resumed.
        skip_blocked=False,
    )
    return _led_away(search, config)


def wrm(config: Config, strength: float | jax.Array) -> Perturb:
    """Returns WRM with the options of a configuration.

    Args:
      config: validated.
      strength: divisor of the price. Positive, may be traced.
    """
    # Its first step goes to the maximiser of a linear loss.
    search = attacks.wrm(gamma=config.gamma / strength, num_steps=config.num_steps)
    return _led_away(search, config)


def detached(perturb: Perturb, modes: Modes) -> Search:
    """Runs an attack on the network in inference mode, without a gradient."""

    def search(
        params: Params, batch_stats: PyTree, batch: Batch, key: jax.Array
    ) -> jax.Array:
        frozen = lax.stop_gradient((params, batch_stats))

        def f(x: jax.Array) -> jax.Array:
            return modes.infer(*frozen, x)

        return perturb(f, batch.images, batch.labels, key)

    return search


def _led_away(search: Perturb, config: Config) -> Perturb:
    """The attack away from the labels that ``attack_labels`` names."""

    def perturb(
        f: BatchFunction, images: jax.Array, labels: jax.Array, key: jax.Array
    ) -> jax.Array:
        if config.attack_labels == "predicted":
            labels = jnp.argmax(f(images), axis=-1)
        return search(f, images, labels, key)

    return perturb


def _trained_at(
    search: Search, config: Config, modes: Modes, *, clean_too: bool
) -> Method:
    def loss(
        params: Params, batch_stats: PyTree, state: PyTree, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Auxiliary]:
        x, labels = batch.images, batch.labels
        perturbed = search(params, batch_stats, batch, key)
        inputs = jnp.concatenate([x, perturbed]) if clean_too else perturbed
        outputs, batch_stats = modes.train(params, batch_stats, inputs, key)
        logits, adversarial = outputs[: len(x)], outputs[-len(x) :]
        value = adversarial_loss = terms.cross_entropy(adversarial, labels)
        if clean_too:
            value = terms.cross_entropy(logits, labels)
            value += config.weight * adversarial_loss
        # Without a clean pass the accuracy reported is that on the perturbed examples.
        metrics = terms.metrics(logits, labels)
        metrics |= terms.adversarial_metrics(adversarial, labels)
        return value, Auxiliary(batch_stats, state, metrics)

    return Method(no_state, loss)
