"""Searches that are run several times: restarts, and a run for each of several classes.

The runs follow each other in the step number of one stage, so that they share one
compiled program: step i is step ``i % num_steps`` of run ``i // num_steps``. Targets
are the outer loop and restarts the inner one.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from opnorm.attacks import parts
from opnorm.attacks.checks import Bounds
from opnorm.attacks.parts import Best, Keep
from opnorm.attacks.stage import Problem, State, Steps
from opnorm.linalg import BatchFunction


class Targets(NamedTuple):
    """The classes that runs steer to, one row for each example.

    Attributes:
      classes: ``(B, T)`` int32, those of the largest clean logits but the label.
      candidates: ``(B,)`` int32, how many of them are candidates.
    """

    classes: jax.Array
    candidates: jax.Array


class Turn(NamedTuple):
    """The place of a step among the runs.

    Attributes:
      run: number of the run, an int32 scalar.
      step: number of the step in its run, an int32 scalar.
      target: ``(B,)`` int32, the class that the run steers to, or None.
    """

    run: jax.Array
    step: jax.Array
    target: jax.Array | None


class Schedule(NamedTuple):
    """The number of runs and their length.

    Attributes:
      num_steps: steps of a run, at least 1.
      num_restarts: runs for each target, at least 1.
      num_targets: largest number of targets; None for runs that steer to no class.
    """

    num_steps: int
    num_restarts: int = 1
    num_targets: int | None = None

    @property
    def total(self) -> int:
        """Steps of all runs together."""
        return (self.num_targets or 1) * self.num_restarts * self.num_steps

    def targets(self, logits: jax.Array, labels: jax.Array) -> Targets:
        """Chooses the targets from the clean logits ``(B, K)``."""
        assert self.num_targets is not None
        return Targets(*parts.other_classes(logits, labels, self.num_targets))

    def turn(self, i: jax.Array, targets: Targets | None) -> Turn:
        """Returns the place of step i, which may lie after the last run."""
        run, step = i // self.num_steps, i % self.num_steps
        if targets is None:
            return Turn(run, step, None)
        number = run if self.num_restarts == 1 else run // self.num_restarts
        at = jnp.minimum(number, targets.classes.shape[1] - 1)
        target = lax.dynamic_index_in_dim(targets.classes, at, 1, keepdims=False)
        return Turn(run, step, target)

    def is_last(self, i: jax.Array, targets: Targets) -> jax.Array:
        """Whether step i ends the last run of an example, ``(B,)`` bool."""
        runs = targets.candidates
        if self.num_restarts > 1:
            runs = self.num_restarts * runs
        return i + 1 >= runs * self.num_steps


class Search(NamedTuple):
    """One run of a search for the largest objective in a ball.

    Attributes:
      num_steps: steps of a run.
      init: ``(f, problem) -> state``, before the first run. The state is a NamedTuple
        with a field ``delta``, the perturbation.
      step: ``(f, problem, state, turn) -> (state, new, counts)``: the state, the
        perturbation that the step has evaluated, and whether it may be kept, a bool or
        a scalar. Step 0 of a turn begins a run.
    """

    num_steps: int
    init: Callable[[BatchFunction, Problem], State]
    step: Callable[
        [BatchFunction, Problem, State, Turn], tuple[State, Best, bool | jax.Array]
    ]


class _Once(NamedTuple):
    search: State
    hit: jax.Array | None


class _Repeated(NamedTuple):
    search: State
    best: Best
    targets: Targets | None
    over: jax.Array | None


def once(search: Search, bounds: Bounds, *, stops: bool) -> Steps:
    """Returns the steps of a search that runs once, and keeps its last iterate.

    Args:
      search: the search.
      bounds: box (low, high) that the result is clipped to, or None.
      stops: whether an example is done at the first point that succeeds.
    """

    def init(f: BatchFunction, problem: Problem) -> _Once:
        hit = jnp.zeros_like(problem.labels, dtype=bool) if stops else None
        return _Once(search.init(f, problem), hit)

    def step(f: BatchFunction, problem: Problem, state: _Once, i: jax.Array) -> _Once:
        turn = Turn(jnp.zeros_like(i), i, None)
        moved, new, _ = search.step(f, problem, state.search, turn)
        if not stops:
            return _Once(moved, None)
        delta = parts.select(new.hit, new.delta, moved.delta)
        return _Once(moved._replace(delta=delta), new.hit)

    def finish(problem: Problem, state: _Once) -> jax.Array:
        return _added(problem, state.search.delta, bounds)

    done = (lambda state: state.hit) if stops else None
    return Steps(search.num_steps, init, step, finish, done)


def repeat(
    search: Search,
    bounds: Bounds,
    *,
    num_restarts: int = 1,
    num_targets: int | None = None,
    keep: Keep,
) -> Steps:
    """Returns the steps of a search that runs several times, and keeps the best point.

    Args:
      search: the search.
      bounds: box (low, high) that the result is clipped to, or None.
      num_restarts: runs for each target, at least 1.
      num_targets: largest number of classes that the runs steer to, at least 1; None
        for runs without a target.
      keep: which point is kept, as in :func:`parts.improves`. With "success" an example
        is done at the first point that succeeds.
    """
    schedule = Schedule(search.num_steps, num_restarts, num_targets)

    def init(f: BatchFunction, problem: Problem) -> _Repeated:
        state, labels = search.init(f, problem), problem.labels
        best = parts.begin_best(state.delta, labels)
        if num_targets is None:
            return _Repeated(state, best, None, None)
        targets = schedule.targets(f(problem.x), labels)
        return _Repeated(state, best, targets, jnp.zeros_like(labels, dtype=bool))

    def step(
        f: BatchFunction, problem: Problem, state: _Repeated, i: jax.Array
    ) -> _Repeated:
        turn = schedule.turn(i, state.targets)
        moved, new, counts = search.step(f, problem, state.search, turn)
        new = new._replace(value=new.value.astype(state.best.value.dtype))
        wins = parts.improves(new, state.best, keep) & counts
        best = parts.select(wins, new, state.best)
        if state.targets is None:
            return _Repeated(moved, best, None, None)
        over = schedule.is_last(i, state.targets)
        return _Repeated(moved, best, state.targets, over)

    def finish(problem: Problem, state: _Repeated) -> jax.Array:
        return _added(problem, state.best.delta, bounds)

    def done(state: _Repeated) -> jax.Array:
        over = () if state.over is None else (state.over,)
        hit = (state.best.hit,) if keep == "success" else ()
        ended: jax.Array = functools.reduce(jnp.logical_or, (*hit, *over))
        return ended

    ends = keep == "success" or num_targets is not None
    return Steps(schedule.total, init, step, finish, done if ends else None)


def _added(problem: Problem, delta: jax.Array, bounds: Bounds) -> jax.Array:
    """Returns x plus a perturbation: the sum may round out of the box."""
    return parts.clip(problem.x + delta, bounds)
