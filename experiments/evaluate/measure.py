"""Attacks a network and sums up what they found, as plain numbers and lists."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.common import attack_specs, cache
from experiments.common.measure import norm_name
from experiments.common.records import Record, mean_and_error
from experiments.evaluate import goals as aims
from opnorm import analysis, data, linalg

_FIELDS = ("success", "distance", "steps", "stage")
_POINTS = ("success", "x_adv")


class Settings(NamedTuple):
    """How a network is evaluated; lengths are in [0, 1] pixel units.

    Attributes:
      attacks: the attacks to run.
      p: exponent of the norm.
      epsilons: rising, without 0: budgets of the attacks that have one; accuracy is
        reported at each of them.
      typical_epsilon: budget of the sanity checks, and of the perturbations that are
        compared with singular vectors.
      batch_size: examples in a compiled call.
      part_size: examples after which results are saved.
      check_examples: examples for the sanity checks; 0 for no checks.
      seed: random seed of the attacks.
      keep_points: whether to return the attacked images, of the first attack at the
        first budget.
      goals: the classes to reach, and the units of lengths; the default is neither.
    """

    attacks: Sequence[attack_specs.AttackSpec]
    p: float
    epsilons: Sequence[float]
    typical_epsilon: float
    batch_size: int
    part_size: int
    check_examples: int
    seed: int
    keep_points: bool = False
    goals: aims.Goals = aims.Goals()

    def attack(self, spec: attack_specs.AttackSpec) -> attack_specs.Factory:
        """Returns ``epsilon -> attack`` for these goals: one object for each attack."""
        return attack_specs.factory(
            spec, self.p, targeted=self.targeted, units=self.goals.units
        )

    @property
    def targeted(self) -> bool:
        """Whether the attacks are to reach a class."""
        return self.goals.targets is not None


class Measured(NamedTuple):
    """The results of :func:`measure`.

    Attributes:
      results: the entries "clean_accuracy", "clean_standard_error", "attacks",
        "best_known" and "checks" of the results. With targets the means of attacks
        and of "best_known" are rates of success, and otherwise accuracies.
      nearest: ``(N,)``, distance of the nearest point of success of these attacks: 0
        where there is none needed, inf where there is none.
      aimed: the examples, with their targets as labels where there are targets.
      x_adv: ``(N, ...)`` float32, the attacked images, the clean image where the attack
        failed; None unless asked for.
      success: ``(N,)`` bool, whether the network is wrong at ``x_adv``; or None.
    """

    results: Record
    nearest: np.ndarray
    aimed: data.Dataset
    x_adv: np.ndarray | None
    success: np.ndarray | None


def measure(
    network: linalg.Network,
    test_set: data.Dataset,
    settings: Settings,
    parts: cache.Parts,
    identity: str,
) -> Measured:
    """Runs all attacks and checks.

    Args:
      network: the network, in inference mode.
      test_set: N examples.
      settings: how to evaluate it.
      parts: where the results of parts of the test set are kept.
      identity: the result of :func:`cache.fingerprint` for network and examples.
    """
    clean = analysis.evaluate_accuracy(
        network, test_set.images, test_set.labels, batch_size=settings.batch_size
    )
    aimed, stands = test_set, clean.correct
    if settings.targeted:
        aimed = aims.aim(
            network,
            test_set,
            settings.goals,
            seed=settings.seed,
            batch=settings.batch_size,
        )
        reached = analysis.evaluate_accuracy(
            network, aimed.images, aimed.labels, batch_size=settings.batch_size
        )
        stands = ~reached.correct
    nearest = np.where(stands, np.inf, 0.0)
    cards: dict[str, Record] = {}
    points: Record = {}
    for spec in settings.attacks:
        found = attack_in_parts(network, aimed, spec, settings, parts, identity)
        points = points or {n: found[n][0] for n in _POINTS if n in found}
        nearest = np.minimum(nearest, found["distance"].min(axis=0))
        cards[str(spec)] = _card(found, spec, settings, stands)
    checks = [] if settings.targeted else _square_checks(cards)
    if settings.check_examples and settings.goals.units is None:
        checks += _sanity_checks(network, test_set, settings, checks)
    norm = norm_name(settings.p)
    key = {"identity": identity, "norm": norm, **settings.goals.key}
    if settings.goals.targets == "random":
        key["seed"] = settings.seed
    known = best_known(parts.below("best_known"), key, nearest, list(cards))
    results = {
        "clean_accuracy": clean.mean,
        "clean_standard_error": clean.standard_error,
        "attacks": cards,
        "best_known": {norm: _best_known_card(*known, settings)},
        "checks": [check._asdict() for check in checks],
    }
    x_adv = points.get("x_adv")
    success = None if x_adv is None else points["success"]
    return Measured(results, nearest, aimed, x_adv, success)


def attack_in_parts(
    network: linalg.Network,
    test_set: data.Dataset,
    spec: attack_specs.AttackSpec,
    settings: Settings,
    parts: cache.Parts,
    identity: str,
) -> Record:
    """Runs one attack on the test set, part by part, and saves each part.

    Returns:
      "success", "distance", "steps", "stage", each ``(E, N)``; with ``keep_points``
      also "x_adv", ``(E, N, ...)``; "seconds", the time
      that all parts took, in this process and in earlier ones; "pieces" and "reused",
      the number of parts and how many of them an earlier process measured. A distance
      of a successful attack with a budget is at most the budget: rounding of the
      difference between two images may have put it above.
    """
    has_budget = attack_specs.has_budget(spec)
    budgets = [float(e) for e in settings.epsilons] if has_budget else [0.0]
    fields = (*_FIELDS, "x_adv") if settings.keep_points else _FIELDS

    def attack(first: int, last: int, tell: Callable[[float], None]) -> cache.Arrays:
        began = time.monotonic()
        attacked = analysis.attack_examples(
            network,
            test_set.images[first:last],
            test_set.labels[first:last],
            attack=settings.attack(spec),
            epsilons=budgets if has_budget else None,
            batch_size=settings.batch_size,
            key=jax.random.key(settings.seed),
            index=np.arange(first, last),
            keep_points=settings.keep_points,
            on_progress=tell,
        )
        arrays = {name: getattr(attacked, name) for name in fields}
        return arrays | {"seconds": np.array(time.monotonic() - began)}

    before = parts.reused
    key = {
        "identity": identity,
        "attack": str(spec),
        "p": settings.p,
        "epsilons": budgets,
        "seed": settings.seed,
        # Parts without points keep the key that they have always had.
        **({"points": True} if settings.keep_points else {}),
        **settings.goals.key,
    }
    found = cache.in_parts(
        parts,
        key,
        attack,
        count=len(test_set),
        part_size=settings.part_size,
        description=str(spec),
    )
    whole: Record = {
        name: np.concatenate([part[name] for part in found], axis=1) for name in fields
    }
    if has_budget:
        nearest = np.minimum(whole["distance"], np.array(budgets)[:, None])
        whole["distance"] = np.where(whole["success"], nearest, whole["distance"])
    whole["seconds"] = float(sum(part["seconds"] for part in found))
    return whole | {"pieces": len(found), "reused": parts.reused - before}


def _card(
    found: Mapping[str, Any],
    spec: attack_specs.AttackSpec,
    settings: Settings,
    stands: np.ndarray,
) -> Record:
    """The results of one attack."""
    if attack_specs.has_budget(spec):
        card = _budget_card(found, spec, settings, stands)
    else:
        card = distance_card(found["distance"][0], settings.epsilons, found["seconds"])
    return card | {name: found[name] for name in ("pieces", "reused")}


def _budget_card(
    found: Mapping[str, Any],
    spec: attack_specs.AttackSpec,
    settings: Settings,
    stands: np.ndarray,
) -> Record:
    """Sums up an attack with a budget: accuracy against epsilon, from epsilon 0 on.

    An example that falls within a budget counts as fallen within every larger budget.
    With targets the rates are those of the examples that fall, and not of those that
    stand.

    Args:
      found: the result of :func:`attack_in_parts`.
      spec: the attack.
      settings: how the network was evaluated.
      stands: ``(N,)`` bool, whether an example stands without an attack.
    """
    attacked = analysis.Attacked(
        **{name: found[name] for name in _FIELDS}, x_adv=None, row_steps=0
    )
    robust = ~analysis.worst_over_budgets(attacked, settings.epsilons)
    standing = np.concatenate([stands[None], robust]).T
    counted = ~standing if settings.targeted else standing
    curve = mean_and_error(counted)
    among_standing = analysis.average(counted, where=stands[:, None]).mean
    card: Record = {
        "epsilon": [0.0, *map(float, settings.epsilons)],
        **curve,
        # As a fraction of the examples that stand at x: some papers report this.
        "conditional": [_finite(mean) for mean in among_standing.tolist()],
        "mean_steps": found["steps"].mean(axis=1).tolist(),
        "seconds": found["seconds"],
    }
    stages = settings.attack(spec)(np.ones(1)).stages
    if len(stages) > 1:
        # The rate after each attack of the ensemble, separately for each budget.
        card["after"] = {
            stage.name: [
                float(np.mean(_after(row, number, stands) != settings.targeted))
                for row in found["stage"]
            ]
            for number, stage in enumerate(stages)
        }
    return card


def _after(stage: np.ndarray, last: int, stands: np.ndarray) -> np.ndarray:
    """Returns the examples that stand after the stages 0 to ``last``, ``(N,)`` bool."""
    left: np.ndarray = stands & ~((stage >= 0) & (stage <= last))
    return left


def distance_card(
    distance: np.ndarray, epsilons: Sequence[float], seconds: float
) -> Record:
    """Sums up distances ``(N,)``: 0 where the network is wrong, inf if not found."""
    found = np.isfinite(distance)
    right = found & (distance > 0)
    unknown = {"mean": None, "standard_error": None}
    return {
        "found": float(found.mean()),
        **(mean_and_error(distance[found]) if found.any() else unknown),
        "median": _finite(float(np.median(distance))),
        "mean_of_correct": float(distance[right].mean()) if right.any() else None,
        "error_within": {
            f"{epsilon:g}": float(np.mean(_within(distance, epsilon)))
            for epsilon in epsilons
        },
        "seconds": seconds,
    }


def best_known(
    parts: cache.Parts,
    key: Mapping[str, Any],
    distance: np.ndarray,
    names: Sequence[str],
) -> tuple[np.ndarray, list[str], list[str]]:
    """Merges distances with those of earlier evaluations; none becomes larger.

    Args:
      parts: where the distances are kept.
      key: identity of network and examples, norm and goals; results of others are
        kept apart.
      distance: ``(N,)``, the distances of this evaluation.
      names: the attacks of this evaluation.

    Returns:
      The smallest distances known, the attacks that they come from, and those among
      them that an earlier evaluation ran.
    """
    earlier = parts.get(key)
    before: list[str] = []
    if earlier is not None and earlier["distance"].shape == distance.shape:
        distance = np.minimum(distance, earlier["distance"])
        before = [str(name) for name in earlier["attacks"]]
    known = sorted({*names, *before}) if before else list(names)
    parts.put(key, {"distance": distance, "attacks": np.array(known)})
    return distance, known, before


def _best_known_card(
    distance: np.ndarray,
    names: list[str],
    earlier: list[str],
    settings: Settings,
) -> Record:
    lengths = [0.0, *settings.epsilons]
    reached = distance[np.isfinite(distance)]
    fallen = _within(distance, np.array(lengths)[:, None]).T
    return {
        "epsilon": lengths,
        **mean_and_error(fallen if settings.targeted else ~fallen),
        "mean_distance": float(reached.mean()) if len(reached) else None,
        "found": len(reached) / len(distance),
        "attacks": names,
        "earlier_attacks": earlier,
    }


def improvement(
    card: Mapping[str, Any], baseline: Mapping[str, Any], norm: str
) -> dict[str, float | None]:
    """Computes the improvement ratio of a network over a baseline.

    Args:
      card: results of :func:`measure`.
      baseline: those of the network to compare with.
      norm: such as "L2".

    Returns:
      The fields of :class:`opnorm.analysis.Improvement`, None where undefined.
    """
    distance, before = (
        each["best_known"][norm]["mean_distance"] for each in (card, baseline)
    )
    unknown = float("nan")
    found = analysis.improvement(
        unknown if distance is None else distance,
        1 - card["clean_accuracy"],
        unknown if before is None else before,
        1 - baseline["clean_accuracy"],
    )
    return {name: _finite(value) for name, value in found._asdict().items()}


def _square_checks(cards: Mapping[str, Mapping[str, Any]]) -> list[analysis.Check]:
    """Checks of each ensemble: a search without gradients must not find much more."""
    checks = []
    for card in cards.values():
        after = card.get("after", {})
        if "square" in after:
            before = list(after.values())[-2]
            pairs = zip(before, after["square"], strict=True)
            checks += [analysis.square_check(*pair) for pair in pairs]
    return checks


def _sanity_checks(
    network: linalg.Network,
    test_set: data.Dataset,
    settings: Settings,
    known: Sequence[analysis.Check],
) -> list[analysis.Check]:
    tested = test_set.slice(0, settings.check_examples)
    checks = analysis.sanity_checks(
        network,
        tested.images,
        tested.labels,
        p=settings.p,
        epsilon=settings.typical_epsilon,
        batch_size=settings.batch_size,
        key=jax.random.key(settings.seed),
    )
    largest = analysis.budget_check(
        settings.epsilons[-1], p=settings.p, shape=test_set.image_shape
    )
    if not largest.passed and largest not in [*known, *checks]:
        checks.append(largest)
    return checks


def _within(distance: np.ndarray, epsilon: Any) -> np.ndarray:
    """Whether distances in float32 are at most epsilon, up to their rounding."""
    return distance <= np.asarray(epsilon) * (1 + 1e-6)


def _finite(value: float) -> float | None:
    """The value, or None for one that JSON cannot hold."""
    return value if np.isfinite(value) else None
