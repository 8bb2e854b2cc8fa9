"""One stage of an attack over a pool of rows, with work that shrinks as rows finish.

A pool has a row for each example and budget. A stage advances all rows by a few steps
at a time, then takes finished rows out of the batches. Batches have one of a few sizes,
so that nothing is compiled for a count of survivors. Every row has a random key and a
state of its own, so neither the size of a batch nor the other rows in it change the
points found, except for the rounding of sums whose order depends on a batch's size.
"""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from opnorm import attacks, linalg
from opnorm.analysis.batches import Batch, Placement, batch_sizes, fill, refit
from opnorm.analysis.inputs import AttackFactory, to_pixels
from opnorm.attacks import criteria, parts, randomness, weights
from opnorm.attacks import stage as stage_lib
from opnorm.linalg import PyTree

# Finished rows are dropped every max(10, num_steps // 40) steps.
_SORTINGS = 40
_FEWEST_STEPS = 10


class Rows(NamedTuple):
    """The rows of one batch, as compiled programs take them.

    Attributes:
      images: ``(b, ...)``, uint8 or float.
      labels: ``(b,)`` int32, or ``(b, ...)`` for an attack with a criterion.
      number: ``(b,)`` int32, number of the example in its data set.
      epsilon: ``(b,)`` float32, the budget.
    """

    images: jax.Array
    labels: jax.Array
    number: jax.Array
    epsilon: jax.Array


class Pool(NamedTuple):
    """All rows of an attack: R rows, one for each of N examples and each budget.

    Attributes:
      images: ``(N, ...)``, uint8 or float.
      labels: ``(N,)`` int32, or ``(N, ...)`` for an attack with a criterion.
      number: ``(N,)`` int32, numbers of the examples in their data set.
      example: ``(R,)`` int, the example of each row.
      epsilon: ``(R,)`` float32, the budget of each row.
      sizes: sizes of the batches, largest first.
      place: places the arrays of a batch on the devices.
      key: typed key of the attack.
    """

    images: np.ndarray
    labels: np.ndarray
    number: np.ndarray
    example: np.ndarray
    epsilon: np.ndarray
    sizes: tuple[int, ...]
    place: Placement
    key: jax.Array

    def batches(
        self, rows: np.ndarray, sizes: tuple[int, ...] | None = None
    ) -> Iterator[Batch]:
        """Splits row numbers into batches of the pool's sizes or of other ones."""
        return fill(rows, self.sizes if sizes is None else sizes)

    def rows(self, numbers: np.ndarray) -> Rows:
        """Returns rows of the pool, on the devices."""
        example = self.example[numbers]
        arrays = (self.images[example], self.labels[example], self.number[example])
        return Rows(*self.place.shard((*arrays, self.epsilon[numbers])))


class Found(NamedTuple):
    """Results of a stage for n rows.

    Attributes:
      success: ``(n,)`` bool, whether a point was found within the row's budget.
      distance: ``(n,)`` float32, its distance.
      rate: ``(n,)`` float32, fraction of the draws of a randomised network that go as
        the attack wants, 0 beyond the budget; None for a deterministic network.
      steps: ``(n,)`` int32, steps taken.
      x_adv: ``(n, ...)``, the points; None unless asked for.
      row_steps: steps of a row that were computed in all, those of rows that only fill
        up a batch included.
    """

    success: np.ndarray
    distance: np.ndarray
    rate: np.ndarray | None
    steps: np.ndarray
    x_adv: np.ndarray | None
    row_steps: int


def search(
    pool: Pool,
    attack: AttackFactory,
    pattern: attacks.Attack,
    number: int,
    f: linalg.Network,
    left: np.ndarray,
    keep_points: bool,
    report: Callable[[float], None],
) -> Found:
    """Runs one stage of an attack on some rows of a pool.

    Args:
      pool: the rows.
      attack: ``epsilon -> attack``.
      pattern: the attack with any budget.
      number: number of the stage.
      f: the network, placed as :class:`Placement` places it.
      left: ``(n,)`` int, numbers of the rows to search.
      keep_points: whether to return the points.
      report: called with the fraction of the steps that is done.
    """
    stage = pattern.stages[number]
    compiled = _programs(attack, number, stage)
    given = (f, pool.key)
    states: PyTree = None
    pending = np.ones(len(left), bool)
    places = np.arange(len(left))
    # Each stage is compiled anew, so sizes that fit its rows cost nothing more.
    own_sizes = sizes = batch_sizes(pool.sizes[0], len(left))
    for rows, filled in pool.batches(places, own_sizes):
        state, done = compiled.begin(*given, pool.rows(left[filled]))
        states = _store(states, state, rows, len(left))
        pending[rows] = ~np.asarray(done)[: len(rows)]
    steps = np.zeros(len(left), np.int32)
    row_steps, first = 0, 0
    segment = stage.num_steps
    if stage.done is not None:
        segment = max(_FEWEST_STEPS, stage.num_steps // _SORTINGS)
    while first < stage.num_steps and pending.any():
        length = min(segment, stage.num_steps - first)
        sizes = refit(sizes, int(pending.sum()), stage.num_steps - first)
        for rows, filled in pool.batches(np.flatnonzero(pending), sizes):
            state = pool.place.shard(jax.tree.map(lambda a, i=filled: a[i], states))
            state, taken, done, ran = compiled.advance(
                *given, pool.rows(left[filled]), state, first, length
            )
            states = _store(states, state, rows, len(left))
            steps[rows] += np.asarray(taken)[: len(rows)]
            pending[rows] = ~np.asarray(done)[: len(rows)]
            row_steps += int(ran) * len(filled)
        first += length
        report(first / stage.num_steps)
    verdicts = Verdicts.empty(len(left), pattern)
    points = []
    for rows, filled in pool.batches(places, own_sizes):
        state = pool.place.shard(jax.tree.map(lambda a, i=filled: a[i], states))
        given_rows = pool.rows(left[filled])
        x_adv = compiled.end(*given, given_rows, state)
        verdicts.write(rows, judge(pool, pattern, f, given_rows, x_adv, number + 1))
        if keep_points:
            points.append(np.asarray(x_adv)[: len(rows)])
    x_adv = np.concatenate(points) if points else None
    return Found(*verdicts, steps, x_adv, row_steps)


class Verdicts(NamedTuple):
    """The first fields of :class:`Found`, which are filled batch by batch."""

    success: np.ndarray
    distance: np.ndarray
    rate: np.ndarray | None

    @classmethod
    def empty(cls, count: int, pattern: attacks.Attack) -> "Verdicts":
        """Returns verdicts of ``count`` points before any is judged."""
        success, rate = np.zeros(count, bool), np.zeros(count, np.float32)
        distance = np.full(count, np.inf, np.float32)
        return cls(success, distance, None if pattern.draws is None else rate)

    def write(self, rows: np.ndarray, judged: "Judged") -> None:
        """Writes the verdicts of a batch, which may have more rows, to given rows."""
        for whole, part in zip(self, judged, strict=True):
            if whole is not None:
                whole[rows] = np.asarray(part)[: len(rows)]


class Judged(NamedTuple):
    """The verdicts of one batch; the fields are those of :class:`Verdicts`."""

    success: jax.Array
    distance: jax.Array
    rate: jax.Array | None


def judge(
    pool: Pool,
    pattern: attacks.Attack,
    f: linalg.Network,
    rows: Rows,
    points: jax.Array | np.ndarray,
    turn: int,
) -> Judged:
    """Judges a point of each row by the goal and the row's budget.

    Args:
      pool: the pool of the rows.
      pattern: the attack with any budget.
      f: the network, placed as :class:`Placement` places it.
      rows: ``b`` rows of the pool.
      points: ``(b, ...)``, on the devices as the rows are.
      turn: number of the judgement, which its draws depend on.
    """
    # Programs of deterministic networks do not depend on keys.
    drawn = None if pattern.draws is None else (pool.key, jnp.int32(turn))
    return Judged(
        *_judge(
            f,
            rows,
            points,
            pattern.scale,
            drawn,
            p=pattern.p,
            goal=pattern.stages[0].goal,
            criterion=pattern.criterion,
            draws=pattern.draws,
        )
    )


class _Programs(NamedTuple):
    begin: Callable[..., PyTree]
    advance: Callable[..., PyTree]
    end: Callable[..., PyTree]


def _programs(attack: AttackFactory, number: int, stage: attacks.Stage) -> _Programs:
    """Returns the programs of a stage, each compiled once for each batch size."""
    given = {"attack": attack, "number": number}

    def advance_every_row(
        f: linalg.Network,
        key: jax.Array,
        rows: Rows,
        state: PyTree,
        first: int,
        count: int,
    ) -> PyTree:
        return _advance_every_row(f, key, rows, state, first, count=count, **given)

    every = stage.done is None
    return _Programs(
        functools.partial(_begin, **given),
        advance_every_row if every else functools.partial(_advance, **given),
        functools.partial(_end, **given),
    )


@linalg.network_program
def _begin(
    f: linalg.Network, key: jax.Array, rows: Rows, *, attack: AttackFactory, number: int
) -> PyTree:
    stage, frame = _bind(attack, number, f, key, rows)
    state = stage.init(frame.f, frame.problem)
    return state, _is_done(stage, frame.problem.labels, state)


def _advanced(
    f: linalg.Network,
    key: jax.Array,
    rows: Rows,
    state: PyTree,
    first: int | jax.Array,
    count: int | jax.Array,
    *,
    attack: AttackFactory,
    number: int,
) -> PyTree:
    stage, frame = _bind(attack, number, f, key, rows)
    state, taken = stage.advance(frame.f, frame.problem, state, first, count)
    done = _is_done(stage, frame.problem.labels, state)
    return state, taken, done, jnp.max(taken)


_advance = linalg.network_program(_advanced)


@linalg.network_program
def _advance_every_row(
    f: linalg.Network,
    key: jax.Array,
    rows: Rows,
    state: PyTree,
    first: int | jax.Array,
    *,
    count: int,
    attack: AttackFactory,
    number: int,
) -> PyTree:
    """Takes every step in every row, so the number of steps is a constant."""
    return _advanced(f, key, rows, state, first, count, attack=attack, number=number)


@linalg.network_program
def _end(
    f: linalg.Network,
    key: jax.Array,
    rows: Rows,
    state: PyTree,
    *,
    attack: AttackFactory,
    number: int,
) -> jax.Array:
    stage, frame = _bind(attack, number, f, key, rows)
    return frame.leave(stage_lib.finish(stage, frame.problem, state))


@linalg.network_program
def _judge(
    f: linalg.Network,
    rows: Rows,
    x_adv: jax.Array,
    scale: jax.Array | None,
    drawn: tuple[jax.Array, jax.Array] | None,
    *,
    p: float,
    goal: tuple[bool, float],
    criterion: attacks.Criterion | None,
    draws: attacks.Draws | None,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Returns success, distance and rate; a program apart, which attacks share."""
    x = to_pixels(rows.images)
    key, turn = (None, 0) if drawn is None else drawn
    keys = None if key is None else parts.fold_in(key, rows.number)
    unit = randomness.unit_keys(draws, keys)
    f, labels = criteria.pose(criterion, f, x, rows.labels, goal[0], *unit)
    found = randomness.judge(draws, f, labels, keys, x_adv, goal, turn)
    distance = weights.length(scale, x_adv - x, p)
    kept = weights.within_budget(scale, distance, rows.epsilon, x, p)
    found = found.within(kept)
    return found.hit, distance, found.rate


def _bind(
    attack: AttackFactory,
    number: int,
    f: linalg.Network,
    key: jax.Array,
    rows: Rows,
) -> tuple[attacks.Stage, weights.Frame]:
    """Returns a stage of the attack with the budgets of these rows, and its search."""
    bound = attack(rows.epsilon)
    stage = bound.stages[number]
    keys = parts.fold_in(key, rows.number)
    x, own_goal = to_pixels(rows.images), bound.criterion is not None
    problem = stage_lib.make_problem(x, rows.labels, keys, any_labels=own_goal)
    unit = randomness.unit_keys(bound.draws, keys)
    f, labels = criteria.pose(
        bound.criterion, f, x, problem.labels, bound.targeted, *unit
    )
    frame = bound.enter(number, f, problem._replace(labels=labels))
    if stage.check is not None:
        stage.check(frame.problem)
    return stage, frame


def _is_done(stage: attacks.Stage, labels: jax.Array, state: PyTree) -> jax.Array:
    if stage.done is None:
        return jnp.zeros_like(labels, dtype=bool)
    done: jax.Array = stage.done(state)
    return done


def _store(states: PyTree, state: PyTree, rows: np.ndarray, count: int) -> PyTree:
    """Writes the states of a batch into the arrays of all rows, or makes those.

    States stay on the host, since the pool may be larger than the memory of a device.
    A segment of steps takes much longer than the copies.
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
