"""Several attacks joined to one, such as AutoAttack."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax

from opnorm.attacks import checks, registry
from opnorm.attacks.adapters import randomized
from opnorm.attacks.apgd import apgd
from opnorm.attacks.attack import Attack
from opnorm.attacks.checks import Bounds
from opnorm.attacks.fab import fab
from opnorm.attacks.square import square

# Draws of the version for randomised networks, as published.
_DRAWS = 20


@registry.register
def auto_attack(
    *,
    p: float,
    epsilon: float | jax.Array,
    num_steps: int = 100,
    num_queries: int = 5000,
    channels: str = "last",
    version: str = "standard",
    bounds: Bounds = (0.0, 1.0),
) -> Attack:
    """Returns the AutoAttack ensemble: APGD-CE, APGD-T, FAB-T and Square, in order.

    This is the standard version. Each attacks the examples that the ones before it have
    left; if none breaks an example, its clean input is returned. For p = inf and 2 it
    runs APGD on the cross-entropy once, APGD on the targeted DLR loss and FAB for 9
    targets each, and Square; for p = 1 APGD, with its larger radii, 5 times and for 5
    targets. With K classes there are at most K - 1 targets.

    The version "rand" is for networks that draw random numbers, ``f(x, keys)``: APGD on
    the cross-entropy and on the DLR loss, once each, with gradients over 20 draws
    (:func:`randomized`). It departs from the published code where that takes success
    from a single draw: here all draws of a step, and then 20 fresh ones, must succeed.

    Args:
      p: exponent of the norm: 1, 2 or inf.
      epsilon: budget in pixel units, at least 0; scalar or ``(B,)``, may be traced.
      num_steps: steps of each run of APGD and FAB; published results use 100.
      num_queries: queries of Square in the standard version; published results use
        5000.
      channels: where images have their channels, "last", "first" or "none", as for
        :func:`square`.
      version: "standard" or "rand".
      bounds: box (low, high), for all entries or for each, or None.

    Raises:
      ValueError: for an option out of range; when applied, as :class:`Attack`, and for
        inputs whose channels are plainly elsewhere.

    Source: Croce & Hein 2020, "Reliable evaluation of adversarial robustness with an
    ensemble of diverse parameter-free attacks"; Croce & Hein 2021 for p = 1.

    Example:
      The stages of the ensemble, in order:

      >>> import jax.numpy as jnp
      >>> from opnorm import attacks
      >>> attack = attacks.auto_attack(p=jnp.inf, epsilon=8 / 255)
      >>> [stage.name for stage in attack.stages]
      ['apgd_cross_entropy', 'apgd_dlr_targeted', 'fab_t', 'square']
    """
    p = checks.check_norm(p, (1.0, 2.0, math.inf))
    if version not in ("standard", "rand"):
        raise ValueError(f"version is {version!r}; it may be 'standard' or 'rand'.")
    if version == "rand":
        runs = [
            apgd(p=p, epsilon=epsilon, num_steps=num_steps, loss=loss, bounds=bounds)
            for loss in ("cross_entropy", "dlr")
        ]
        joined = dataclasses.replace(first_success(runs), name="auto_attack")
        return randomized(joined, num_draws=_DRAWS, judged_draws=_DRAWS)
    sparse = p == 1
    attacks = [
        apgd(
            p=p,
            epsilon=epsilon,
            num_steps=num_steps,
            num_restarts=5 if sparse else 1,
            bounds=bounds,
        ),
        apgd(
            p=p,
            epsilon=epsilon,
            num_steps=num_steps,
            loss="dlr_targeted",
            num_targets=5 if sparse else 9,
            bounds=bounds,
        ),
        fab(p=p, epsilon=epsilon, num_steps=num_steps, bounds=bounds),
        square(
            p=p,
            epsilon=epsilon,
            num_queries=num_queries,
            channels=channels,
            bounds=bounds,
        ),
    ]
    return dataclasses.replace(first_success(attacks), name="auto_attack")


def first_success(attacks: Sequence[Attack]) -> Attack:
    """Returns the attack that tries several in order until one succeeds.

    An example that the network gets wrong already is left as it is; one that no attack
    breaks is returned clean.

    Args:
      attacks: with a budget, all of the same norm.

    Raises:
      ValueError: for no attacks, different norms, or attacks without a budget.
    """
    _check_alike(attacks)
    unbounded = [attack.name for attack in attacks if not attack.budget]
    if unbounded:
        raise ValueError(
            f"attacks {', '.join(unbounded)} have no budget; best_distance takes them."
        )
    return _joined(first_success, attacks, keep="first", budget=True)


def best_distance(attacks: Sequence[Attack]) -> Attack:
    """Returns the attack that keeps the nearest point that any of several finds.

    An example that the network gets wrong already is at distance 0 from its point.

    Args:
      attacks: all of the same norm; those with a budget count where they succeed.

    Raises:
      ValueError: for no attacks, or different norms.

    Source: Finlay & Oberman 2019, section 4.
    """
    _check_alike(attacks)
    budget = all(attack.budget for attack in attacks)
    return _joined(best_distance, attacks, keep="nearest", budget=budget)


def _check_alike(attacks: Sequence[Attack]) -> None:
    if isinstance(attacks, Attack) or not attacks:
        given = "an attack" if isinstance(attacks, Attack) else "empty"
        raise ValueError(f"attacks is {given}; it must be a list of at least one.")
    if len({attack.p for attack in attacks}) > 1:
        norms = ", ".join(f"{attack.name} p = {attack.p:g}" for attack in attacks)
        raise ValueError(f"attacks measure different norms ({norms}); one is needed.")
    first = attacks[0]
    for attack in attacks:
        unlike = attack.difference(first)
        if unlike is not None:
            raise ValueError(
                f"attacks {first.name} and {attack.name} differ in {unlike}; give one "
                "to the joined attack."
            )


def _joined(
    join: Callable[[Sequence[Attack]], Attack],
    attacks: Sequence[Attack],
    *,
    keep: str,
    budget: bool,
) -> Attack:
    stages = tuple(stage for attack in attacks for stage in attack.stages)
    if len({stage.targeted for stage in stages}) > 1:
        raise ValueError("attacks are targeted and untargeted; one kind is needed.")
    confidences = sorted({stage.confidence for stage in stages})
    if len(confidences) > 1:
        raise ValueError(f"attacks have confidences {confidences}; one is needed.")
    name = "+".join(attack.name for attack in attacks)
    remakes = [attack.remake for attack in attacks if attack.remake is not None]

    def remake(change: Callable[[Bounds], Bounds]) -> Attack:
        return join([again(change) for again in remakes])

    # A single stage would be returned whether it succeeds or not.
    return Attack(
        name,
        attacks[0].p,
        stages,
        keep,
        budget,
        joined=True,
        scale=attacks[0].scale,
        criterion=attacks[0].criterion,
        draws=attacks[0].draws,
        remake=remake if len(remakes) == len(attacks) else None,
    )
