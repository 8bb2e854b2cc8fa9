"""Attacks on a whole data set, with work that shrinks as examples fall.

Each stage of an attack searches over a pool of rows, one for each example and budget;
:mod:`opnorm.analysis.stages` says how. With several devices every batch is split over
all of them.

The distance of every point is compared with the budget of its row here, whatever the
attack: a minimum-norm attack breaks an example at epsilon only where its point lies
within epsilon.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from opnorm import attacks, linalg
from opnorm.analysis import stages
from opnorm.analysis.batches import Placement, batch_sizes
from opnorm.analysis.inputs import (
    AttackFactory,
    check_attack,
    check_examples,
    check_index,
    check_labels,
    decided_at,
    keyed_shapes,
    make_pattern,
    read_budgets,
    to_pixels,
)


class Attacked(NamedTuple):
    """Results of an attack on N examples at each of E budgets.

    Attributes:
      success: ``(E, N)`` bool: the network decides as the attack wants, at x itself or
        at the point that was found, which lies within the budget up to rounding.
      distance: ``(E, N)`` float32, length of the perturbation in the norm of the
        attack; 0 where the network
        decides so at x, inf where the attack found no point within the budget.
      steps: ``(E, N)`` int32, steps taken.
      stage: ``(E, N)`` int32, number of the stage that found the point; -1 where the
        network decides so at x, or the attack failed.
      x_adv: ``(E, N, ...)`` float32, x where the attack failed; None unless asked for.
      row_steps: steps of a row that were computed in all, those of rows that only fill
        up a batch included.
      rate: ``(E, N)`` float32, for a randomised network the fraction of fresh draws
        that go as the attack wants, at the point of the largest such fraction among x
        and the ends of all stages; ``x_adv`` is this point also where the attack
        failed. None for a deterministic network.
      draws: the number of these draws, and the rule of ``success`` over them; None for
        a deterministic network.
    """

    success: np.ndarray
    distance: np.ndarray
    steps: np.ndarray
    stage: np.ndarray
    x_adv: np.ndarray | None
    row_steps: int
    rate: np.ndarray | None = None
    draws: attacks.Draws | None = None


def attack_examples(
    f: linalg.Network,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    attack: AttackFactory,
    epsilons: Sequence[float] | None = None,
    batch_size: int = 100,
    key: jax.Array,
    index: np.ndarray | None = None,
    keep_points: bool = False,
    on_progress: Callable[[float], None] | None = None,
) -> Attacked:
    """Attacks every example at every budget; rows that are done cost nothing more.

    An example that the network gets wrong at x is not attacked.

    Args:
      f: ``(B, ...) -> (B, K)``, in inference mode; best a callable pytree, see
        :mod:`opnorm.analysis`. For a randomised attack ``f(x, keys)``, see
        :func:`opnorm.attacks.randomized`.
      images: ``(N, ...)``, uint8 or float, in the attack's bounds. uint8 images are
        divided by 255, float images are taken as they are.
      labels: ``(N,)`` int, the classes to leave or, if targeted, to reach; ``(N, ...)``
        of any dtype for an attack with a criterion.
      attack: ``epsilon -> attack`` with epsilon ``(B,)``, traced; should be one object
        and not a new function in each call, since compiled programs are kept by it. An
        attack without a budget ignores its argument and runs for every budget.
      epsilons: E budgets in [0, 1] pixel units; points beyond them do not count. With
        None, for attacks without a budget, points count at any distance, and E is 1.
      batch_size: rows per compiled call, over all devices.
      key: typed key of the attack.
      index: ``(N,)`` int, number of each example in the data set, which its random
        numbers depend on; None for 0, ..., N - 1.
      keep_points: whether to return the attacked examples.
      on_progress: called with the fraction of the attack that is done, in [0, 1].

    Raises:
      ValueError: for no examples, labels, index or a batch size that do not fit, images
        that are neither uint8 nor float or outside the attack's bounds, a key that is
        not typed, a negative budget, no budgets for an attack that has one, a network
        of one logit, and for the reasons of the attack.

    Example:
      DeepFool finds the nearest point of the boundary 0.5 of images of one pixel; the
      third image is misclassified.

      >>> import jax
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> from opnorm import analysis, attacks
      >>> def f(x):
      ...     return jnp.concatenate([x - 0.5, 0.5 - x], axis=1)
      >>> def deepfool(epsilon):
      ...     return attacks.deepfool(overshoot=0.0)
      >>> images, labels = np.float32([[0.6], [0.9], [0.4]]), np.zeros(3, int)
      >>> found = analysis.attack_examples(
      ...     f, images, labels, attack=deepfool, key=jax.random.key(0)
      ... )
      >>> [round(float(d), 2) for d in found.distance[0]]
      [0.1, 0.4, 0.0]
    """
    pattern = make_pattern(attack, takes_randomized=True)
    budgets = read_budgets("epsilons", epsilons, pattern)
    check_examples(images, labels, batch_size)
    count = len(images)
    index = check_index(index, count)
    images = check_attack(pattern, images, labels, key)
    sizes = batch_sizes(batch_size)
    f = linalg.prepare_network(f)
    labels = np.asarray(labels)
    drawn = None if pattern.draws is None else key
    if pattern.criterion is None:
        check_labels(f, images, labels, sizes[0], key=drawn)
        labels = labels.astype(np.int32)
    elif drawn is not None:
        keyed_shapes(f, images[:1], drawn)
    pool = stages.Pool(
        images=images,
        labels=labels,
        number=index,
        example=np.tile(np.arange(count), len(budgets)),
        epsilon=np.repeat(budgets, count),
        sizes=sizes,
        place=Placement(),
        key=key,
    )
    f = linalg.place_network(f, pool.place.replicate)
    at_input = _decided_at_input(f, pool, pattern)
    success = at_input.success[pool.example]
    rate = None if at_input.rate is None else at_input.rate[pool.example]
    distance = np.where(success, 0.0, np.inf).astype(np.float32)
    steps = np.zeros(len(success), np.int32)
    by_stage = np.full(len(success), -1, np.int32)
    # Points of a randomised network are judged again in the end.
    keeps = keep_points or rate is not None
    points = np.asarray(to_pixels(images))[pool.example] if keeps else None
    row_steps = 0
    for number in range(len(pattern.stages)):
        nearest = pattern.keep == "nearest"
        left = np.flatnonzero(distance > 0 if nearest else ~success)
        if not len(left):
            break

        def report(part: float, number: int = number) -> None:
            if on_progress is not None:
                on_progress((number + part) / len(pattern.stages))

        found = stages.search(pool, attack, pattern, number, f, left, keeps, report)
        wins = found.success & (found.distance < distance[left])
        if rate is not None and found.rate is not None:
            if not nearest:
                wins = found.rate > rate[left]
            rate[left[wins]] = found.rate[wins]
        won = left[wins]
        success[won] = found.success[wins]
        by_stage[won] = number
        distance[won] = found.distance[wins]
        if points is not None and found.x_adv is not None:
            points[won] = found.x_adv[wins]
        steps[left] += found.steps
        row_steps += found.row_steps
    if rate is not None and points is not None:
        last = _judge_again(f, pool, pattern, points)
        success, rate = last.success, last.rate
        reached = np.where(by_stage < 0, 0.0, last.distance)
        distance = np.where(success, reached, np.inf).astype(np.float32)
        by_stage = np.where(success, by_stage, -1)
    if on_progress is not None:
        on_progress(1.0)
    shape = (len(budgets), count)
    return Attacked(
        success.reshape(shape),
        distance.reshape(shape),
        steps.reshape(shape),
        by_stage.reshape(shape),
        points.reshape(*shape, *images.shape[1:])
        if points is not None and keep_points
        else None,
        row_steps,
        None if rate is None else rate.reshape(shape),
        pattern.draws,
    )


def _decided_at_input(
    f: linalg.Network, pool: stages.Pool, pattern: attacks.Attack
) -> stages.Verdicts:
    """Returns whether the network decides at x as the attack wants, for N examples."""
    found = stages.Verdicts.empty(len(pool.images), pattern)
    for rows, filled in pool.batches(np.arange(len(pool.images))):
        given = pool.place.shard((pool.images[filled], pool.labels[filled]))
        if pattern.draws is not None:
            x = pool.place.shard(to_pixels(pool.images[filled]))
            judged = stages.judge(pool, pattern, f, pool.rows(filled), x, 0)
            found.write(rows, judged)
            continue
        hit = decided_at(
            f, *given, goal=pattern.stages[0].goal, criterion=pattern.criterion
        )
        found.success[rows] = np.asarray(hit)[: len(rows)]
    return found


def _judge_again(
    f: linalg.Network, pool: stages.Pool, pattern: attacks.Attack, points: np.ndarray
) -> stages.Verdicts:
    """Judges the points of all rows by draws that chose none of them."""
    found = stages.Verdicts.empty(len(points), pattern)
    turn = len(pattern.stages) + 1
    for rows, filled in pool.batches(np.arange(len(points))):
        given, x_adv = pool.rows(filled), pool.place.shard(points[filled])
        found.write(rows, stages.judge(pool, pattern, f, given, x_adv, turn))
    return found


def worst_over_budgets(attacked: Attacked, epsilons: Sequence[float]) -> np.ndarray:
    """Returns the examples that fall within each budget or at a smaller one.

    Args:
      attacked: the result of :func:`attack_examples` at these budgets.
      epsilons: E budgets.

    Returns:
      ``(E, N)`` bool.

    Raises:
      ValueError: for another number of budgets than that of the result.
    """
    if len(attacked.success) != len(epsilons):
        raise ValueError(
            f"epsilons has {len(epsilons)} budgets; attacked has "
            f"{len(attacked.success)}, and they must be the same."
        )
    smaller = np.asarray(epsilons)[None, :] <= np.asarray(epsilons)[:, None]
    fallen = np.einsum("ef,fn->en", smaller.astype(int), attacked.success.astype(int))
    return np.asarray(fallen > 0)
