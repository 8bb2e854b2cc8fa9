"""analysis: signs that an evaluation of robustness may be too good to be true."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from opnorm import attacks
from opnorm.analysis.robustness import (
    Apply,
    attack_examples,
    check_examples,
    check_labels,
)
from opnorm.attacks.square import check_layout

# Differences of paired examples below this many standard errors are chance.
_ERRORS = 2.0
# Relative differences of logits between two evaluations of the same pictures.
_SAME = 1e-4
# AutoAttack's allowance for what Square may gain over gradients.
_GAIN = 0.002


class Check(NamedTuple):
    """One sanity check.

    Attributes:
      name: what should hold.
      passed: whether it does.
      detail: the numbers.
    """

    name: str
    passed: bool
    detail: str


def sanity_checks(
    apply: Apply,
    variables: Any,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    p: float,
    epsilon: float,
    num_steps: int = 20,
    num_queries: int = 200,
    channels: str = "last",
    batch_size: int = 100,
    key: jax.Array,
    index: np.ndarray | None = None,
) -> list[Check]:
    """Checks a network and a budget for signs that attacks fail for a wrong reason.

    Gradients are finite and not zero; evaluating twice gives the same logits, which
    are logits and not probabilities; PGA (APGD for p = 1) beats one step, random points
    of the ball and, for p = 1, 2 and inf, the Square Attack; twice the steps do no
    worse; and with a budget that reaches a grey picture no example stands. Comparisons
    are paired by example, and fail beyond two standard errors.

    Args:
      apply: ``(variables, (B, ...)) -> (B, K)``, in inference mode; pure,
        see :mod:`opnorm.analysis`.
      variables: first argument of ``apply``: all of the network that may change.
      images: ``(N, ...)``, uint8 or float in [0, 1]; a hundred examples tell enough.
      labels: ``(N,)`` int.
      p: exponent of the norm, in [1, inf].
      epsilon: budget in [0, 1] pixel units.
      num_steps: steps of the iterative attack.
      num_queries: queries of Square, and half as many random points.
      channels: where images have their channels, as for :func:`attacks.square`.
      batch_size: rows per compiled call.
      key: typed key.
      index: ``(N,)`` int, numbers of the examples in the data set; None for 0, ...

    Returns:
      The checks; those that did not pass are warnings, not proofs.

    Raises:
      ValueError: as :func:`attack_examples`, and for images whose channels are plainly
        elsewhere.

    Source: Carlini et al. 2019, "On evaluating adversarial robustness"; Croce & Hein
    2020 for the flags of AutoAttack. Its flag for defences that optimise at inference
    has no counterpart: whether a compiled function does so cannot be told.
    """
    check_examples(images, labels, batch_size)
    if p in (1, 2, math.inf):
        check_layout(images.shape, channels)
    check_labels(apply, variables, images, labels, batch_size)
    found = _basic_checks(apply, variables, images, labels, batch_size)
    reach = 0.5 * math.prod(images.shape[1:]) ** (1 / p)

    def stands(name: str, budget: float, **options: Any) -> np.ndarray:
        attacked = attack_examples(
            apply,
            variables,
            images,
            labels,
            attack=_factory(name, p, tuple(sorted(options.items()))),
            epsilons=[budget],
            batch_size=batch_size,
            key=key,
            index=index,
        )
        return ~attacked.success[0]

    # In L1 sparse steps on many entries reach farther than those along the steepest.
    name = "apgd" if p == 1 else "pga"
    strong = stands(name, epsilon, num_steps=num_steps, keep="success")
    longer = stands(name, epsilon, num_steps=2 * num_steps, keep="success")
    far = stands(name, reach, num_steps=2 * num_steps, keep="success")
    rivals = {
        "iterative attacks beat a single step": stands("fgm", epsilon),
        "gradients beat random points": stands(
            "uniform_noise", epsilon, num_draws=max(num_queries // 2, 2)
        ),
    }
    if p in (1, 2, math.inf):
        rivals["white-box attacks beat a black-box one"] = stands(
            "square", epsilon, num_queries=num_queries, channels=channels
        )
    for name, weak in rivals.items():
        found.append(_no_worse(name, strong, weak))
    found.append(_no_worse("more steps never help the model", longer, strong))
    found.append(
        Check(
            "accuracy reaches 0 as epsilon grows",
            not far.any(),
            f"{far.mean():.1%} stand at epsilon {reach:.3g}, which reaches grey",
        )
    )
    return found


def square_check(before: float, after: float) -> Check:
    """AutoAttack's flag: Square should not gain on what gradients have left.

    Args:
      before: accuracy before Square in an ensemble.
      after: accuracy after it.
    """
    return Check(
        "Square gains nothing on gradient attacks",
        before - after <= _GAIN,
        f"accuracy {before:.1%} before Square, {after:.1%} after",
    )


def _basic_checks(
    apply: Apply,
    variables: Any,
    images: np.ndarray,
    labels: np.ndarray,
    batch_size: int,
) -> list[Check]:
    parts = []
    for start in range(0, len(images), batch_size):
        rows = np.minimum(np.arange(start, start + batch_size), len(images) - 1)
        batch = _probe(apply)(variables, images[rows], labels[rows])
        kept = min(batch_size, len(images) - start)
        parts.append(jax.tree.map(lambda a, n=kept: np.asarray(a)[:n], batch))
    logits, again, zero, finite = map(np.concatenate, zip(*parts, strict=True))
    size = np.maximum(np.linalg.norm(logits, axis=1), 1e-10)
    apart = np.nanmax(np.linalg.norm(logits - again, axis=1) / size, initial=0.0)
    classes = logits.shape[1]
    probable = (
        np.all((logits > -1e-5) & (logits < 1 + 1e-5))
        and np.max(np.abs(logits.sum(axis=1) - 1)) < 1e-5
    )
    return [
        Check(
            "gradients are finite",
            bool(finite.all()),
            f"{1 - finite.mean():.1%} of the input gradients are not",
        ),
        Check(
            "gradients are not zero",
            not zero.any(),
            f"{zero.mean():.1%} of the input gradients are",
        ),
        Check(
            "the network is deterministic",
            bool(apart <= _SAME),
            f"two evaluations differ by {apart:.1e} of the logits' length",
        ),
        Check(
            "the network returns logits",
            not probable,
            "outputs are probabilities" if probable else "outputs are not normalised",
        ),
        Check(
            "there are classes enough for the DLR losses",
            classes >= 4,
            f"{classes} classes; with 2 or 3 the losses are those of the margin or of "
            "the untargeted ratio",
        ),
    ]


def _no_worse(name: str, strong: np.ndarray, weak: np.ndarray) -> Check:
    """The strong attack leaves no more examples standing than the weak one."""
    extra = strong.astype(float) - weak.astype(float)
    error = extra.std(ddof=min(1, len(extra) - 1)) / math.sqrt(len(extra))
    return Check(
        name,
        bool(extra.mean() <= _ERRORS * error),
        f"accuracy {strong.mean():.1%} against {weak.mean():.1%}",
    )


@functools.lru_cache(maxsize=64)
def _factory(
    name: str, p: float, options: tuple[tuple[str, Any], ...]
) -> Callable[[Any], attacks.Attack]:
    """One object for each attack, so that it is compiled once."""
    return lambda epsilon: attacks.make(name, p=p, epsilon=epsilon, **dict(options))


@functools.lru_cache(maxsize=16)
def _probe(apply: Apply) -> Callable[..., Any]:
    @jax.jit
    def evaluate(variables: Any, x: jax.Array, labels: jax.Array) -> Any:
        x = x.astype(jnp.float32) / 255 if x.dtype == jnp.uint8 else x
        f = functools.partial(apply, variables)

        def total(z: jax.Array) -> tuple[jax.Array, jax.Array]:
            logits = f(z)
            return jnp.sum(attacks.cross_entropy(logits, labels)), logits

        gradient, logits = jax.grad(total, has_aux=True)(x)
        flat = gradient.reshape(len(x), -1)
        zero = jnp.all(flat == 0, axis=1)
        return logits, zero, jnp.all(jnp.isfinite(flat), axis=1)

    forward = jax.jit(
        lambda variables, x: apply(
            variables, x.astype(jnp.float32) / 255 if x.dtype == jnp.uint8 else x
        )
    )

    def probe(variables: Any, x: Any, labels: Any) -> Any:
        logits, zero, finite = evaluate(variables, x, labels)
        # A second program, so that nothing is shared but the network.
        return logits, forward(variables, x), zero, finite

    return probe
