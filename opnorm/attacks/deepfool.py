"""attacks: DeepFool, which steps to the nearest linearised decision boundary."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from opnorm import linalg
from opnorm.attacks import attack as attack_lib
from opnorm.attacks import box, checks
from opnorm.attacks.attack import Attack, BatchFunction, Problem, Stage, like
from opnorm.attacks.checks import Bounds

_LEAST_STEP = 1e-4


def deepfool(
    *,
    p: float = 2.0,
    num_steps: int = 50,
    overshoot: float = 0.02,
    num_candidates: int = 10,
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
    :mod:`opnorm.attacks.box` walks to the corners of the box.

    Args:
      p: exponent of the norm, 2 or inf.
      num_steps: steps, at least 1; the last point is judged too.
      overshoot: part by which the sum of the steps is lengthened, at least 0.
      num_candidates: how many classes, those of the largest clean logits with the
        label among them, are looked at; at least 2.
      bounds: box (low, high), or None.

    Raises:
      ValueError: for an option out of range; when applied, as :class:`Attack`.

    Source: Moosavi-Dezfooli et al. 2016, Algorithm 2 and Eqs. 10-12, and their code for
    the 1e-4 by which every step is lengthened: without it about a hundredth of the
    images come ever nearer to the boundary and never cross it. Their steps also count
    where the box has taken them away.
    """
    p = checks.check_norm(p, (2.0, math.inf))
    linalg.check_count("num_steps", num_steps, 1)
    linalg.check_count("num_candidates", num_candidates, 2)
    linalg.check_length("overshoot", overshoot)
    checks.check_bounds(bounds)
    conjugate = linalg.conjugate_exponent(p)

    def init(f: BatchFunction, problem: Problem) -> dict[str, Any]:
        x, labels = problem.x, problem.labels
        logits = f(x)
        wrong = attack_lib.decided(logits, labels, False)
        candidates, _ = attack_lib.other_classes(logits, labels, num_candidates - 1)
        return {
            "moved": jnp.zeros_like(x),
            "candidates": candidates,
            "best": x,
            "walk": box.begin_walk(x, logits, labels, rounds=candidates.shape[1]),
            "done": wrong,
            "found": wrong,
        }

    def point(x: jax.Array, moved: jax.Array) -> jax.Array:
        return attack_lib.clip(x + (1 + overshoot) * moved, bounds).astype(x.dtype)

    def inside(x: jax.Array, moved: jax.Array) -> jax.Array:
        """The sum of the steps that ends where its point is clipped to."""
        if bounds is None:
            return moved
        low, high = ((end - x) / (1 + overshoot) for end in bounds)
        return jnp.clip(moved, low, high)

    def step(
        f: BatchFunction, problem: Problem, state: dict[str, Any], i: jax.Array
    ) -> dict[str, Any]:
        x, labels, moved = problem.x, problem.labels, state["moved"]
        walk, walks = state["walk"], i > num_steps
        here = jnp.where(walks, walk["point"], point(x, moved))
        logits, pull_back = jax.vjp(f, here)
        hit = attack_lib.decided(logits, labels, False)
        classes = jnp.arange(logits.shape[1])
        own = (classes == labels[:, None]).astype(logits.dtype)

        def away(candidate: jax.Array) -> tuple[jax.Array, jax.Array]:
            other = (classes == candidate[:, None]).astype(logits.dtype)
            normal = box.unblocked(here, pull_back(other - own)[0], bounds)
            gap = jnp.sum(jnp.where(other - own != 0, (other - own) * logits, 0), 1)
            size = linalg.norm(normal, conjugate)
            alive = jnp.isfinite(size) & (size > 0) & jnp.isfinite(gap)
            ratio = jnp.abs(gap) / jnp.where(alive, size, 1.0)
            normal = jnp.where(like(alive, normal), normal, 0.0)
            return jnp.where(alive, ratio, jnp.inf), normal

        distances, normals = jax.vmap(away)(state["candidates"].T)
        nearest = jnp.argmin(distances, axis=0)
        distance = jnp.min(distances, axis=0)
        rows = jnp.arange(len(x))
        normal = normals[nearest, rows]
        direction = linalg.dual_map(normal, conjugate)
        known = jnp.isfinite(distance)
        length = jnp.where(known, distance + _LEAST_STEP, 0.0)
        ahead = moved + linalg.scale(direction, length).astype(x.dtype)
        ahead = inside(x, ahead)
        sound = jnp.all(jnp.isfinite(ahead), axis=tuple(range(1, x.ndim)))
        ahead = jnp.where(like(sound & ~hit, x), ahead, moved)
        best = jnp.where(like(hit, x), here, state["best"])
        found = state["found"] | hit
        leads = jnp.take_along_axis(logits, state["candidates"], axis=1)
        at = jnp.where(
            walk["round"] < len(normals), walk["round"], jnp.argmax(leads, 1)
        )
        ascent = normals[at, rows]
        walk, ended = box.advance_walk(walk, walks, x, best, found, hit, ascent, bounds)
        return {
            **state,
            "moved": ahead,
            "best": best,
            "walk": walk,
            "found": found,
            "done": jnp.where(walks, ended, hit),
        }

    stage = Stage(
        name="deepfool",
        num_steps=num_steps + 1 + box.walk_steps(bounds),
        bounds=bounds,
        init=init,
        step=step,
        finish=lambda problem, state: state["best"],
        done=lambda state: state["done"],
    )
    return Attack(name="deepfool", p=p, stages=(stage,), budget=False)
