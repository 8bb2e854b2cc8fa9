"""Attacks, their stages, and how one is run on a batch.

An attack is made from its options and applied to data: ``attack(f, x, labels, key)``
returns the attacked inputs, ``attack.run(f, x, labels, key)`` an :class:`AttackResult`.
Inside it is one stage or several: a stage is an iterative search, three pure functions
over a state whose every leaf has the batch as its leading axis, one row per example.
No row depends on another one. So whoever runs a stage may freeze rows that are done,
take them out of the batch, pause and resume, and find the same points.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from opnorm import linalg
from opnorm.attacks import checks, losses, meshes
from opnorm.attacks.checks import Bounds

BatchFunction = Callable[[jax.Array], jax.Array]
State = Any


class Problem(NamedTuple):
    """What is attacked, one row per example.

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


class AttackResult(NamedTuple):
    """What an attack found, one row per example.

    Attributes:
      x_adv: shape and dtype of the inputs: inside the bounds and the budget.
      success: ``(B,)`` bool: the network decides at ``x_adv`` as the attack wants, by
        the margin that it asks for, or returns NaN, unless a class is to be reached;
        and where there is a budget, ``distance`` keeps it (:func:`within_budget`).
      distance: ``(B,)``, ``||x_adv - x||_p``, at least float32. Where an attack that
        looks for the nearest point fails it returns x, at distance 0: look at
        ``success`` first.
      steps: ``(B,)`` int32, the steps taken before the example was done.
    """

    x_adv: jax.Array
    success: jax.Array
    distance: jax.Array
    steps: jax.Array


@dataclasses.dataclass(frozen=True)
class Stage:
    """An iterative search over independent rows.

    Attributes:
      name: for reports.
      num_steps: how often ``step`` is applied, at least 0.
      init: ``(f, problem) -> state``.
      step: ``(f, problem, state, i) -> state`` for i = 0, ..., num_steps - 1, an int32
        scalar that may be traced. It need not spare rows that are done: whoever runs
        it holds their state.
      finish: ``(problem, state) -> x_adv``.
      done: ``state -> (B,)`` bool, the rows that need no further step; None if every
        row takes every step.
      targeted: whether ``labels`` are to be reached.
      check: raises ValueError for data that the search cannot use, before ``init``.
      takes_start: whether the search begins at ``problem.start`` if there is one.
      bounds: the box (low, high) that x must lie in, or None.
      epsilon: the budget in the attack's norm, scalar or ``(B,)``, may be traced; None
        if perturbations have no largest length.
      confidence: margin that the logits must have at a point that succeeds.
      any_labels: whether ``labels`` need not be classes of the network: where nothing
        looks at them, or only a loss of the caller's, which may read them as it likes.
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
    bounds: Bounds = None
    # Left out of comparisons: an array has no hash, and not one truth value.
    epsilon: Any = dataclasses.field(default=None, compare=False)
    any_labels: bool = False
    confidence: float = 0.0

    @property
    def goal(self) -> tuple[bool, float]:
        """The arguments of :func:`decided` beside logits and labels."""
        return self.targeted, self.confidence

    def advance(
        self,
        f: BatchFunction,
        problem: Problem,
        state: State,
        first: int | jax.Array,
        count: Any,
        active: jax.Array | None = None,
    ) -> tuple[State, jax.Array]:
        """Takes steps ``first``, ..., ``first + count - 1`` of the rows not done.

        Args:
          f: batch function, cut off from gradients.
          problem: rows.
          state: rows, from ``init`` or from here.
          first: number of the first step, may be traced.
          count: how many, at least 0; may be traced if there is a ``done``.
          active: ``(B,)`` bool, rows to search at all; None for all.

        Returns:
          The state, and how many steps each row took, ``(B,)`` int32.
        """
        state = meshes.vary_alike(problem, state)
        if active is None and self.done is None:

            def take(i: jax.Array, state: State) -> State:
                return meshes.vary_alike(
                    problem, self.step(f, problem, state, first + i)
                )

            taken = jnp.full_like(problem.labels, count, dtype=jnp.int32)
            return linalg.fori_loop(count, take, state), taken

        def alive(state: State) -> jax.Array:
            rows = jnp.ones_like(problem.labels, dtype=bool)
            if active is not None:
                rows &= active
            return rows if self.done is None else rows & ~self.done(state)

        def unfinished(carry: Any) -> jax.Array:
            i, state, _ = carry
            return (i < count) & jnp.any(alive(state))

        def body(carry: Any) -> Any:
            i, state, taken = carry
            rows = alive(state)
            moved = self.step(f, problem, state, first + i)
            state = jax.tree.map(
                lambda new, old: jnp.where(like(rows, old), new, old), moved, state
            )
            return i + 1, state, taken + rows

        taken = jnp.zeros_like(problem.labels, dtype=jnp.int32)
        # The step number varies over devices where the rows do.
        start = jnp.min(taken)
        _, state, taken = linalg.while_loop(unfinished, body, (start, state, taken))
        return state, taken


@dataclasses.dataclass(frozen=True)
class Attack:
    """``attack(f, x, labels, key=None, *, start=None) -> x_adv``.

    Attributes:
      name: for reports.
      p: exponent of the norm that distances are measured in.
      stages: the searches, in order.
      keep: which point of a joined attack is returned: the "first" that succeeds,
        later stages then only search where none has, or the "nearest" of those that
        succeed.
      budget: whether perturbations have a largest length; without one the attack
        looks for the shortest that succeeds.
      joined: whether examples that the network gets wrong already are left as they
        are, and points that do not succeed are replaced by x. An attack that is not
        joined has one stage, and returns its point in any case.
      judges_input: whether x is the first iterate of an attack that keeps the first
        point that succeeds: an example that the network gets wrong already is left as
        it is. This costs one forward pass.
    """

    name: str
    p: float
    stages: tuple[Stage, ...]
    keep: str = "first"
    budget: bool = True
    joined: bool = False
    judges_input: bool = False

    def __call__(
        self,
        f: BatchFunction,
        x: jax.Array,
        labels: jax.Array,
        key: jax.Array | None = None,
        *,
        start: jax.Array | None = None,
    ) -> jax.Array:
        """Attacks a batch.

        Args:
          f: batch function ``(B, ...) -> (B, K)`` of logits, with independent rows.
          x: ``(B, ...)`` float, the clean inputs in [0, 1] pixel units.
          labels: ``(B,)`` int: the classes to leave, or with ``targeted`` to reach.
          key: typed key; needed where something is random. Example i uses
            ``fold_in(key, i)``; with ``(B,)`` keys it uses its own, so that results
            do not depend on which examples share a batch.
          start: shape of ``x``: where to start instead of at x or at random.

        Returns:
          Shape and dtype of ``x``: inside the bounds, within the budget up to rounding,
          and finite if x is, whatever f does. An entry of a traced x that lies outside
          the bounds counts as lying on the nearest face: it moves towards the box, by
          at most the width of the box, or stays. If x is on a mesh with explicit axes,
          the result has the sharding of x. No gradient flows through it.

        Raises:
          ValueError: for a missing key, inputs that are not float or empty, labels that
            are not ``(B,)`` ints, keys, a start or an epsilon of another shape, a start
            that the attack has no use for, a network of one logit where labels are
            classes; and where values are known (not traced), for labels that are not
            classes of f and inputs outside the bounds.
        """
        return self._run(f, x, labels, key, start, judge=self.joined).x_adv

    def run(
        self,
        f: BatchFunction,
        x: jax.Array,
        labels: jax.Array,
        key: jax.Array | None = None,
        *,
        start: jax.Array | None = None,
    ) -> AttackResult:
        """Attacks a batch and says how it went; one forward pass more per stage.

        Arguments and errors are those of a call.
        """
        return self._run(f, x, labels, key, start, judge=True)

    @property
    def needs_classes(self) -> bool:
        """Whether labels that are not classes of the network would mean nothing."""
        return self.joined or not all(stage.any_labels for stage in self.stages)

    def _run(
        self,
        f: BatchFunction,
        x: jax.Array,
        labels: jax.Array,
        key: jax.Array | None,
        start: jax.Array | None,
        judge: bool,
    ) -> AttackResult:
        problem = make_problem(x, labels, key, start)
        if start is not None and not any(stage.takes_start for stage in self.stages):
            raise ValueError(f"start was given, and {self.name} begins at x.")
        inside = True
        for stage in self.stages:
            inside &= checks.check_inside(problem.x, stage.bounds)
            if stage.epsilon is not None:
                checks.check_per_example("epsilon", stage.epsilon, len(x))
            if stage.check is not None:
                stage.check(problem)
        if not linalg.keeps_programs(f, problem):
            # Traced here once. A network that is an argument of the program has no
            # gradient to be cut off from.
            f = linalg.detach(f, problem.x)
        if self.needs_classes:
            checks.check_labels(labels, len(x), linalg.output_shapes(f, problem.x))
        return self._program(f, problem, judge=judge, inside=inside)

    @functools.cached_property
    def _program(self) -> Any:
        """The search as a compiled program, which is released with the attack."""

        def search(
            f: BatchFunction, problem: Problem, *, judge: bool, inside: bool
        ) -> AttackResult:
            run = functools.partial(self._search, judge, inside)
            return meshes.without_explicit_axes(
                run,
                f,
                problem,
                problem.x,
                lambda image, row: AttackResult(image, row, row, row),
            )

        return linalg.network_program(search)

    def _search(
        self, judge: bool, inside: bool, f: BatchFunction, problem: Problem
    ) -> AttackResult:
        problem = meshes.vary_alike(problem, problem)
        x, labels = problem.x, problem.labels
        success = jnp.zeros_like(labels, dtype=bool)
        judged_first = self.joined or self.judges_input
        if judged_first:
            goal = self.stages[0].goal
            success = decided(f(problem.x), labels, *goal)
        wide = jnp.promote_types(x.dtype, jnp.float32)
        best = AttackResult(
            x_adv=problem.x,
            success=success,
            distance=jnp.zeros_like(labels, dtype=wide),
            steps=jnp.zeros_like(labels, dtype=jnp.int32),
        )
        for number, stage in enumerate(self.stages):
            rows = for_stage(problem, number)
            at_input = best.success & (best.distance == 0)
            fallen = best.success if self.keep == "first" else at_input
            active = ~fallen if judged_first else None
            shift = None if inside else _to_box(rows, stage.bounds)
            x_adv, taken = _run_stage(stage, f, rows, shift, active)
            distance = linalg.norm(x_adv - problem.x, self.p)
            hit = success
            if judge:
                hit = decided(f(x_adv), labels, *stage.goal)
                if stage.epsilon is not None:
                    hit &= within_budget(distance, stage.epsilon, x, self.p)
            found = AttackResult(x_adv, hit, distance, best.steps + taken)
            if not judged_first:
                best = found
                continue
            wins = hit & ~fallen if self.joined else ~fallen
            if self.keep == "nearest":
                wins &= ~best.success | (distance < best.distance)
            chosen = jax.tree.map(
                lambda new, old, wins=wins: jnp.where(like(wins, old), new, old),
                found,
                best,
            )
            best = chosen._replace(steps=found.steps)
        return jax.tree.map(lax.stop_gradient, best)


def make_problem(
    x: jax.Array,
    labels: jax.Array,
    key: jax.Array | None = None,
    start: jax.Array | None = None,
) -> Problem:
    """Checks the arguments of an attack and gives every example a key of its own.

    Raises:
      ValueError: as for :meth:`Attack.__call__`.
    """
    for name, array in (("x", x), ("labels", labels)):
        if not hasattr(array, "dtype"):
            raise ValueError(
                f"{name} is a {type(array).__name__}; it must be an array."
            )
    if not jnp.issubdtype(x.dtype, jnp.floating) or x.ndim < 2 or x.size == 0:
        raise ValueError(
            f"x has shape {x.shape} and dtype {x.dtype}; it must be (B, ...) and "
            "floating point, with at least one example."
        )
    checks.check_labels(labels, x.shape[0])
    if start is not None:
        if start.shape != x.shape:
            raise ValueError(f"start has shape {start.shape}; it must be {x.shape}.")
        start = lax.stop_gradient(start).astype(x.dtype)
    if key is not None:
        linalg.check_key(key, x.shape[0])
        if key.shape == ():
            key = fold_in(key, jnp.arange(x.shape[0]))
    return Problem(lax.stop_gradient(x), labels, key, start)


def for_stage(problem: Problem, number: int) -> Problem:
    """The problem with keys that no other stage uses."""
    if problem.keys is None or number == 0:
        return problem
    return problem._replace(keys=fold_in(problem.keys, 0x57A6E + number))


def _run_stage(
    stage: Stage,
    f: BatchFunction,
    problem: Problem,
    shift: jax.Array | None,
    active: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """The points that a stage ends with, and the steps that each row took.

    With a shift of the shape of x, the search takes place in coordinates ``z - shift``.
    """
    if shift is None:
        state = stage.init(f, problem)
        state, taken = stage.advance(f, problem, state, 0, stage.num_steps, active)
        return finish(stage, problem, state), taken
    start = problem.start
    moved = problem._replace(
        x=problem.x - shift, start=None if start is None else start - shift
    )
    x_adv, taken = _run_stage(stage, lambda z: f(z + shift), moved, None, active)
    # Adding the shift back rounds: entries that stay where they were must not move.
    return jnp.where(x_adv == moved.x, problem.x, x_adv + shift), taken


def _to_box(problem: Problem, bounds: Bounds) -> jax.Array | None:
    """By how much each entry of x lies outside the bounds, with its sign.

    Clipping such an x into the box would leave the budget. The stage searches in the
    box that is moved by this, on whose faces these entries lie. For entries inside the
    box it is zero, and changes no bit.
    """
    return None if bounds is None else problem.x - clip(problem.x, bounds)


def finish(stage: Stage, problem: Problem, state: State) -> jax.Array:
    """The points that a stage ends with; x where they are not finite."""
    x_adv = stage.finish(problem, state).astype(problem.x.dtype)
    sound = jnp.all(jnp.isfinite(x_adv), axis=tuple(range(1, x_adv.ndim)))
    return jnp.where(like(sound, x_adv), x_adv, problem.x)


def decided(
    logits: jax.Array, labels: jax.Array, targeted: bool, confidence: float = 0.0
) -> jax.Array:
    """Whether the decision, the argmax, is what the attack wants, ``(B,)`` bool.

    With a confidence the margin between the label's logit and the largest other one
    must be at least as large, too. A row with NaN decides for no class; argmax would
    take the first NaN.
    """
    sound = ~jnp.any(jnp.isnan(logits), axis=1)
    hit = (sound & (jnp.argmax(logits, axis=1) == labels)) == targeted
    if confidence == 0:
        return hit
    margin = losses.margin(logits, labels)
    return hit & ~((-margin if targeted else margin) < confidence)


def within_budget(
    distance: jax.Array, epsilon: float | jax.Array, x: jax.Array, p: float
) -> jax.Array:
    """Whether distances from x keep a budget up to rounding, ``(B,)`` bool.

    The allowance is ``u (2 ||x||_p + sqrt(n) epsilon)``, with u the machine epsilon of
    the dtype of x and n the number of entries: a point is rounded in each entry, by at
    most u / 2 of it, and the sum in the norm is rounded n times.

    Args:
      distance: ``(B,)``, Lp lengths of perturbations.
      epsilon: scalar or ``(B,)``.
      x: ``(B, ...)`` float, the clean inputs.
      p: exponent of the norm.
    """
    size = linalg.norm(x, p)
    limit = jnp.asarray(meshes.constant(epsilon), size.dtype)
    terms = math.sqrt(math.prod(x.shape[1:]))
    unit = float(jnp.finfo(x.dtype).eps)
    return distance <= limit + unit * (2 * size + terms * limit)


def other_classes(
    logits: jax.Array, labels: jax.Array, most: int
) -> tuple[jax.Array, jax.Array]:
    """The classes of the largest logits, the label excepted.

    Args:
      logits: ``(B, K)`` float, K at least 2. A class whose logit is -inf (a masked
        class) or NaN is no candidate.
      labels: ``(B,)`` int.
      most: how many classes, at least 1.

    Returns:
      ``(B, T)`` int32 with T = min(most, K - 1), the largest first, and ``(B,)`` int32,
      how many of them are candidates.
    """
    classes = logits.shape[1]
    own = jnp.arange(classes)[None] == labels[:, None]
    others = jnp.where(own | jnp.isnan(logits), -jnp.inf, logits)
    values, numbers = lax.top_k(others, max(1, min(most, classes - 1)))
    return numbers, jnp.sum(values > -jnp.inf, axis=1, dtype=jnp.int32)


def fold_in(keys: jax.Array, data: Any) -> jax.Array:
    """``jax.random.fold_in`` over keys ``(B,)``, data ``(B,)``, or both."""
    keys_axis, data_axis = (0 if jnp.ndim(a) else None for a in (keys, data))
    return jax.vmap(jax.random.fold_in, (keys_axis, data_axis))(keys, data)


def like(mask: jax.Array, array: jax.Array) -> jax.Array:
    """A mask ``(B,)`` with as many axes as the array."""
    return mask.reshape(mask.shape + (1,) * (array.ndim - 1))


def check_keys(problem: Problem) -> None:
    """Raises ValueError if the search draws random numbers and has no key."""
    if problem.keys is None:
        raise ValueError("key is None; this attack draws random numbers and needs one.")


def clip(x: jax.Array, bounds: Bounds) -> jax.Array:
    """x inside the bounds."""
    return x if bounds is None else jnp.clip(x, *bounds)


def confine(
    x: jax.Array,
    delta: jax.Array,
    p: float,
    radius: float | jax.Array,
    bounds: Bounds,
) -> jax.Array:
    """The perturbation inside the Lp ball and, at x, inside the box.

    For p = 1 and inf the nearest such; for other p projected on the ball and then
    clipped, as attacks are published. Since x lies in the box, clipping shortens every
    entry, and so stays in the ball.
    """
    radius = meshes.constant(radius)
    if bounds is None:
        return linalg.project_ball(delta, p, radius)
    low, high = bounds
    if p == 1:
        room = jnp.minimum(low - x, 0.0), jnp.maximum(high - x, 0.0)
        delta = linalg.project_ball_box(delta, p, radius, *room)
    else:
        delta = linalg.project_ball(delta, p, radius)
    return jnp.clip(x + delta, low, high) - x


def value_and_gradient(
    f: BatchFunction,
    loss: Callable[[jax.Array], jax.Array],
    x: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Evaluates the network and a loss of its logits, with one input gradient.

    Args:
      f: batch function with independent rows.
      loss: ``logits (B, K) -> (B,)``.
      x: ``(B, ...)``.

    Returns:
      The loss ``(B,)`` with NaN as -inf, the logits, and the gradient of each example's
      loss, zero for an example whose gradient is not finite everywhere.
    """

    def total(z: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        logits = f(z)
        values = loss(logits)
        return jnp.sum(values), (values, logits)

    gradient, (values, logits) = jax.grad(total, has_aux=True)(x)
    sound = jnp.all(jnp.isfinite(gradient), axis=tuple(range(1, x.ndim)))
    gradient = jnp.where(like(sound, gradient), gradient, 0.0)
    return jnp.nan_to_num(values, nan=-jnp.inf, posinf=jnp.inf), logits, gradient
