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
from opnorm.attacks import checks, criteria, meshes, randomness, weights
from opnorm.attacks import stage as stages
from opnorm.attacks.checks import Bounds
from opnorm.attacks.criteria import Criterion
from opnorm.attacks.parts import select, wide
from opnorm.attacks.randomness import Draws, Verdict
from opnorm.attacks.stage import Problem, Stage
from opnorm.linalg import BatchFunction


class AttackResult(NamedTuple):
    """The findings of an attack, one row for each example.

    Attributes:
      x_adv: shape and dtype of the inputs, inside the bounds and the budget.
      success: ``(B,)`` bool. The network decides at ``x_adv`` as the attack wants, by
        the margin that the attack asks for; a row of logits with NaN counts as wrong,
        and reaches no class. If there is a budget, ``distance`` keeps it
        (``parts.within_budget``).
      distance: ``(B,)``, ``||x_adv - x||_p``, at least float32; of a weighted attack
        ``||(x_adv - x) / scale||_p``. An attack that looks for the nearest point and
        fails returns x, at distance 0: look at ``success`` first.
      steps: ``(B,)`` int32, the steps taken before the example was done.
      rate: ``(B,)`` float32, for a randomised network the fraction of the judged draws
        in which it decides at ``x_adv`` as the attack wants, within the budget, and
        ``success`` is by the rule of :class:`Draws`. A joined attack returns the point
        of the largest rate where none succeeds. None for a deterministic network.
    """

    x_adv: jax.Array
    success: jax.Array
    distance: jax.Array
    steps: jax.Array
    rate: jax.Array | None = None


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
      draws: how a randomised network is evaluated
        (:func:`opnorm.attacks.randomized`); None for a deterministic one.
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
    draws: Draws | None = None
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
            with a criterion, of any outputs that it reads. A randomised attack calls
            ``f(x, keys)`` with ``(B,)`` typed keys.
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
        if self.joined or self.draws is not None:
            return True
        return not all(stage.any_labels for stage in self.stages)

    @property
    def targeted(self) -> bool:
        """Whether the labels are to be reached."""
        return self.stages[0].targeted

    def difference(self, other: "Attack") -> str | None:
        """Returns which of "scale", "criterion", "draws" another attack has not."""
        for mine, theirs in ((self.scale, other.scale), (other.scale, self.scale)):
            if mine is not None and (
                theirs is None or not np.array_equal(mine, theirs)
            ):
                return "scale"
        if self.criterion != other.criterion:
            return "criterion"
        return "draws" if self.draws != other.draws else None

    def enter(
        self,
        number: int,
        f: linalg.Network,
        problem: Problem,
        shift: jax.Array | None = None,
    ) -> weights.Frame:
        """Returns what a stage searches on: network, rows, and the way back.

        Args:
          number: number of the stage.
          f: the network that ``criteria.pose`` has returned.
          problem: rows, with the labels that it has returned.
          shift: by how much x lies outside the box; read by a weighted attack alone.
        """
        rows = stages.for_stage(problem, number)
        if self.scale is None:
            return weights.Frame(f, rows, lambda z: z)
        return weights.enter(self.scale, self.stages[number].bounds, f, rows, shift)

    def _run(
        self,
        f: linalg.Network,
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
        given: tuple[jax.Array, ...] = (problem.x,)
        if self.draws is not None:
            stages.check_keys(problem)
            assert problem.keys is not None
            given = (problem.x, problem.keys)
            randomness.output_shapes(f, *given)
        if not linalg.keeps_programs(f, problem):
            # Traced here once. A network that is an argument of the program has no
            # gradient to be cut off from.
            f = linalg.detach(f, *given)
        if self.needs_classes:
            checks.check_labels(labels, len(x), linalg.output_shapes(f, *given))
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
                lambda image, row: AttackResult(
                    image, row, row, row, None if self.draws is None else row
                ),
                keyed=self.draws is not None,
            )

        return linalg.network_program(search)

    def _search(
        self, judge: bool, inside: bool, f: linalg.Network, problem: Problem
    ) -> AttackResult:
        problem = meshes.vary_alike(problem, problem)
        x = problem.x
        unit = randomness.unit_keys(self.draws, problem.keys)
        f, labels = criteria.pose(
            self.criterion, f, x, problem.labels, self.targeted, *unit
        )
        problem = problem._replace(labels=labels)
        zero = jnp.zeros_like(labels, dtype=wide(x))
        rate = None if self.draws is None else jnp.zeros_like(labels, jnp.float32)
        at_input = Verdict(jnp.zeros_like(labels, dtype=bool), rate)
        judged_first = self.joined or self.judges_input
        if judged_first:
            at_input = self._verdict(f, problem, self.stages[0], x, zero, 0)
        best = AttackResult(
            x_adv=problem.x,
            success=at_input.hit,
            distance=zero,
            steps=jnp.zeros_like(labels, dtype=jnp.int32),
            rate=at_input.rate,
        )
        for number, stage in enumerate(self.stages):
            unmoved = best.success & (best.distance == 0)
            fallen = best.success if self.keep == "first" else unmoved
            active = ~fallen if judged_first else None
            shift = None if inside else stages.shift_to_box(problem, stage.bounds)
            frame = self.enter(number, f, problem, shift)
            moved = shift if self.scale is None else None
            z, taken = stages.run_stage(stage, frame.f, frame.problem, moved, active)
            x_adv = frame.leave(z)
            distance = weights.length(self.scale, x_adv - problem.x, self.p)
            verdict = at_input
            if judge:
                verdict = self._verdict(f, problem, stage, x_adv, distance, number + 1)
            steps = best.steps + taken
            found = AttackResult(x_adv, verdict.hit, distance, steps, verdict.rate)
            if not judged_first:
                best = found
                continue
            wins = self._wins(found, best) & ~fallen
            best = select(wins, found, best)._replace(steps=found.steps)
        if judge and judged_first and self.draws is not None:
            # Choosing among points by their draws favours lucky ones. A point of a
            # joined attack was chosen within its budget.
            stage = self.stages[0]
            if self.joined:
                stage = dataclasses.replace(stage, epsilon=None)
            turn = len(self.stages) + 1
            last = self._verdict(f, problem, stage, best.x_adv, best.distance, turn)
            best = best._replace(success=last.hit, rate=last.rate)
        held: AttackResult = jax.tree.map(lax.stop_gradient, best)
        return held

    def _verdict(
        self,
        f: linalg.Network,
        problem: Problem,
        stage: Stage,
        point: jax.Array,
        distance: jax.Array,
        turn: int,
    ) -> Verdict:
        """Judges points at a distance from x by the goal and the budget of a stage."""
        found = randomness.judge(
            self.draws, f, problem.labels, problem.keys, point, stage.goal, turn
        )
        # Turn 0 judges x, which keeps every budget.
        if stage.epsilon is None or turn == 0:
            return found
        return found.within(
            weights.within_budget(
                self.scale, distance, stage.epsilon, problem.x, self.p
            )
        )

    def _wins(self, found: AttackResult, best: AttackResult) -> jax.Array:
        """Whether a point takes the place of the best one, ``(B,)`` bool."""
        wins = found.success if self.joined else jnp.ones_like(found.success)
        if self.keep == "nearest":
            wins &= ~best.success | (found.distance < best.distance)
        elif self.joined and found.rate is not None and best.rate is not None:
            wins = found.rate > best.rate
        return wins
