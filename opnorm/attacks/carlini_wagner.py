"""attacks: Carlini and Wagner's L2 attack, with its search for the constant."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from opnorm import linalg
from opnorm.attacks import attack as attack_lib
from opnorm.attacks import box, checks, losses
from opnorm.attacks.attack import Attack, BatchFunction, Problem, Stage, like
from opnorm.attacks.checks import Bounds

# The inputs are pulled this far off the faces of the box, where tanh has no inverse.
_INSIDE = 0.999999
# An example gives up a constant when its loss falls by less than this part.
_PROGRESS = 0.9999
# From so many searches on, the last one is spent on the best constant known.
_REPEAT_FROM = 10


def carlini_wagner(
    *,
    num_steps: int = 1000,
    num_searches: int = 9,
    learning_rate: float = 0.01,
    initial_constant: float = 1e-3,
    confidence: float = 0.0,
    abort_early: bool = True,
    targeted: bool = False,
    bounds: Bounds = (0.0, 1.0),
) -> Attack:
    """Returns Carlini and Wagner's attack for the nearest point in L2.

    Adam minimises ``||z - x||_2^2 + c max(0, z_y - max_{i != y} z_i + confidence)``
    over ``z = middle + half width * tanh(w)``, so that z stays in the box. c is found
    per example: ten times larger until a search succeeds, then by bisection. Every
    example has its own Adam, gives up a constant by itself, and then goes on to its
    next one at once, so that examples end at different steps. A step costs one forward
    and one backward pass. For examples without a point that succeeds in the end,
    :mod:`opnorm.attacks.box` walks to the corners of the box.

    Args:
      num_steps: steps for each constant, at least 1; published results use 10,000.
      num_searches: constants tried, at least 1. From 10 on the last one repeats the
        smallest that succeeded.
      learning_rate: of Adam, positive.
      initial_constant: first c, positive.
      confidence: margin of the logits that a point must reach, at least 0. An example
        that is misclassified (or at its target) by less is attacked like any other.
      abort_early: whether to give up a constant when a tenth of the steps lowers the
        loss by less than 1e-4 of it.
      targeted: reach the labels instead of leaving them.
      bounds: box (low, high).

    Raises:
      ValueError: for an option out of range; when applied, as :class:`Attack`.

    Source: Carlini & Wagner 2017, section V (f_6) and VI.
    """
    linalg.check_count("num_steps", num_steps, 1)
    linalg.check_count("num_searches", num_searches, 1)
    for name, value in (
        ("learning_rate", learning_rate),
        ("initial_constant", initial_constant),
    ):
        linalg.check_length(name, value, positive=True)
    linalg.check_length("confidence", confidence)
    checks.check_box(bounds)
    assert bounds is not None
    middle, half = (bounds[0] + bounds[1]) / 2, (bounds[1] - bounds[0]) / 2
    optimizer = optax.adam(learning_rate)
    interval = max(num_steps // 10, 1)

    def init(f: BatchFunction, problem: Problem) -> dict[str, Any]:
        x, labels = problem.x, problem.labels
        wide = jnp.promote_types(x.dtype, jnp.float32)
        logits = f(x)
        at_input = attack_lib.decided(logits, labels, targeted, confidence)
        rounds = 1 if targeted else logits.shape[1]
        zero = jnp.zeros_like(labels, dtype=wide)
        shift = jnp.zeros_like(x, dtype=wide)
        return {
            "shift": shift,
            "adam": jax.vmap(optimizer.init)(shift),
            "constant": zero + initial_constant,
            "low": zero,
            "high": zero + jnp.inf,
            "step": jnp.zeros_like(labels, dtype=jnp.int32),
            "search": jnp.zeros_like(labels, dtype=jnp.int32),
            "succeeded": jnp.zeros_like(labels, dtype=bool),
            "checked": zero + jnp.inf,
            "best": x,
            "distance": jnp.where(at_input, 0.0, jnp.inf).astype(wide),
            "walk": box.begin_walk(x, logits, labels, rounds),
            "done": at_input,
        }

    def step(
        f: BatchFunction, problem: Problem, state: dict[str, Any], i: jax.Array
    ) -> dict[str, Any]:
        del i
        x, labels, constant = problem.x, problem.labels, state["constant"]
        centred = (x.astype(state["shift"].dtype) - middle) / half
        origin = jnp.arctanh(jnp.clip(centred, -1, 1) * _INSIDE)
        start = (middle + half * jnp.tanh(origin)).astype(x.dtype)
        walk, walks = state["walk"], state["search"] >= num_searches

        def point_at(shift: jax.Array) -> jax.Array:
            z = middle + half * jnp.tanh(origin + shift)
            return attack_lib.clip(z, bounds).astype(x.dtype)

        def total(z: jax.Array) -> tuple[jax.Array, Any]:
            logits = f(z)
            margin = losses.margin(logits, labels)
            short = (margin if targeted else -margin) + confidence
            length = linalg.inner(z - start, z - start)
            values = length + constant * jnp.maximum(short, 0.0)
            lead = box.walk_objective(walk, logits, labels, targeted)
            values = jnp.where(walks, -lead, values)
            return jnp.sum(values), (values, logits)

        z, pull_back = jax.vjp(point_at, state["shift"])
        z = jnp.where(like(walks, z), walk["point"], z)
        slope, (values, logits) = jax.grad(total, has_aux=True)(z)
        slope = _sound(slope)
        gradient = _sound(pull_back(slope)[0])
        hit = attack_lib.decided(logits, labels, targeted, confidence)
        distance = linalg.norm(z - x, 2.0)
        nearer = hit & (distance < state["distance"])
        update, adam = jax.vmap(optimizer.update)(gradient, state["adam"])
        new = {
            **state,
            "shift": state["shift"] + update,
            "adam": adam,
            "step": state["step"] + 1,
            "succeeded": state["succeeded"] | hit,
            "best": jnp.where(like(nearer, z), z, state["best"]),
            "distance": jnp.where(nearer, distance, state["distance"]),
        }
        over = new["step"] >= num_steps
        if abort_early:
            check = new["step"] % interval == 0
            stuck = ~(values <= _PROGRESS * state["checked"])
            over |= check & stuck
            new["checked"] = jnp.where(check, values, state["checked"])
        found = jnp.isfinite(new["distance"])
        new["walk"], ended = box.advance_walk(
            walk, walks, x, new["best"], found, hit, -slope, bounds
        )
        new["done"] = state["done"] | ended
        return _next_search(new, over & ~walks)

    def _next_search(state: dict[str, Any], over: jax.Array) -> dict[str, Any]:
        """Where a search is over, chooses the next constant and begins again."""
        constant, succeeded = state["constant"], state["succeeded"]
        high = jnp.where(succeeded, constant, jnp.inf)
        high = jnp.minimum(high, state["high"])
        low = jnp.where(succeeded, state["low"], jnp.maximum(state["low"], constant))
        known = jnp.isfinite(high)
        between = 0.5 * (low + jnp.where(known, high, low))
        chosen = jnp.where(known, between, 10 * constant)
        search = state["search"] + 1
        if num_searches >= _REPEAT_FROM:
            chosen = jnp.where(known & (search == num_searches - 1), high, chosen)
        shift = jnp.zeros_like(state["shift"])
        fresh = {
            "shift": shift,
            "adam": jax.vmap(optimizer.init)(shift),
            "constant": chosen,
            "low": low,
            "high": high,
            "step": jnp.zeros_like(state["step"]),
            "search": search,
            "succeeded": jnp.zeros_like(succeeded),
            "checked": jnp.full_like(state["checked"], jnp.inf),
        }
        kept = {name: state[name] for name in fresh}
        chosen_state = jax.tree.map(
            lambda new, old: jnp.where(like(over, old), new, old), fresh, kept
        )
        found = jnp.isfinite(state["distance"])
        done = state["done"] | (over & (search >= num_searches) & found)
        return {**state, **chosen_state, "done": done}

    stage = Stage(
        name="carlini_wagner",
        num_steps=num_searches * num_steps + box.walk_steps(bounds),
        bounds=bounds,
        init=init,
        step=step,
        finish=lambda problem, state: state["best"],
        done=lambda state: state["done"],
        targeted=targeted,
        confidence=confidence,
    )
    return Attack(name=stage.name, p=2.0, stages=(stage,), budget=False)


def _sound(gradient: jax.Array) -> jax.Array:
    """The gradient, zero for an example where it is not finite everywhere."""
    sound = jnp.all(jnp.isfinite(gradient), axis=tuple(range(1, gradient.ndim)))
    return jnp.where(like(sound, gradient), gradient, 0.0)
