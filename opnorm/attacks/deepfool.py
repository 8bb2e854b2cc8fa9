"""DeepFool, which steps to the nearest linearised decision boundary."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from opnorm import linalg
from opnorm.attacks import box, checks, criteria, parts, registry
from opnorm.attacks.attack import Attack
from opnorm.attacks.checks import Bounds
from opnorm.attacks.parts import like
from opnorm.attacks.stage import Problem, Stage
from opnorm.linalg import BatchFunction

_LEAST_STEP = 1e-4


@registry.register
def deepfool(
    *,
    p: float = 2.0,
    num_steps: int = 50,
    overshoot: float = 0.02,
    num_candidates: int = 10,
    targeted: bool = False,
    bounds: Bounds = (0.0, 1.0),
) -> Attack:
    """Returns DeepFool: steps to the nearest of the linearised decision boundaries.

    At each point the boundary with class k is ``|f_k| / ||w_k||_{p*}`` away, ``f_k =
    z_k - z_y`` and w_k its gradient; the step goes to the nearest one, along
    ``T_{p*}(w_k)``. The sum of the steps, lengthened by the overshoot, is added to x,
    inside the box. Entries of w_k that point out of the box at a face are left out. The
    first misclassified point is returned. A step costs one forward pass and one
    backward pass per candidate; the gradients of all candidates are one vectorised
    pass. For examples that no step has brought to a misclassified point,
    a walk to the corners of the box is tried.

    Args:
      p: exponent of the norm, 2 or inf.
      num_steps: steps, at least 1; the last point is judged too.
      overshoot: part by which the sum of the steps is lengthened, at least 0.
      num_candidates: how many classes, those of the largest clean logits with the
        label among them, are looked at; at least 2.
      targeted: reach the labels instead of leaving them.
      bounds: box (low, high), for all entries or for each, or None.

    Raises:
      ValueError: for an option out of range; when applied, as :class:`Attack`.

    Source: Moosavi-Dezfooli et al. 2016, Algorithm 2 and Eqs. 10-12, and their code for
    the 1e-4 by which every step is lengthened: without it about a hundredth of the
    images come ever nearer to the boundary and never cross it. Their steps also count
    where the box has taken them away.

    Example:
      A linear network gives the larger coordinate; the nearest point of the
      other class is at distance 0.2 / sqrt(2).

      >>> import jax.numpy as jnp
      >>> from opnorm import attacks
      >>> x, labels = jnp.array([[0.4, 0.6]]), jnp.array([1])
      >>> attack = attacks.deepfool(p=2)
      >>> found = attack.run(lambda x: x, x, labels)
      >>> found.success
      Array([ True], dtype=bool)
      >>> round(float(found.distance[0]), 3)
      0.144
    """
    p = checks.check_norm(p, (2.0, math.inf))
    linalg.check_count("num_steps", num_steps, 1)
    linalg.check_count("num_candidates", num_candidates, 2)
    linalg.check_length("overshoot", overshoot)
    bounds = checks.check_bounds(bounds)

    options = _Options(p, num_steps, overshoot, num_candidates, bounds)
    stage = Stage(
        name="deepfool",
        num_steps=num_steps + 1 + box.walk_steps(bounds),
        bounds=bounds,
        init=functools.partial(_init, options),
        step=functools.partial(_step, options),
        finish=lambda problem, state: state.best,
        done=lambda state: state.done,
    )
    if targeted:
        stage = criteria.reaching(stage)
    return Attack(name="deepfool", p=p, stages=(stage,), budget=False)


class _Options(NamedTuple):
    """The options of :func:`deepfool`."""

    p: float
    num_steps: int
    overshoot: float
    num_candidates: int
    bounds: Bounds


class _State(NamedTuple):
    """The search, one row for each example.

    Attributes:
      moved: ``(B, ...)``, the sum of the steps.
      candidates: ``(B, T)`` int32, the classes whose boundaries are looked at.
      best: ``(B, ...)``, the point to return.
      found: ``(B,)`` bool, whether ``best`` is misclassified.
      done: ``(B,)`` bool.
      walk: the walk to the corners.
    """

    moved: jax.Array
    candidates: jax.Array
    best: jax.Array
    found: jax.Array
    done: jax.Array
    walk: box.Walk


def _init(options: _Options, f: BatchFunction, problem: Problem) -> _State:
    x, labels = problem.x, problem.labels
    logits = f(x)
    wrong = parts.decided(logits, labels)
    candidates, _ = parts.other_classes(logits, labels, options.num_candidates - 1)
    return _State(
        moved=jnp.zeros_like(x),
        candidates=candidates,
        best=x,
        found=wrong,
        done=wrong,
        walk=box.begin_walk(x, logits, labels, rounds=candidates.shape[1]),
    )


def _step(
    options: _Options,
    f: BatchFunction,
    problem: Problem,
    state: _State,
    i: jax.Array,
) -> _State:
    x, labels, moved, walk = problem.x, problem.labels, state.moved, state.walk
    conjugate, bounds = linalg.conjugate_exponent(options.p), options.bounds
    walks = i > options.num_steps
    ahead = parts.clip(x + (1 + options.overshoot) * moved, bounds).astype(x.dtype)
    here = jnp.where(walks, walk.point, ahead)
    logits, pull_back = jax.vjp(f, here)
    hit = parts.decided(logits, labels)
    classes = jnp.arange(logits.shape[1])[None]
    own = (classes == labels[:, None]).astype(logits.dtype)

    def away(candidate: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Distance to the boundary with a class, and its normal."""
        other = (classes == candidate[:, None]).astype(logits.dtype)
        normal = box.unblocked(here, pull_back(other - own)[0], bounds)
        gap = jnp.sum(jnp.where(other - own != 0, (other - own) * logits, 0), 1)
        size = linalg.norm(normal, conjugate)
        alive = jnp.isfinite(size) & (size > 0) & jnp.isfinite(gap)
        ratio = jnp.abs(gap) / jnp.where(alive, size, 1.0)
        normal = jnp.where(like(alive, normal), normal, 0.0)
        return jnp.where(alive, ratio, jnp.inf), normal

    distances, normals = jax.vmap(away)(state.candidates.T)
    nearest = jnp.argmin(distances, axis=0)
    distance = jnp.min(distances, axis=0)
    rows = jnp.arange(len(x))
    direction = linalg.dual_map(normals[nearest, rows], conjugate)
    length = jnp.where(jnp.isfinite(distance), distance + _LEAST_STEP, 0.0)
    ahead = moved + linalg.scale(direction, length).astype(x.dtype)
    ahead = _inside(options, x, ahead)
    ahead = parts.select(parts.all_finite(ahead) & ~hit, ahead, moved)
    best = parts.select(hit, here, state.best)
    found = state.found | hit
    leads = jnp.take_along_axis(logits, state.candidates, axis=1)
    at = jnp.where(walk.round < len(normals), walk.round, jnp.argmax(leads, 1))
    ascent = normals[at, rows]
    walk, ended = box.advance_walk(walk, walks, x, best, found, hit, ascent, bounds)
    return _State(
        moved=ahead,
        candidates=state.candidates,
        best=best,
        found=found,
        done=jnp.where(walks, ended, hit),
        walk=walk,
    )


def _inside(options: _Options, x: jax.Array, moved: jax.Array) -> jax.Array:
    """Shortens the sum of the steps, so that it ends where its point is clipped to."""
    if options.bounds is None:
        return moved
    ends = parts.ends(options.bounds, x)
    low, high = ((end - x) / (1 + options.overshoot) for end in ends)
    return jnp.clip(moved, low, high)
