"""Attacks on a whole data set, with work that shrinks as examples fall.

A pool of rows, one for each example and budget, goes through an attack's stages. Each
stage advances all rows by a few steps at a time, then takes those that are done out of
the batches. Batches have one of a few sizes, so that nothing is compiled for a count of
survivors; every row draws from a key of its own and its state goes with it, so that
neither the size of the batches nor the rows that share one change the points found,
except for the rounding of sums whose order depends on a batch's size. With several
devices every batch is sharded over all of them.

The distance of every point is compared with the budget of its row here, whatever the
attack: a minimum-norm attack breaks an example at epsilon only where its point lies
within epsilon.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from opnorm import attacks, linalg
from opnorm.analysis.inputs import (
    AttackFactory,
    check_bounds,
    check_examples,
    check_labels,
    make_pattern,
    read_budgets,
    to_pixels,
)
from opnorm.attacks.parts import decided, fold_in, within_budget
from opnorm.attacks.stage import Problem, finish, for_stage, make_problem

# The rows of a stage are sorted out this often, but not for fewer steps.
_SORTINGS = 40
_FEWEST_STEPS = 10
# Each size of batch is compiled; the smallest serve the last survivors.
_BATCH_SIZES = (1, 4, 16)
_SMALLEST_BATCH = 8


class Attacked(NamedTuple):
    """What an attack did to N examples at each of E budgets.

    Attributes:
      success: ``(E, N)`` bool: the network decides as the attack wants, at x already or
        at the point that was found, which lies within the budget
        (:func:`opnorm.attacks.attack.within_budget`).
      distance: ``(E, N)`` float32, Lp length of the perturbation; 0 where the network
        decided so at x already, inf where the attack found no point within the budget.
      steps: ``(E, N)`` int32, steps taken.
      stage: ``(E, N)`` int32, number of the attack's stage that found it; -1 where the
        network decided so at x already, or the attack failed.
      x_adv: ``(E, N, ...)`` float32, x where the attack failed; None unless asked for.
      row_steps: how many steps of a row were computed in all, with those of rows that
        only filled up a batch.
    """

    success: np.ndarray
    distance: np.ndarray
    steps: np.ndarray
    stage: np.ndarray
    x_adv: np.ndarray | None
    row_steps: int


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
        :mod:`opnorm.analysis`.
      images: ``(N, ...)``, uint8 or float, in the attack's bounds. uint8 images are
        divided by 255, float images are taken as they are.
      labels: ``(N,)`` int, the classes to leave or, if targeted, to reach.
      attack: ``epsilon -> attack`` with epsilon ``(B,)``, traced; should be one object
        and not a new function each time, as compiled code is kept by it. An attack
        without a budget ignores its argument, and is searched with for every budget.
      epsilons: E budgets in [0, 1] pixel units; points beyond them do not count. None
        for an attack without a budget whose points count at any distance; E is then 1.
      batch_size: rows per compiled call, over all devices.
      key: typed key of the attack.
      index: ``(N,)`` int, number of each example in the data set, which its random
        numbers depend on; None for 0, ..., N - 1.
      keep_points: whether to return the attacked examples.
      on_progress: called with the part of the attack that is behind, in [0, 1].

    Raises:
      ValueError: for no examples, labels, index or a batch size that do not fit, images
        that are neither uint8 nor float or outside the attack's bounds, a key that is
        not typed, a negative budget, no budgets for an attack that has one, a network
        of one logit, and as the attack.
    """
    pattern = make_pattern(attack)
    budgets = read_budgets("epsilons", epsilons, pattern)
    check_examples(images, labels, batch_size)
    count = len(images)
    index = np.arange(count) if index is None else np.asarray(index)
    if index.shape != (count,):
        raise ValueError(f"index has shape {index.shape}; it must be ({count},).")
    linalg.check_key(key)
    images = check_bounds(images, *(stage.bounds for stage in pattern.stages))
    example = Problem(jnp.asarray(images[:1]), jnp.asarray(labels[:1]), key, None)
    for stage in pattern.stages:
        if stage.check is not None:
            stage.check(example)
    sizes = batch_sizes(batch_size)
    f = linalg.prepare_network(f)
    check_labels(f, images, labels, sizes[0])
    pool = _Pool(
        images=images,
        labels=np.asarray(labels, np.int32),
        number=np.asarray(index, np.int32),
        example=np.tile(np.arange(count), len(budgets)),
        epsilon=np.repeat(budgets, count),
        sizes=sizes,
        place=_Placement(),
        key=key,
    )
    f = linalg.place_network(f, pool.place.replicate)
    targeted, confidence = pattern.stages[0].goal
    at_input = np.zeros(count, bool)
    for rows, filled in pool.batches(np.arange(count)):
        given = pool.place.shard((pool.images[filled], pool.labels[filled]))
        judged = _judged(f, *given, targeted=targeted, confidence=confidence)
        at_input[rows] = np.asarray(judged)[: len(rows)]
    success = at_input[pool.example]
    distance = np.where(success, 0.0, np.inf).astype(np.float32)
    steps = np.zeros(len(success), np.int32)
    by_stage = np.full(len(success), -1, np.int32)
    points = to_pixels(images)[pool.example] if keep_points else None
    row_steps = 0
    for number, stage in enumerate(pattern.stages):
        nearest = pattern.keep == "nearest"
        left = np.flatnonzero(distance > 0 if nearest else ~success)
        if not len(left):
            break

        def report(part: float, number: int = number) -> None:
            if on_progress is not None:
                on_progress((number + part) / len(pattern.stages))

        compiled = _stage_functions(attack, number, stage)
        found = _search(pool, compiled, stage, f, left, keep_points, report)
        wins = found["success"] & (found["distance"] < distance[left])
        won = left[wins]
        success[won] = True
        by_stage[won] = number
        distance[won] = found["distance"][wins]
        if points is not None:
            points[won] = found["x_adv"][wins]
        steps[left] += found["steps"]
        row_steps += found["row_steps"]
    if on_progress is not None:
        on_progress(1.0)
    shape = (len(budgets), count)
    return Attacked(
        success.reshape(shape),
        distance.reshape(shape),
        steps.reshape(shape),
        by_stage.reshape(shape),
        None if points is None else points.reshape(*shape, *images.shape[1:]),
        row_steps,
    )


def batch_sizes(batch_size: int) -> tuple[int, ...]:
    """The sizes of batches that are compiled, largest first: multiples of the devices.

    A quarter and a sixteenth of the first serve what is left of a pool.
    """
    devices = jax.device_count()
    least = max(_SMALLEST_BATCH, devices)
    sizes = {-(-batch_size // devices) * devices}
    for part in _BATCH_SIZES:
        size = -(-batch_size // (part * devices)) * devices
        if size >= least:
            sizes.add(size)
    return tuple(sorted(sizes, reverse=True))


def fill(rows: np.ndarray, sizes: Sequence[int]) -> Iterator[tuple[np.ndarray, Any]]:
    """Splits rows into batches of the given sizes; yields each, and each filled up."""
    while len(rows):
        fitting = [size for size in sizes if size <= len(rows)]
        size = fitting[0] if fitting else sizes[-1]
        batch, rows = rows[:size], rows[size:]
        yield batch, batch[np.minimum(np.arange(size), len(batch) - 1)]


class _Placement:
    """Where arrays go: batches over all devices, the rest on each of them."""

    def __init__(self) -> None:
        self.mesh = None
        if jax.device_count() > 1:
            kind = (jax.sharding.AxisType.Auto,)
            shape = (jax.device_count(),)
            self.mesh = jax.make_mesh(shape, ("data",), axis_types=kind)

    def shard(self, arrays: Any) -> Any:
        return self._put(arrays, jax.P("data"))

    def replicate(self, arrays: Any) -> Any:
        return self._put(arrays, jax.P())

    def _put(self, arrays: Any, spec: Any) -> Any:
        if self.mesh is None:
            return arrays
        return jax.device_put(arrays, jax.NamedSharding(self.mesh, spec))


class _Pool(NamedTuple):
    images: np.ndarray
    labels: np.ndarray
    number: np.ndarray
    example: np.ndarray
    epsilon: np.ndarray
    sizes: tuple[int, ...]
    place: _Placement
    key: jax.Array

    def batches(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, Any]]:
        return fill(rows, self.sizes)

    def problem(self, rows: np.ndarray) -> Any:
        example = self.example[rows]
        return self.place.shard(
            (
                self.images[example],
                self.labels[example],
                self.number[example],
                self.epsilon[rows],
            )
        )


class _StageFunctions(NamedTuple):
    begin: Callable[..., Any]
    advance: Callable[..., Any]
    end: Callable[..., Any]


def _search(
    pool: _Pool,
    compiled: _StageFunctions,
    stage: attacks.Stage,
    f: linalg.Network,
    left: np.ndarray,
    keep_points: bool,
    report: Callable[[float], None],
) -> dict[str, Any]:
    """Runs a stage on some rows of the pool."""
    given = (f, pool.key)
    states: Any = None
    pending = np.ones(len(left), bool)
    places = np.arange(len(left))
    for rows, filled in pool.batches(places):
        state, done = compiled.begin(*given, pool.problem(left[filled]))
        states = _store(states, state, rows, len(left))
        pending[rows] = ~np.asarray(done)[: len(rows)]
    steps = np.zeros(len(left), np.int32)
    row_steps, first = 0, 0
    segment = stage.num_steps
    if stage.done is not None:
        segment = max(_FEWEST_STEPS, stage.num_steps // _SORTINGS)
    while first < stage.num_steps and pending.any():
        length = min(segment, stage.num_steps - first)
        for rows, filled in pool.batches(np.flatnonzero(pending)):
            state = pool.place.shard(jax.tree.map(lambda a, i=filled: a[i], states))
            state, taken, done, ran = compiled.advance(
                *given, pool.problem(left[filled]), state, first, length
            )
            states = _store(states, state, rows, len(left))
            steps[rows] += np.asarray(taken)[: len(rows)]
            pending[rows] = ~np.asarray(done)[: len(rows)]
            row_steps += int(ran) * len(filled)
        first += length
        report(first / stage.num_steps)
    success = np.zeros(len(left), bool)
    distance = np.full(len(left), np.inf, np.float32)
    points = []
    for rows, filled in pool.batches(places):
        state = pool.place.shard(jax.tree.map(lambda a, i=filled: a[i], states))
        x_adv, hit, reach = compiled.end(*given, pool.problem(left[filled]), state)
        success[rows] = np.asarray(hit)[: len(rows)]
        distance[rows] = np.asarray(reach)[: len(rows)]
        if keep_points:
            points.append(np.asarray(x_adv)[: len(rows)])
    return {
        "success": success,
        "distance": distance,
        "steps": steps,
        "x_adv": np.concatenate(points) if points else None,
        "row_steps": row_steps,
    }


def _stage_functions(
    attack: AttackFactory, number: int, stage: attacks.Stage
) -> _StageFunctions:
    """The three parts of a stage, compiled once for each size of batch."""
    given = {"attack": attack, "number": number}

    def advance_every_row(
        f: linalg.Network, key: jax.Array, rows: Any, state: Any, first: int, count: int
    ) -> Any:
        return _advance_every_row(f, key, rows, state, first, count=count, **given)

    every = stage.done is None
    return _StageFunctions(
        functools.partial(_begin, **given),
        advance_every_row if every else functools.partial(_advance, **given),
        functools.partial(_end, **given),
    )


@linalg.network_program
def _begin(
    f: linalg.Network, key: jax.Array, rows: Any, *, attack: AttackFactory, number: int
) -> Any:
    _, stage, problem = _bind(attack, number, key, rows)
    state = stage.init(f, problem)
    return state, _is_done(stage, problem.labels, state)


def _advanced(
    f: linalg.Network,
    key: jax.Array,
    rows: Any,
    state: Any,
    first: Any,
    count: Any,
    *,
    attack: AttackFactory,
    number: int,
) -> Any:
    _, stage, problem = _bind(attack, number, key, rows)
    state, taken = stage.advance(f, problem, state, first, count)
    done = _is_done(stage, problem.labels, state)
    return state, taken, done, jnp.max(taken)


_advance = linalg.network_program(_advanced)


@linalg.network_program
def _advance_every_row(
    f: linalg.Network,
    key: jax.Array,
    rows: Any,
    state: Any,
    first: Any,
    *,
    count: int,
    **given: Any,
) -> Any:
    """Every row takes every step, so that the number of steps can be a constant."""
    return _advanced(f, key, rows, state, first, count, **given)


@linalg.network_program
def _end(
    f: linalg.Network,
    key: jax.Array,
    rows: Any,
    state: Any,
    *,
    attack: AttackFactory,
    number: int,
) -> Any:
    bound, stage, problem = _bind(attack, number, key, rows)
    x_adv = finish(stage, problem, state)
    hit = decided(f(x_adv), problem.labels, *stage.goal)
    distance = linalg.norm(x_adv - problem.x, bound.p)
    hit &= within_budget(distance, rows[3], problem.x, bound.p)
    return x_adv, hit, distance


def _bind(
    attack: AttackFactory, number: int, key: jax.Array, rows: Any
) -> tuple[attacks.Attack, attacks.Stage, Problem]:
    """The attack with the budgets of these rows, its stage, and the stage's problem."""
    images, labels, index, epsilon = rows
    bound = attack(epsilon)
    stage = bound.stages[number]
    keys = fold_in(key, index)
    problem = make_problem(to_pixels(images), labels, keys)
    problem = for_stage(problem, number)
    if stage.check is not None:
        stage.check(problem)
    return bound, stage, problem


def _is_done(stage: attacks.Stage, labels: jax.Array, state: Any) -> jax.Array:
    if stage.done is None:
        return jnp.zeros_like(labels, dtype=bool)
    return stage.done(state)


@linalg.network_program
def _judged(
    f: linalg.Network,
    x: jax.Array,
    labels: jax.Array,
    *,
    targeted: bool,
    confidence: float,
) -> jax.Array:
    return decided(f(to_pixels(x)), labels, targeted, confidence)


def _store(states: Any, state: Any, rows: np.ndarray, count: int) -> Any:
    """Writes the rows of a batch into the arrays of all rows, made if there are none.

    States stay on the host: a segment's computation outweighs the copies, and the pool
    may be larger than a device's memory.
    """
    parts = jax.tree.map(np.asarray, state)
    if states is None:
        states = jax.tree.map(
            lambda part: np.zeros((count, *part.shape[1:]), part.dtype), parts
        )

    def write(whole: np.ndarray, part: np.ndarray) -> None:
        whole[rows] = part[: len(rows)]

    jax.tree.map(write, states, parts)
    return states


def worst_over_budgets(attacked: Attacked, epsilons: Sequence[float]) -> np.ndarray:
    """Which examples fall within each budget: those found at smaller budgets as well.

    Args:
      attacked: result of :func:`attack_examples` at these budgets.
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
    return fallen > 0
