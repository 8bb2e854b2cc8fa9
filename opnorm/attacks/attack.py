"""An attack is one stage or several; their findings are combined here.

``attack(f, x, labels, key)`` returns the attacked inputs, and
``attack.run(f, x, labels, key)`` an :class:`AttackResult`.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from opnorm import linalg
from opnorm.attacks import checks, meshes
from opnorm.attacks import stage as stages
from opnorm.attacks.parts import decided, select, wide, within_budget
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
      distance: ``(B,)``, ``||x_adv - x||_p``, at least float32. An attack that looks
        for the nearest point and fails returns x, at distance 0: look at ``success``
        first.
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
        """Attacks a batch and reports success, distance and steps.

        Arguments and errors are those of a call. The report costs one forward pass more
        for each stage.
        """
        return self._run(f, x, labels, key, start, judge=True)

    @property
    def needs_classes(self) -> bool:
        """Whether the labels must be classes of the network."""
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
        problem = stages.make_problem(x, labels, key, start)
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
        x, labels = problem.x, problem.labels
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
            rows = stages.for_stage(problem, number)
            at_input = best.success & (best.distance == 0)
            fallen = best.success if self.keep == "first" else at_input
            active = ~fallen if judged_first else None
            shift = None if inside else stages.shift_to_box(rows, stage.bounds)
            x_adv, taken = stages.run_stage(stage, f, rows, shift, active)
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
            best = select(wins, found, best)._replace(steps=found.steps)
        return AttackResult(*map(lax.stop_gradient, best))
