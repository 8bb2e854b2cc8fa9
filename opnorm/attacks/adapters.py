"""Attacks in a weighted norm, for another goal, and on randomised networks."""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from opnorm import linalg
from opnorm.attacks import randomness, weights
from opnorm.attacks.attack import Attack
from opnorm.attacks.checks import Bounds
from opnorm.attacks.criteria import Criterion, Judge
from opnorm.attacks.randomness import Draws, Rule


def weighted(
    attack: Attack,
    *,
    scale: float | np.ndarray | None = None,
    mask: np.ndarray | None = None,
) -> Attack:
    """Returns the attack in a norm with a unit of length for each entry of x.

    Lengths are ``||(x_adv - x) / scale||_p``: epsilon, step sizes and the distances of
    the result. With p = inf an entry i may change by ``epsilon scale_i``. The attack
    searches in the variables ``x / scale``, where its norm and its box are the plain
    ones, so this is exact for every attack. Entries of scale 0, and those that the mask
    leaves out, stay as they are.

    Args:
      attack: an attack that a factory of this library has made, or several joined.
      scale: at least 0; a number or an array that broadcasts against one example, such
        as one number for each channel or feature. None for 1.
      mask: array of bool that broadcasts against one example, True for entries that may
        change; None for all.

    Returns:
      An attack of the same name. Its bounds are, as before, those of x.

    Raises:
      ValueError: for a scale or a mask of another kind, no entry that may change, an
        attack that is weighted already, or one of other origin that keeps to a box;
        when applied, for shapes that do not fit.

    Example:
      The first feature is measured in units ten times as large.

      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> from opnorm import attacks
      >>> plain = attacks.fgm(p=jnp.inf, epsilon=0.5, bounds=None)
      >>> attack = attacks.weighted(plain, scale=np.array([10.0, 1.0]))
      >>> x, labels = jnp.array([[40.0, 60.0]]), jnp.array([1])
      >>> found = attack.run(lambda x: x, x, labels)
      >>> print(found.x_adv, found.distance)
      [[45.  59.5]] [0.5]
    """
    if scale is None and mask is None:
        return attack
    values = weights.read_scale(scale, mask)
    if attack.scale is not None:
        raise ValueError(f"attack {attack.name} has a scale already; it takes one.")
    if attack.remake is not None:
        made = attack.remake(functools.partial(weights.transform, values))
    elif np.all(values > 0) and all(stage.bounds is None for stage in attack.stages):
        made = attack
    else:
        raise ValueError(
            f"attack {attack.name} keeps to a box of its own; only attacks that a "
            "factory of this library has made can be weighted."
        )
    stages = tuple(
        dataclasses.replace(stage, bounds=plain.bounds)
        for stage, plain in zip(made.stages, attack.stages, strict=True)
    )
    return dataclasses.replace(
        made,
        name=attack.name,
        stages=stages,
        scale=values,
        criterion=attack.criterion,
        remake=None,
    )


def with_criterion(
    attack: Attack, *, loss: Judge, success: Judge | None = None
) -> Attack:
    """Returns the attack with a goal of the caller's: regression, several labels, ...

    The attack then takes a network of any outputs and labels of any shape. It searches
    on a network of two logits, 0 and the loss, and leaves class 0; the named losses of
    an attack are functions of these two. The loss is divided by its modulus at x, so
    its unit does not matter, and a ``confidence`` of the attack is in these units.

    Args:
      attack: any attack. With ``targeted`` it raises the same loss.
      loss: ``(outputs, labels (B, ...)) -> (B,)`` float, to maximise. Attacks for the
        nearest point want a loss that is zero where success begins, such as a margin,
        also where a ``success`` is given.
      success: ``(outputs, labels) -> (B,)`` bool, whether the attack has reached its
        goal; None if it has where the loss is positive.

    Returns:
      The attack. Its ``success`` is that of this goal; a loss of NaN is none.

    Raises:
      ValueError: when applied, for labels without a row for each example, and values of
        another shape than ``(B,)``.

    Example:
      A regression counts as wrong when it is off by more than one half.

      >>> import jax.numpy as jnp
      >>> from opnorm import attacks
      >>> def off(outputs, wanted):
      ...     return jnp.abs(outputs - wanted).max(axis=1) - 0.5
      >>> nearest = attacks.fab(p=2, num_steps=5, bounds=None)
      >>> attack = attacks.with_criterion(nearest, loss=off)
      >>> x, wanted = jnp.array([[0.1, 0.3]]), jnp.array([[1.4]])
      >>> found = attack.run(lambda x: x @ jnp.array([[3.0], [4.0]]), x, wanted)
      >>> found.success, round(float(found.distance[0]), 3)
      (Array([ True], dtype=bool), 0.08)
    """
    return dataclasses.replace(attack, criterion=Criterion(loss, success))


def randomized(
    attack: Attack,
    *,
    num_draws: int = 20,
    judged_draws: int = 20,
    rule: Rule = "all",
) -> Attack:
    """Returns the attack for a network that draws random numbers ("EOT").

    The network is a batch function with a key for each example, ``f(x, keys) -> (B,
    K)``: the noise of a row depends on the key of this row alone. Each gradient of a
    search is the mean over draws with fresh keys (expectation over transformation).
    Points are judged by draws that no search has seen, and the point that is returned
    by draws that did not choose it either: a search stops at lucky draws, and its own
    would overstate success.

    A search takes a point for adversarial by the same rule over its own draws. Attacks
    that use logits or decisions alone see those of the draw that decides the rule. A
    step evaluates ``num_draws`` times the rows of the batch at once, which a batch size
    must allow for. All attacks see the same keys whatever the batch size.

    Args:
      attack: any attack with a budget, also a joined, a weighted one or one with a
        criterion.
      num_draws: draws of each example in each step of a search, at least 1.
      judged_draws: fresh draws of each example that judge a point, at least 1.
      rule: "all": there is success where every draw goes as the attack wants, so that
        searches go on until no draw resists. "majority": where more than half do.
        Searches then stop at points where the network is still right in many draws.

    Returns:
      The attack, which needs a key. Its ``success`` is by the rule, and its ``rate``
      the fraction of the judged draws that go as the attack wants, an estimate of their
      probability that depends on no rule.

    Raises:
      ValueError: for counts below 1, another rule, an attack without a budget, or one
        that is randomised already; when applied, for no key, or a network that takes no
        keys.

    Source: Athalye et al. 2018, "Synthesizing robust adversarial examples".

    Example:
      The network flips a coin, so no point is adversarial in every draw.

      >>> import jax
      >>> import jax.numpy as jnp
      >>> from opnorm import attacks
      >>> def coin(x, keys):
      ...     heads = jax.vmap(jax.random.bernoulli)(keys)
      ...     return jnp.stack([heads, ~heads], axis=1) + 0.0 * x[:, :2]
      >>> attack = attacks.randomized(attacks.fgm(p=2, epsilon=0.1), judged_draws=1000)
      >>> x, labels = jnp.full((1, 2), 0.5), jnp.array([0])
      >>> found = attack.run(coin, x, labels, jax.random.key(0))
      >>> found.success, bool(abs(found.rate[0] - 0.5) < 0.05)
      (Array([False], dtype=bool), True)
    """
    if not attack.budget:
        raise ValueError(
            f"attack {attack.name} has no budget; the shortest point that a search "
            "accepts is that of its luckiest draws, and fresh ones refuse it. Give an "
            "attack with an epsilon."
        )
    if attack.draws is not None:
        raise ValueError(f"attack {attack.name} is randomised already.")
    linalg.check_count("num_draws", num_draws, 1)
    linalg.check_count("judged_draws", judged_draws, 1)
    if rule not in ("all", "majority"):
        raise ValueError(f"rule is {rule!r}; it may be 'all' or 'majority'.")
    draws = Draws(num_draws, judged_draws, rule)
    again = attack.remake

    def remake(change: Callable[[Bounds], Bounds]) -> Attack:
        assert again is not None
        made = again(change)
        return randomized(
            made, num_draws=num_draws, judged_draws=judged_draws, rule=rule
        )

    return dataclasses.replace(
        attack,
        stages=tuple(randomness.draw_stage(stage, draws) for stage in attack.stages),
        draws=draws,
        remake=None if again is None else remake,
    )
