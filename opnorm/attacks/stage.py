"""Searches over independent rows, and how their steps are taken."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from opnorm import linalg
from opnorm.attacks import checks, meshes, parts
from opnorm.attacks.checks import Bounds
from opnorm.linalg import BatchFunction, PyTree

# The state of a search: a pytree of arrays with one row for each example.
State = PyTree
# The number of the step, the state, and the steps that each row has taken.
_Carry = tuple[jax.Array, State, jax.Array]


class Problem(NamedTuple):
    """The data of an attack, one row for each example.

    Attributes:
      x: ``(B, ...)`` float, the clean inputs in [0, 1] pixel units.
      labels: ``(B,)`` int: the classes to leave or, if targeted, to reach.
      keys: ``(B,)`` typed keys, or None where none was given.
      start: shape of ``x``, where to start, or None.
    """

    x: jax.Array
    labels: jax.Array
    keys: jax.Array | None
    start: jax.Array | None


class Steps(NamedTuple):
    """The part of a stage that searches; the fields are those of :class:`Stage`."""

    num_steps: int
    init: Callable[[BatchFunction, Problem], State]
    step: Callable[[BatchFunction, Problem, State, jax.Array], State]
    finish: Callable[[Problem, State], jax.Array]
    done: Callable[[State], jax.Array] | None = None


@dataclasses.dataclass(frozen=True)
class Stage:
    """An iterative search over independent rows.

    A stage is three pure functions over a state whose every leaf has the batch as its
    leading axis. No row depends on another one, so a driver may freeze rows that are
    done, take them out of the batch, pause and resume, and find the same points.

    Attributes:
      name: for reports.
      num_steps: how often ``step`` is applied, at least 0.
      init: ``(f, problem) -> state``.
      step: ``(f, problem, state, i) -> state`` for i = 0, ..., num_steps - 1, an int32
        scalar that may be traced. It may change rows that are done: the driver keeps
        their state.
      finish: ``(problem, state) -> x_adv``.
      done: ``state -> (B,)`` bool, the rows that need no further step; None if every
        row takes every step.
      targeted: whether ``labels`` are to be reached.
      check: raises ValueError for data that the search cannot use, before ``init``.
      takes_start: whether the search begins at ``problem.start`` if there is one.
      bounds: the box (low, high) that x must lie in, or None.
      epsilon: the budget in the attack's norm, scalar or ``(B,)``, may be traced; None
        if perturbations have no largest length.
      any_labels: whether ``labels`` need not be classes of the network. That is so if
        no step reads them, or only a loss that the caller has given.
      confidence: margin that the logits must have at a point that succeeds.
    """

    name: str
    num_steps: int
    init: Callable[[BatchFunction, Problem], State]
    step: Callable[[BatchFunction, Problem, State, jax.Array], State]
    finish: Callable[[Problem, State], jax.Array]
    done: Callable[[State], jax.Array] | None = None
    targeted: bool = False
    check: Callable[[Problem], None] | None = None
    takes_start: bool = False
    # Left out of comparisons: an array has no hash, and not one truth value.
    bounds: Bounds = dataclasses.field(default=None, compare=False)
    epsilon: float | jax.Array | None = dataclasses.field(default=None, compare=False)
    any_labels: bool = False
    confidence: float = 0.0

    @property
    def goal(self) -> tuple[bool, float]:
        """The arguments of ``parts.decided`` after logits and labels."""
        return self.targeted, self.confidence

    def advance(
        self,
        f: BatchFunction,
        problem: Problem,
        state: State,
        first: int | jax.Array,
        count: int | jax.Array,
        active: jax.Array | None = None,
    ) -> tuple[State, jax.Array]:
        """Takes steps ``first``, ..., ``first + count - 1`` of the rows not done.

        Args:
          f: batch function, cut off from gradients.
          problem: rows.
          state: rows, from ``init`` or from here.
          first: number of the first step, may be traced.
          count: number of steps, at least 0; may be traced if there is a ``done``.
          active: ``(B,)`` bool, rows to search at all; None for all.

        Returns:
          The state, and the number of steps that each row took, ``(B,)`` int32.
        """
        state = meshes.vary_alike(problem, state)
        if active is None and self.done is None:

            def take(i: jax.Array, state: State) -> State:
                return meshes.vary_alike(
                    problem, self.step(f, problem, state, first + i)
                )

            taken = jnp.full_like(problem.labels, count, dtype=jnp.int32)
            return linalg.fori_loop(int(count), take, state), taken

        def alive(state: State) -> jax.Array:
            rows = jnp.ones_like(problem.labels, dtype=bool)
            if active is not None:
                rows &= active
            return rows if self.done is None else rows & ~self.done(state)

        def unfinished(carry: _Carry) -> jax.Array:
            i, state, _ = carry
            return (i < count) & jnp.any(alive(state))

        def body(carry: _Carry) -> _Carry:
            i, state, taken = carry
            rows = alive(state)
            moved = self.step(f, problem, state, first + i)
            return i + 1, parts.select(rows, moved, state), parts.count(taken, rows)

        taken = jnp.zeros_like(problem.labels, dtype=jnp.int32)
        # The step number varies over devices where the rows do.
        start = jnp.min(taken)
        _, state, taken = linalg.while_loop(unfinished, body, (start, state, taken))
        return state, taken


def make_problem(
    x: jax.Array,
    labels: jax.Array,
    key: jax.Array | None = None,
    start: jax.Array | None = None,
    *,
    any_labels: bool = False,
) -> Problem:
    """Checks the arguments of an attack and gives every example a key of its own.

    Arguments and errors are those of a call of :class:`opnorm.attacks.Attack`. With
    ``any_labels``, labels are ``(B, ...)`` of any dtype.
    """
    for name, array in (("x", x), ("labels", labels)):
        linalg.check_array(name, array)
        if not hasattr(array, "dtype"):
            raise ValueError(
                f"{name} is a {type(array).__name__}; it must be an array."
            )
    if not jnp.issubdtype(x.dtype, jnp.floating) or x.ndim < 2 or x.size == 0:
        raise ValueError(
            f"x has shape {x.shape} and dtype {x.dtype}; it must be (B, ...) and "
            "floating point, with at least one example."
        )
    if not any_labels:
        checks.check_labels(labels, x.shape[0])
    elif labels.shape[:1] != x.shape[:1]:
        raise ValueError(
            f"labels has shape {labels.shape}; it must be ({x.shape[0]}, ...), a label "
            "for each example."
        )
    if start is not None:
        if start.shape != x.shape:
            raise ValueError(f"start has shape {start.shape}; it must be {x.shape}.")
        start = lax.stop_gradient(start).astype(x.dtype)
    if key is not None:
        linalg.check_key(key, x.shape[0])
        if key.shape == ():
            key = parts.fold_in(key, jnp.arange(x.shape[0]))
    return Problem(lax.stop_gradient(x), lax.stop_gradient(labels), key, start)


def for_stage(problem: Problem, number: int) -> Problem:
    """Returns the problem with keys that no other stage uses."""
    if problem.keys is None or number == 0:
        return problem
    return problem._replace(keys=parts.fold_in(problem.keys, 0x57A6E + number))


def run_stage(
    stage: Stage,
    f: linalg.Network,
    problem: Problem,
    shift: jax.Array | None,
    active: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """Takes all steps of a stage.

    Args:
      stage: the search.
      f: batch function, cut off from gradients; with keys if it is randomised.
      problem: rows.
      shift: shape of ``x``, from :func:`shift_to_box`; the search takes place in the
        coordinates ``z - shift``. None for no shift.
      active: ``(B,)`` bool, rows to search at all; None for all.

    Returns:
      The points that the stage ends with, shape of ``x``, and the number of steps that
      each row took, ``(B,)`` int32.
    """
    if shift is None:
        state = stage.init(f, problem)
        state, taken = stage.advance(f, problem, state, 0, stage.num_steps, active)
        return finish(stage, problem, state), taken
    start = problem.start
    moved = problem._replace(
        x=problem.x - shift, start=None if start is None else start - shift
    )

    def network(z: jax.Array, *keys: jax.Array) -> jax.Array:
        logits: jax.Array = f(z + shift, *keys)
        return logits

    x_adv, taken = run_stage(stage, network, moved, None, active)
    # Adding the shift back rounds: entries that stay where they were must not move.
    return jnp.where(x_adv == moved.x, problem.x, x_adv + shift), taken


def shift_to_box(problem: Problem, bounds: Bounds) -> jax.Array | None:
    """Computes by how much each entry of x lies outside the bounds, with its sign.

    Clipping such an x into the box would leave the budget. The stage searches in a box
    that is moved by this shift, entry by entry, so that these entries lie on its faces.
    The shift of an entry inside the box is zero, and changes no bit.
    """
    return None if bounds is None else problem.x - parts.clip(problem.x, bounds)


def finish(stage: Stage, problem: Problem, state: State) -> jax.Array:
    """Returns the points that a stage ends with; x where they are not finite."""
    x_adv = stage.finish(problem, state).astype(problem.x.dtype)
    return parts.select(parts.all_finite(x_adv), x_adv, problem.x)


def check_keys(problem: Problem) -> None:
    """Raises ValueError if the search draws random numbers and has no key."""
    if problem.keys is None:
        raise ValueError(
            "key is None; this attack draws random numbers and needs a key, such as "
            "jax.random.key(0)."
        )
