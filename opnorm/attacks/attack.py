"""An attack is one stage or several; their findings are combined here.

``attack(f, x, labels, key)`` returns the attacked inputs, and
``attack.run(f, x, labels, key)`` an :class:`AttackResult`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from opnorm import linalg
from opnorm.attacks import checks, criteria, meshes, weights
from opnorm.attacks import stage as stages
from opnorm.attacks.checks import Bounds
from opnorm.attacks.criteria import Criterion
from opnorm.attacks.parts import decided, select, wide
from opnorm.attacks.stage import Problem, Stage
from opnorm.linalg import BatchFunction


class AttackResult(NamedTuple):
    """The findings of an attack, one row for each example.

    Attributes:
      x_adv: shape and dtype of the inputs, inside the bounds and the budget.
      success: ``(B,)`` bool. The network decides at ``x_adv`` as the attack wants, by
        the margin that the attack asks for; a row of logits with NaN counts as wrong,
        and reaches no class. If there is a budget, ``distance`` keeps it
        (:func:`opnorm.attacks.parts.within_budget`).
      distance: ``(B,)``, ``||x_adv - x||_p``, at least float32; of a weighted attack
        ``||(x_adv - x) / scale||_p``. An attack that looks for the nearest point and
        fails returns x, at distance 0: look at ``success`` first.
      steps: ``(B,)`` int32, the steps taken before the example was done.
    """

    x_adv: jax.Array
    success: jax.Array
    distance: jax.Array
    steps: jax.Array


@dataclasses.dataclass(frozen=True)
class Attack:
    """``attack(f, x, labels, key=None, *, start=None) -> x_adv``.

    Attributes:
      name: for reports.
      p: exponent of the norm that distances are measured in.
      stages: the searches, in order.
      keep: which point a joined attack returns: the "first" that succeeds, and later
        stages search only the examples without one, or the "nearest" of those that
        succeed.
      budget: whether perturbations have a largest length; an attack without a budget
        looks for the shortest perturbation that succeeds.
      joined: whether examples that the network gets wrong already are left as they
        are, and points that do not succeed are replaced by x. An attack that is not
        joined has one stage, and returns its point in any case.
      judges_input: whether x is the first iterate of an attack that keeps the first
        point that succeeds: an example that the network gets wrong already is left as
        it is. This costs one forward pass.
      scale: units of length of the entries of x, and 0 for those that must not change
        (:func:`opnorm.attacks.weighted`); None for 1.
      criterion: another goal than a class (:func:`opnorm.attacks.with_criterion`), or
        None.
      remake: makes the attack again with every box changed by a function; None for an
        attack that no factory of this library has made.

    Example:
      A linear network gives the larger coordinate, and the attack has to exchange the
      two.

      >>> import jax.numpy as jnp
      >>> from opnorm import attacks
      >>> attack = attacks.fgm(p=2, epsilon=0.3)
      >>> x, labels = jnp.array([[0.4, 0.6], [0.1, 0.9]]), jnp.array([1, 1])
      >>> x_adv = attack(lambda x: x, x, labels)
      >>> [[round(entry, 3) for entry in row] for row in x_adv.tolist()]
      [[0.612, 0.388], [0.312, 0.688]]
      >>> found = attack.run(lambda x: x, x, labels)
      >>> found.success
      Array([ True, False], dtype=bool)
      >>> [round(length, 3) for length in found.distance.tolist()]
      [0.3, 0.3]
    """

    name: str
    p: float
    stages: tuple[Stage, ...]
    keep: str = "first"
    budget: bool = True
    joined: bool = False
    judges_input: bool = False
    # Left out of comparisons: an array has no hash, and not one truth value.
    scale: np.ndarray | None = dataclasses.field(default=None, compare=False)
    criterion: Criterion | None = None
    remake: Callable[[Callable[[Bounds], Bounds]], "Attack"] | None = dataclasses.field(
        default=None, compare=False, repr=False
    )

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
          f: batch function ``(B, ...) -> (B, K)`` of logits, with independent rows;
            with a criterion, of any outputs that it reads.
          x: ``(B, ...)`` float, the clean inputs in [0, 1] pixel units.
          labels: ``(B,)`` int: the classes to leave, or with ``targeted`` to reach.
            With a criterion, ``(B, ...)`` of any dtype.
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
        """Attacks a batch and reports success, distance and steps.

        Arguments and errors are those of a call. The report costs one forward pass more
        for each stage.
        """
        return self._run(f, x, labels, key, start, judge=True)

    @property
    def needs_classes(self) -> bool:
        """Whether the labels must be classes of the network."""
        if self.criterion is not None:
            return False
        return self.joined or not all(stage.any_labels for stage in self.stages)

    @property
    def targeted(self) -> bool:
        """Whether the labels are to be reached."""
        return self.stages[0].targeted

    def difference(self, other: "Attack") -> str | None:
        """Returns which of "scale" and "criterion" differs from another attack's."""
        for mine, theirs in ((self.scale, other.scale), (other.scale, self.scale)):
            if mine is not None and (
                theirs is None or not np.array_equal(mine, theirs)
            ):
                return "scale"
        return "criterion" if self.criterion != other.criterion else None

    def enter(
        self,
        number: int,
        f: BatchFunction,
        problem: Problem,
        shift: jax.Array | None = None,
    ) -> weights.Frame:
        """Returns what a stage searches on: network, rows, and the way back.

        Args:
          number: number of the stage.
          f: the network that :func:`opnorm.attacks.criteria.pose` has returned.
          problem: rows, with the labels that it has returned.
          shift: by how much x lies outside the box; read by a weighted attack alone.
        """
        rows = stages.for_stage(problem, number)
        if self.scale is None:
            return weights.Frame(f, rows, lambda z: z)
        return weights.enter(self.scale, self.stages[number].bounds, f, rows, shift)

    def _run(
        self,
        f: BatchFunction,
        x: jax.Array,
        labels: jax.Array,
        key: jax.Array | None,
        start: jax.Array | None,
        judge: bool,
    ) -> AttackResult:
        own_goal = self.criterion is not None
        problem = stages.make_problem(x, labels, key, start, any_labels=own_goal)
        if self.scale is not None:
            bounds = (self.scale, self.scale)
            checks.check_shapes(bounds, x.shape[1:], "scale")
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
    def _program(self) -> linalg.NetworkProgram[AttackResult]:
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
        x = problem.x
        f, labels = criteria.pose(self.criterion, f, x, problem.labels, self.targeted)
        problem = problem._replace(labels=labels)
        success = jnp.zeros_like(labels, dtype=bool)
        judged_first = self.joined or self.judges_input
        if judged_first:
            goal = self.stages[0].goal
            success = decided(f(problem.x), labels, *goal)
        best = AttackResult(
            x_adv=problem.x,
            success=success,
            distance=jnp.zeros_like(labels, dtype=wide(x)),
            steps=jnp.zeros_like(labels, dtype=jnp.int32),
        )
        for number, stage in enumerate(self.stages):
            at_input = best.success & (best.distance == 0)
            fallen = best.success if self.keep == "first" else at_input
            active = ~fallen if judged_first else None
            shift = None if inside else stages.shift_to_box(problem, stage.bounds)
            frame = self.enter(number, f, problem, shift)
            moved = shift if self.scale is None else None
            z, taken = stages.run_stage(stage, frame.f, frame.problem, moved, active)
            x_adv = frame.leave(z)
            distance = weights.length(self.scale, x_adv - problem.x, self.p)
            hit = success
            if judge:
                hit = decided(f(x_adv), labels, *stage.goal)
                if stage.epsilon is not None:
                    hit &= weights.within_budget(
                        self.scale, distance, stage.epsilon, x, self.p
                    )
            found = AttackResult(x_adv, hit, distance, best.steps + taken)
            if not judged_first:
                best = found
                continue
            wins = hit & ~fallen if self.joined else ~fallen
            if self.keep == "nearest":
                wins &= ~best.success | (distance < best.distance)
            best = select(wins, found, best)._replace(steps=found.steps)
        return AttackResult(*map(lax.stop_gradient, best))
