"""training: training methods as pairs of pure functions (init, loss).

Which BatchNorm statistics a pass uses decides whether a method works, so each is
chosen on purpose:

- Searches (an attack, a power step) run in inference mode, on running statistics:
  only there are the rows independent, so that each example has a Jacobian. They are
  detached from the parameters, and do not touch the running statistics.
- Terms of the loss run in train mode. Under batch statistics the weights are
  scale-free; a penalty on running statistics would be lowered by shrinking the
  weights, which changes nothing once the statistics follow, and gave no robustness.
- Clean and perturbed examples share one train-mode pass, so they share statistics,
  which are updated once per step.

The direction of a data-dependent penalty is found in one of three ways ("search"):

- "iterative": power steps from a random start;
- "dense": the exact dense Jacobian of the logits, one backward pass per logit;
- "amortized": a table keeps every example's left vector u (one number per logit)
  between epochs. A step pulls it back, ``v = T_{p*}(J^T u)``, one backward pass; and
  the change of the logits that the penalty computes anyway is the next u for free.
  Logit space moves less under augmentation and updates than input space, where a
  table of v lags behind.

The difference penalty may be taken on a part of each batch: shuffling makes that a
random part, so its mean is an unbiased estimate of the mean over the batch.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from opnorm import attacks, linalg, operators, regularizers
from opnorm.training.config import Config
from opnorm.training.network import Network


class Batch(NamedTuple):
    """Examples of one step.

    Attributes:
      images: ``(B, H, W, C)`` float in [0, 1], augmented.
      labels: ``(B,)`` int.
      indices: ``(B,)`` int, the examples' places in the training set.
    """

    images: jax.Array
    labels: jax.Array
    indices: jax.Array


class Auxiliary(NamedTuple):
    """What a loss returns beside its value.

    Attributes:
      batch_stats: updated running statistics.
      method_state: updated state of the method.
      metrics: named scalars.
    """

    batch_stats: Any
    method_state: Any
    metrics: dict[str, jax.Array]


class Method(NamedTuple):
    """A training method.

    Attributes:
      init: ``(params, key, num_examples, num_classes) -> method_state``.
      loss: ``(params, batch_stats, method_state, batch, key) -> (scalar, Auxiliary)``,
        differentiable in params.
    """

    init: Callable[[Any, jax.Array, int, int], Any]
    loss: Callable[[Any, Any, Any, Batch, jax.Array], tuple[jax.Array, Auxiliary]]


def create(config: Config, network: Network) -> Method:
    """Returns the method that a validated configuration names."""
    if config.method == "standard":
        return _standard(network)
    if config.method == "global_snr":
        return _global(config, network)
    if config.method in ("adversarial", "adversarial_only"):
        return _adversarial(config, network)
    return _data_dependent(config, network)


def _standard(network: Network) -> Method:
    def loss(
        params: Any, batch_stats: Any, state: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Auxiliary]:
        logits, batch_stats = network.train(params, batch_stats, batch.images)
        value = _cross_entropy(logits, batch.labels)
        return value, Auxiliary(batch_stats, state, _metrics(logits, batch.labels))

    return Method(_no_state, loss)


def _global(config: Config, network: Network) -> Method:
    def init(params: Any, key: jax.Array, num_examples: int, num_classes: int) -> Any:
        return regularizers.init_vectors(params, key)

    def loss(
        params: Any, batch_stats: Any, state: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Auxiliary]:
        logits, batch_stats = network.train(params, batch_stats, batch.images)
        found = regularizers.global_spectral_norm(
            params, state, num_steps=config.num_steps
        )
        value = _cross_entropy(logits, batch.labels) + config.weight * found.penalty
        metrics = _metrics(logits, batch.labels) | {"penalty": found.penalty}
        return value, Auxiliary(batch_stats, found.vectors, metrics)

    return Method(init, loss)


def _adversarial(config: Config, network: Network) -> Method:
    attack = attacks.pga(
        p=config.p,
        epsilon=config.epsilon,
        num_steps=config.num_steps,
        step_size=config.step_size,
    )
    clean_too = config.method == "adversarial"

    def loss(
        params: Any, batch_stats: Any, state: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Auxiliary]:
        x, labels = batch.images, batch.labels
        frozen = lax.stop_gradient((params, batch_stats))
        perturbed = attack(lambda z: network.infer(*frozen, z), x, labels, key)
        inputs = jnp.concatenate([x, perturbed]) if clean_too else perturbed
        outputs, batch_stats = network.train(params, batch_stats, inputs)
        logits, adversarial = outputs[: len(x)], outputs[-len(x) :]
        adversarial_loss = _cross_entropy(adversarial, labels)
        value = adversarial_loss
        if clean_too:
            value = _cross_entropy(logits, labels) + config.weight * adversarial_loss
        # Without a clean pass the accuracy reported is that on the perturbed examples.
        metrics = _metrics(logits, labels) | {
            "adversarial_loss": adversarial_loss,
            "adversarial_accuracy": _accuracy(adversarial, labels),
        }
        return value, Auxiliary(batch_stats, state, metrics)

    return Method(_no_state, loss)


def _data_dependent(config: Config, network: Network) -> Method:
    p, q, epsilon = config.p, config.q, config.epsilon
    squared = config.method == "data_dependent_snr"
    amortized = config.search == "amortized"
    fraction = config.penalty_fraction if config.variant == "difference" else 1.0

    def init(params: Any, key: jax.Array, num_examples: int, num_classes: int) -> Any:
        if not amortized:
            return {}
        return {"left": jax.random.normal(key, (num_examples, num_classes))}

    def direction(
        f: Callable[[jax.Array], jax.Array], state: Any, batch: Batch, key: jax.Array
    ) -> jax.Array:
        x = batch.images
        if amortized:
            _, pull = jax.vjp(f, x)
            (pulled,) = pull(linalg.dual_map(state["left"][batch.indices], q))
            return linalg.dual_map(pulled, linalg.conjugate_exponent(p))
        return operators.jacobian_norm(
            f, x, p=p, q=q, method=config.search, num_steps=config.num_steps, key=key
        ).right

    def loss(
        params: Any, batch_stats: Any, state: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Auxiliary]:
        x = batch.images
        part = Batch(*(array[: _part(len(x), fraction)] for array in batch))
        frozen = lax.stop_gradient((params, batch_stats))
        v = direction(lambda z: network.infer(*frozen, z), state, part, key)
        v = lax.stop_gradient(v)
        if config.variant == "derivative":
            logits, change, batch_stats = jax.jvp(
                lambda z: network.train(params, batch_stats, z),
                (x,),
                (v,),
                has_aux=True,
            )
            change = epsilon * change
        else:
            inputs = jnp.concatenate([x, part.images + epsilon * v])
            outputs, batch_stats = network.train(params, batch_stats, inputs)
            logits = outputs[: len(x)]
            change = outputs[len(x) :] - logits[: len(v)]
        penalty = regularizers.size_penalty(change, q=q, squared=squared).mean()
        value = _cross_entropy(logits, batch.labels) + config.weight * penalty
        if amortized:
            left = state["left"].at[part.indices].set(lax.stop_gradient(change))
            state = {"left": left}
        gain = linalg.norm(change, q).mean() / max(epsilon, 1e-12)
        metrics = {"penalty": penalty, "jacobian_norm": gain}
        return value, Auxiliary(
            batch_stats, state, _metrics(logits, batch.labels) | metrics
        )

    return Method(init, loss)


def _part(batch_size: int, fraction: float) -> int:
    """How many examples of a batch the penalty is taken on, at least one."""
    return max(1, round(batch_size * fraction))


def _no_state(params: Any, key: jax.Array, num_examples: int, num_classes: int) -> Any:
    return {}


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def _accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.mean(jnp.argmax(logits, -1) == labels)


def _metrics(logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    return {"accuracy": _accuracy(logits, labels)}
