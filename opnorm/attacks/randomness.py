"""Searches on randomised networks, and their success over fresh draws.

A randomised network is a batch function with a key for each example, ``f(x, keys) ->
(B, K)``. The noise of a row depends on the key of this row alone. The draws of an
example depend on its key, on the step and on nothing else, so neither the size of a
batch nor the other rows in it change them. A search never sees the draws that judge its
points.
"""

import dataclasses
import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from opnorm import linalg
from opnorm.attacks import losses, parts
from opnorm.attacks.draws import Drawn, evaluate
from opnorm.attacks.stage import Problem, Stage, State
from opnorm.linalg import BatchFunction, PyTree

Rule = Literal["all", "majority"]

# Numbers that keep the draws of searches, of judgements and of the unit of a loss
# apart. Searches fold smaller numbers into the same keys.
_SEARCH, _JUDGE, _UNIT = 0x2D4A0001, 0x2D4A0002, 0x2D4A0003


class Draws(NamedTuple):
    """The draws of an attack on a randomised network.

    Attributes:
      num_draws: draws of each step of a search.
      judged_draws: fresh draws that judge a point.
      rule: when draws are a success: if "all" of them go as the attack wants, or a
        "majority" (more than half).
    """

    num_draws: int
    judged_draws: int
    rule: Rule

    def needed(self, count: int) -> int:
        """Returns how many of ``count`` draws make a success."""
        return count if self.rule == "all" else count // 2 + 1


class Verdict(NamedTuple):
    """The judgement of one point for each example.

    Attributes:
      hit: ``(B,)`` bool, whether the point succeeds.
      rate: ``(B,)`` float32, fraction of the draws in which the network decides as the
        attack wants; None for a deterministic network.
    """

    hit: jax.Array
    rate: jax.Array | None

    def within(self, kept: jax.Array) -> "Verdict":
        """Returns the verdict with no success where ``kept``, ``(B,)`` bool, is not."""
        rate = None if self.rate is None else jnp.where(kept, self.rate, 0.0)
        return Verdict(self.hit & kept, rate)


def draw_keys(
    keys: jax.Array, purpose: int, turn: int | jax.Array, count: int
) -> jax.Array:
    """Returns keys for draws, ``(count, B)``.

    Args:
      keys: ``(B,)`` typed keys.
      purpose: a number that no other use of the keys has.
      turn: number of the step or of the judgement, may be traced.
      count: number of draws.
    """
    rows = parts.fold_in(parts.fold_in(keys, purpose), turn)
    return jax.vmap(lambda draw: parts.fold_in(rows, draw))(jnp.arange(count))


def unit_keys(draws: Draws | None, keys: jax.Array | None) -> tuple[jax.Array, ...]:
    """Returns the arguments of the network after x where one draw is enough."""
    if draws is None:
        return ()
    assert keys is not None
    return (draw_keys(keys, _UNIT, 0, 1)[0],)


def draw_stage(stage: Stage, draws: Draws) -> Stage:
    """Returns a stage that searches on randomised networks.

    Each step has draws of its own. Within a step all evaluations share them.
    """

    def drawn(f: BatchFunction, problem: Problem, turn: int | jax.Array) -> Drawn:
        assert problem.keys is not None
        keys = draw_keys(problem.keys, _SEARCH, turn, draws.num_draws)
        choose = functools.partial(decisive, draws, problem.labels, stage.goal)
        return Drawn(f, keys, choose)

    def init(f: BatchFunction, problem: Problem) -> State:
        return stage.init(drawn(f, problem, 0), problem)

    def step(f: BatchFunction, problem: Problem, state: State, i: jax.Array) -> State:
        return stage.step(drawn(f, problem, i + 1), problem, state, i)

    return dataclasses.replace(stage, init=init, step=step)


def judge(
    draws: Draws | None,
    f: linalg.Network,
    labels: jax.Array,
    keys: jax.Array | None,
    point: jax.Array,
    goal: tuple[bool, float],
    turn: int | jax.Array,
) -> Verdict:
    """Judges a point of each example, by draws that no search has seen.

    Args:
      draws: None for a deterministic network ``f(x)``.
      f: ``(x, keys) -> (B, K)``.
      labels: ``(B,)`` int.
      keys: ``(B,)`` typed keys; None for a deterministic network.
      point: ``(B, ...)``.
      goal: of the stage, :attr:`opnorm.attacks.Stage.goal`.
      turn: number of the judgement; each has draws of its own.
    """
    if draws is None:
        return Verdict(parts.decided(f(point), labels, *goal), None)
    assert keys is not None
    count = draws.judged_draws
    logits = evaluate(f, point, draw_keys(keys, _JUDGE, turn, count))
    hits = jnp.sum(_decided(logits, labels, goal), axis=0, dtype=jnp.int32)
    return Verdict(hits >= draws.needed(count), hits.astype(jnp.float32) / count)


def output_shapes(f: linalg.Network, x: PyTree, keys: PyTree) -> PyTree:
    """Returns the shapes and dtypes of ``f(x, keys)``; nothing is compiled.

    Args:
      f: the network.
      x: ``(B, ...)``, an array or its shape and dtype.
      keys: ``(B,)`` typed keys, or their shape and dtype.

    Raises:
      ValueError: if the network does not take keys.
    """
    try:
        return linalg.output_shapes(f, x, keys)
    except TypeError as error:
        raise ValueError(
            "the attack is randomised, so the network must be f(x, keys) with a typed "
            f"key for each example; it raised TypeError: {error}."
        ) from error


def decisive(
    draws: Draws, labels: jax.Array, goal: tuple[bool, float], logits: jax.Array
) -> jax.Array:
    """Returns the number of the draw that decides, ``(B,)``.

    With the draws of an example in order, those that succeed last and by their margins,
    it is the draw that succeeds if and only if enough of them do.

    Args:
      draws: gives the rule.
      labels: ``(B,)`` int.
      goal: of the stage, :attr:`opnorm.attacks.Stage.goal`.
      logits: ``(D, B, K)``, of D draws.
    """
    targeted, _ = goal
    margins = jax.vmap(lambda draw: losses.margin(draw, labels))(logits)
    hits = _decided(logits, labels, goal)
    order = jnp.lexsort((-margins if targeted else margins, hits), axis=0)
    return order[len(logits) - draws.needed(len(logits))]


def _decided(
    logits: jax.Array, labels: jax.Array, goal: tuple[bool, float]
) -> jax.Array:
    return jax.vmap(lambda draw: parts.decided(draw, labels, *goal))(logits)
