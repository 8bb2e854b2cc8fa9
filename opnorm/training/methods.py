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

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from opnorm import attacks, linalg, operators, regularizers
from opnorm.linalg import BatchFunction
from opnorm.training.config import Config
from opnorm.training.modes import Modes


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
      deploy: ``(params, method_state) -> params`` of the network that was trained;
        others than those that are updated where the loss begins by changing them.
    """

    init: Callable[[Any, jax.Array, int, int], Any]
    loss: Callable[[Any, Any, Any, Batch, jax.Array], tuple[jax.Array, Auxiliary]]
    deploy: Callable[[Any, Any], Any] = lambda params, method_state: params


def create(config: Config, modes: Modes) -> Method:
    """Returns the method that a validated configuration names."""
    if config.method == "standard":
        return _standard(modes)
    if config.method == "global_snr":
        return _global(config, modes)
    if config.method in ("adversarial", "adversarial_only", "wrm"):
        return _adversarial(config, modes)
    if config.method == "interpolated":
        return _interpolated(config, modes)
    if config.method == "gradient_regularization":
        return _gradient_regularization(config, modes)
    return _data_dependent(config, modes)


def _standard(modes: Modes) -> Method:
    def loss(
        params: Any, batch_stats: Any, state: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Auxiliary]:
        logits, batch_stats = modes.train(params, batch_stats, batch.images)
        value = _cross_entropy(logits, batch.labels)
        return value, Auxiliary(batch_stats, state, _metrics(logits, batch.labels))

    return Method(_no_state, loss)


def _global(config: Config, modes: Modes) -> Method:
    def init(params: Any, key: jax.Array, num_examples: int, num_classes: int) -> Any:
        return regularizers.init_vectors(params, key)

    def loss(
        params: Any, batch_stats: Any, state: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Auxiliary]:
        logits, batch_stats = modes.train(params, batch_stats, batch.images)
        found = regularizers.global_spectral_norm(
            params, state, num_steps=config.num_steps
        )
        value = _cross_entropy(logits, batch.labels) + config.weight * found.penalty
        metrics = _metrics(logits, batch.labels) | {"penalty": found.penalty}
        return value, Auxiliary(batch_stats, found.vectors, metrics)

    return Method(init, loss)


def _adversarial(config: Config, modes: Modes) -> Method:
    perturb = _attack(config, modes)
    clean_too = config.method == "adversarial"

    def loss(
        params: Any, batch_stats: Any, state: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Auxiliary]:
        x, labels = batch.images, batch.labels
        perturbed = perturb(params, batch_stats, batch, key)
        inputs = jnp.concatenate([x, perturbed]) if clean_too else perturbed
        outputs, batch_stats = modes.train(params, batch_stats, inputs)
        logits, adversarial = outputs[: len(x)], outputs[-len(x) :]
        adversarial_loss = _cross_entropy(adversarial, labels)
        value = adversarial_loss
        if clean_too:
            value = _cross_entropy(logits, labels) + config.weight * adversarial_loss
        # Without a clean pass the accuracy reported is that on the perturbed examples.
        metrics = _metrics(logits, labels) | _adversarial_metrics(adversarial, labels)
        return value, Auxiliary(batch_stats, state, metrics)

    return Method(_no_state, loss)


def _data_dependent(config: Config, modes: Modes) -> Method:
    squared = config.method == "data_dependent_snr"
    init, direction, refresh = _search(config, modes)
    fraction = config.penalty_fraction if config.variant == "difference" else 1.0

    def loss(
        params: Any, batch_stats: Any, state: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Auxiliary]:
        x, part = batch.images, _part(batch, fraction)
        v = direction(params, batch_stats, state, part, key)
        if config.variant == "derivative":
            logits, change, batch_stats = jax.jvp(
                lambda z: modes.train(params, batch_stats, z),
                (x,),
                (v,),
                has_aux=True,
            )
            change = config.epsilon * change
        else:
            inputs = jnp.concatenate([x, part.images + config.epsilon * v])
            outputs, batch_stats = modes.train(params, batch_stats, inputs)
            logits = outputs[: len(x)]
            change = outputs[len(x) :] - logits[: len(v)]
        penalty = regularizers.size_penalty(change, q=config.q, squared=squared).mean()
        value = _cross_entropy(logits, batch.labels) + config.weight * penalty
        metrics = _metrics(logits, batch.labels) | _penalty_metrics(
            penalty, change, config
        )
        state = refresh(state, part, change)
        return value, Auxiliary(batch_stats, state, metrics)

    return Method(init, loss)


def _interpolated(config: Config, modes: Modes) -> Method:
    # At the ends the other search would be paid for and its examples would share the
    # batch statistics: they are the methods themselves.
    if config.mix == 0:
        return _adversarial(dataclasses.replace(config, method="adversarial"), modes)
    if config.mix == 1:
        alone = dataclasses.replace(config, method="data_dependent_snr")
        return _data_dependent(alone, modes)
    perturb = _attack(config, modes)
    init, direction, refresh = _search(config, modes)

    def loss(
        params: Any, batch_stats: Any, state: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Auxiliary]:
        x, labels = batch.images, batch.labels
        part = _part(batch, config.penalty_fraction)
        attack_key, search_key = jax.random.split(key)
        perturbed = perturb(params, batch_stats, batch, attack_key)
        v = direction(params, batch_stats, state, part, search_key)
        inputs = [x, perturbed, part.images + config.epsilon * v]
        outputs, batch_stats = modes.train(params, batch_stats, jnp.concatenate(inputs))
        logits, adversarial = outputs[: len(x)], outputs[len(x) : 2 * len(x)]
        change = outputs[2 * len(x) :] - logits[: len(v)]
        penalty = regularizers.size_penalty(change, q=2.0, squared=True).mean()
        term = (1 - config.mix) * _cross_entropy(adversarial, labels)
        term += config.mix * penalty
        value = _cross_entropy(logits, labels) + config.weight * term
        metrics = (
            _metrics(logits, labels)
            | _adversarial_metrics(adversarial, labels)
            | _penalty_metrics(penalty, change, config)
        )
        return value, Auxiliary(batch_stats, refresh(state, part, change), metrics)

    return Method(init, loss)


def _gradient_regularization(config: Config, modes: Modes) -> Method:
    step = config.difference_step

    def loss(
        params: Any, batch_stats: Any, state: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Auxiliary]:
        x, labels = batch.images, batch.labels
        part = _part(batch, config.penalty_fraction)
        frozen = lax.stop_gradient((params, batch_stats))

        def total(z: jax.Array) -> jax.Array:
            return jnp.sum(_cross_entropies(modes.infer(*frozen, z), part.labels))

        d = regularizers.gradient_direction(jax.grad(total)(part.images), config.p)
        inputs = jnp.concatenate([x, part.images + step * d])
        outputs, batch_stats = modes.train(params, batch_stats, inputs)
        logits = outputs[: len(x)]
        clean = _cross_entropies(logits, labels)
        shifted = _cross_entropies(outputs[len(x) :], part.labels)
        slope = (shifted - clean[: len(d)]) / step
        penalty = regularizers.slope_penalty(
            slope, d, config.p, divide_by_size=config.divide_by_size
        ).mean()
        value = clean.mean() + config.weight * penalty
        metrics = _metrics(logits, labels) | {"penalty": penalty}
        return value, Auxiliary(batch_stats, state, metrics)

    return Method(_no_state, loss)


def attack(
    config: Config, *, strength: float | jax.Array = 1.0
) -> Callable[[BatchFunction, jax.Array, jax.Array, jax.Array], jax.Array]:
    """Returns the attack that a method trains with, for measurements of the same.

    Args:
      config: validated, of a method in ``ADVERSARIAL`` or "wrm".
      strength: what the lengths of perturbation and step are multiplied by; of "wrm",
        what the price is divided by. Positive, may be traced.

    Returns:
      ``(f, images, labels, key) -> perturbed images`` for a batch function f. With
      predicted labels the given ones are not used.
    """
    if config.method == "wrm":
        # Its first step goes to the maximiser of a linear loss.
        search = attacks.wrm(gamma=config.gamma / strength, num_steps=config.num_steps)
    else:
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

    def perturb(
        f: BatchFunction, images: jax.Array, labels: jax.Array, key: jax.Array
    ) -> jax.Array:
        if config.attack_labels == "predicted":
            labels = jnp.argmax(f(images), axis=-1)
        return search(f, images, labels, key)

    return perturb


def _attack(config: Config, modes: Modes) -> Callable[..., jax.Array]:
    """``(params, batch_stats, batch, key) ->`` perturbed images, no gradient."""
    perturb = attack(config)

    def bound(params: Any, batch_stats: Any, batch: Batch, key: jax.Array) -> jax.Array:
        frozen = lax.stop_gradient((params, batch_stats))

        def f(x: jax.Array) -> jax.Array:
            return modes.infer(*frozen, x)

        return perturb(f, batch.images, batch.labels, key)

    return bound


class _Search(NamedTuple):
    """How the direction v of a data-dependent penalty is found and remembered."""

    init: Callable[[Any, jax.Array, int, int], Any]
    direction: Callable[..., jax.Array]
    refresh: Callable[[Any, Batch, jax.Array], Any]


def _search(config: Config, modes: Modes) -> _Search:
    amortized = config.search == "amortized"

    def init(params: Any, key: jax.Array, num_examples: int, num_classes: int) -> Any:
        if not amortized:
            return {}
        return {"left": jax.random.normal(key, (num_examples, num_classes))}

    def direction(
        params: Any, batch_stats: Any, state: Any, batch: Batch, key: jax.Array
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

    def refresh(state: Any, batch: Batch, change: jax.Array) -> Any:
        if not amortized:
            return state
        left = state["left"].at[batch.indices].set(lax.stop_gradient(change))
        return {"left": left}

    return _Search(init, direction, refresh)


def _part(batch: Batch, fraction: float) -> Batch:
    """The examples of a batch that the penalty is taken on, at least one."""
    count = max(1, round(len(batch.images) * fraction))
    return Batch(*(array[:count] for array in batch))


def _no_state(params: Any, key: jax.Array, num_examples: int, num_classes: int) -> Any:
    return {}


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return _cross_entropies(logits, labels).mean()


def _cross_entropies(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Of each example."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def _accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.mean(jnp.argmax(logits, -1) == labels)


def _metrics(logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    return {"accuracy": _accuracy(logits, labels)}


def _adversarial_metrics(logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    return {
        "adversarial_loss": _cross_entropy(logits, labels),
        "adversarial_accuracy": _accuracy(logits, labels),
    }


def _penalty_metrics(
    penalty: jax.Array, change: jax.Array, config: Config
) -> dict[str, jax.Array]:
    gain = linalg.norm(change, config.q).mean() / max(config.epsilon, 1e-12)
    return {"penalty": penalty, "jacobian_norm": gain}
