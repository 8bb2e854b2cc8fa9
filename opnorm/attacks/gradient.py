"""attacks: projected gradient attacks of fixed budget, and random noise beside them."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from opnorm import linalg
from opnorm.attacks import attack as attack_lib
from opnorm.attacks import box, checks, losses, meshes
from opnorm.attacks.attack import Attack, BatchFunction, Problem, Stage, like
from opnorm.attacks.checks import Bounds


def fgm(
    *,
    p: float,
    epsilon: float | jax.Array,
    loss: str | losses.Loss = "cross_entropy",
    targeted: bool = False,
    bounds: Bounds = (0.0, 1.0),
) -> Attack:
    """Returns the fast gradient method: ``x + epsilon T_{p*}(gradient)``.

    It maximises the linearised loss over the Lp ball; p = inf is FGSM.

    Args:
      p: exponent of the norm, in [1, inf].
      epsilon: budget in pixel units, at least 0; scalar or ``(B,)``, may be traced.
      loss: as for :func:`pga`, but "logit_distance", whose gradient at x is zero.
      targeted: descend the loss towards the labels instead.
      bounds: box (low, high) that inputs stay in, or None.

    Raises:
      ValueError: for an option out of range.

    Source: Roth et al. 2020, Eq. 16; Farnia et al. 2019, Eq. 5.
    """
    attack = pga(
        p=p,
        epsilon=epsilon,
        num_steps=1,
        step_size=math.inf,
        random_start=False,
        loss=loss,
        targeted=targeted,
        bounds=bounds,
    )
    return _renamed(attack, "fgm")


def pga(
    *,
    p: float,
    epsilon: float | jax.Array,
    num_steps: int = 10,
    step_size: float | jax.Array | None = None,
    random_start: bool = True,
    num_restarts: int = 1,
    momentum: float = 0.0,
    keep: str = "last",
    loss: str | losses.Loss = "cross_entropy",
    q: float = 2.0,
    targeted: bool = False,
    skip_blocked: bool = True,
    bounds: Bounds = (0.0, 1.0),
) -> Attack:
    """Returns projected gradient ascent in the Lp ball of radius epsilon.

    ``x_k = Proj(x_{k-1} + step_size T_{p*}(gradient))``: onto the ball, then the box.
    With ``step_size=inf`` the step is its limit, ``x +
    epsilon T_{p*}(gradient)``: the power method, where the network is linear. Where a
    gradient is zero or not finite, the point stays. A step costs one forward and one
    backward pass to the input; several restarts cost one forward pass more each.

    Gradient entries that point out of the box at a face are left out before the dual
    map: with them a step spends its length where clipping takes it away, and for p = 1
    stands still once the steepest entry has reached its bound. That departs from the
    source, which ``skip_blocked=False`` follows; for p = inf without momentum both take
    the same steps up to rounding.
    For p other than 1, 2 and inf the dual map is not the gradient of what the
    projection preserves, and small steps stop short of the maximum even of a linear
    loss; ``step_size=inf`` reaches it.

    Args:
      p: exponent of the norm, in [1, inf].
      epsilon: budget in pixel units, at least 0; scalar or ``(B,)``, may be traced, so
        that a list of budgets needs one compilation.
      num_steps: steps, at least 0.
      step_size: positive, scalar or ``(B,)``, may be traced; None for ``2 epsilon /
        num_steps``; inf for the limit.
      random_start: start at a uniform sample of the ball instead of x.
      num_restarts: random starts, at least 1; per example a point that reaches the
        goal is kept before one that does not ("logit_distance" has no goal), then
        the highest loss.
      momentum: factor mu, in [0, inf), of the velocity ``mu velocity + gradient /
        ||gradient||_1`` that takes the gradient's place (MI-FGSM); 0 for none.
      keep: "last" returns the last iterate, "success" the first one that reaches the
        goal, x being the first that is looked at, at the price of one forward pass
        more: what robust accuracy asks for.
      loss: "cross_entropy", "margin" or "dlr" (see :mod:`opnorm.attacks.losses`),
        "logit_distance" (Lq distance to the clean logits; ignores labels), or a
        function ``(logits (B, K), labels (B,)) -> (B,)``.
      q: exponent of "logit_distance".
      targeted: descend the loss towards the labels instead.
      skip_blocked: whether gradient entries that point out of the box at a face are
        left out.
      bounds: box (low, high) that inputs stay in, or None.

    Raises:
      ValueError: for an option out of range; when applied, as :class:`Attack`.

    Source: Roth et al. 2020, Eqs. 15-18; Madry et al. 2018; Dong et al. 2018 for
    momentum.
    """
    p, q = linalg.check_exponent("p", p), linalg.check_exponent("q", q)
    linalg.check_length("epsilon", epsilon)
    linalg.check_length("momentum", momentum)
    if step_size is not None:
        linalg.check_length("step_size", step_size, positive=True)
    linalg.check_count("num_steps", num_steps, 0)
    linalg.check_count("num_restarts", num_restarts, 1)
    checks.check_bounds(bounds)
    named = (*losses.NAMED, "logit_distance")
    if isinstance(loss, str) and loss not in named:
        raise ValueError(f"loss is {loss!r}; it may be {', '.join(named)}.")
    if loss == "logit_distance" and (targeted or keep != "last"):
        raise ValueError(
            "loss 'logit_distance' has no labels; targeted must be False and keep "
            "'last'."
        )
    if keep not in ("last", "success"):
        raise ValueError(f"keep is {keep!r}; it may be 'last' or 'success'.")
    if num_restarts > 1 and not random_start:
        raise ValueError("num_restarts needs random_start=True: they would be alike.")
    size = None if step_size is None else lax.stop_gradient(step_size)
    radius = lax.stop_gradient(epsilon)
    if size is None:
        size = 2 * jnp.asarray(radius) / max(num_steps, 1)
    confine = functools.partial(attack_lib.confine, p=p, radius=radius, bounds=bounds)
    faces = bounds if skip_blocked else None
    # Judging a restart takes one evaluation of its last point.
    period = num_steps + (num_restarts > 1)

    def check(problem: Problem) -> None:
        if step_size is not None:
            checks.check_per_example("step_size", step_size, len(problem.x))
        started = problem.start is not None
        if loss == "logit_distance" and not random_start and not started:
            raise ValueError(
                "loss 'logit_distance' has no gradient at x; it needs "
                "random_start=True or a start."
            )
        if random_start and (not started or num_restarts > 1):
            attack_lib.check_keys(problem)

    def begin(problem: Problem, restart: Any) -> jax.Array:
        x, keys = problem.x, problem.keys
        begin = x if problem.start is None else problem.start
        if not random_start or keys is None:
            return confine(x, begin - x)
        limit = meshes.constant(radius)
        drawn = linalg.sample_ball(attack_lib.fold_in(keys, restart), x, p, limit)
        if problem.start is not None:
            drawn = jnp.where(restart == 0, begin - x, drawn)
        return confine(x, drawn)

    def init(f: BatchFunction, problem: Problem) -> dict[str, jax.Array]:
        delta = begin(problem, 0)
        # Made of the labels, so that under shard_map they differ where those do.
        nothing = jnp.zeros_like(problem.labels, dtype=bool)
        lowest = jnp.full_like(problem.labels, -jnp.inf, dtype=_wide(delta))
        state = {"delta": delta}
        if momentum:
            state["velocity"] = jnp.zeros_like(delta)
        if keep == "success":
            state["done"] = nothing
        if num_restarts > 1:
            state |= {"best": delta, "value": lowest, "hit": nothing}
        if loss == "logit_distance":
            state["clean"] = f(problem.x)
        return state

    def step(
        f: BatchFunction, problem: Problem, state: dict[str, jax.Array], i: jax.Array
    ) -> dict[str, jax.Array]:
        x, labels, delta = problem.x, problem.labels, state["delta"]
        new, velocity = dict(state), state.get("velocity")
        fresh = (i % period == 0) & (i > 0)
        if num_restarts > 1:
            delta = lax.cond(
                fresh,
                lambda: begin(problem, i // period).astype(x.dtype),
                lambda: delta,
            )

        def objective(logits: jax.Array) -> jax.Array:
            return _objective(logits, labels, state, loss, q, targeted)

        # Clipped as in the end: the sum may round to the outside of the box.
        point = attack_lib.clip(x + delta, bounds)
        if num_steps == 0:
            logits = f(point)
            values, ascent = objective(logits), jnp.zeros_like(delta)
        else:
            values, logits, ascent = attack_lib.value_and_gradient(f, objective, point)
        hit = attack_lib.decided(logits, labels, targeted) & (loss != "logit_distance")
        if num_restarts > 1:
            higher = (hit == state["hit"]) & (values > state["value"])
            wins = (hit & ~state["hit"]) | higher
            if keep == "last":
                wins &= i % period == num_steps
            current = {"best": delta, "value": values, "hit": hit}
            for name, value in current.items():
                value = value.astype(state[name].dtype)
                new[name] = jnp.where(like(wins, value), value, state[name])
        # An unlimited step starts from x, and is blocked there.
        jumps = jnp.isinf(meshes.constant(size))
        origin = jnp.where(like(jumps, x), x, point)
        ascent = box.unblocked(origin, ascent, faces)
        if velocity is not None:
            unit = linalg.scale(ascent, 1 / _positive(linalg.norm(ascent, 1.0)))
            ascent = jnp.where(fresh, 0.0, momentum) * velocity + unit
            new["velocity"] = ascent.astype(velocity.dtype)
            ascent = box.unblocked(origin, ascent, faces)
        # Without steps the ascent is a constant zero, and XLA folds its dual map and
        # its norm at compile time, for seconds.
        moved = _advance(delta, ascent, p, radius, size) if num_steps else delta
        new["delta"] = confine(x, moved).astype(x.dtype)
        if keep == "success":
            new["done"] = hit
            new["delta"] = jnp.where(like(hit, delta), delta, new["delta"])
        return new

    def finish(problem: Problem, state: dict[str, jax.Array]) -> jax.Array:
        delta = state["best" if num_restarts > 1 else "delta"]
        # Adding x back rounds, and may round out of the box.
        return attack_lib.clip(problem.x + delta, bounds)

    stage = Stage(
        name="pga",
        num_steps=num_restarts * period,
        bounds=bounds,
        epsilon=radius,
        init=init,
        step=step,
        finish=finish,
        done=(lambda state: state["done"]) if keep == "success" else None,
        targeted=targeted,
        check=check,
        takes_start=True,
        any_labels=keep == "last" and (period == 0 or loss not in tuple(losses.NAMED)),
    )
    return Attack(name="pga", p=p, stages=(stage,), judges_input=keep == "success")


def uniform_noise(
    *,
    p: float,
    epsilon: float | jax.Array,
    num_draws: int = 1,
    bounds: Bounds = (0.0, 1.0),
) -> Attack:
    """Returns the baseline that draws points of the Lp ball uniformly.

    Args:
      p: exponent of the norm, in [1, inf].
      epsilon: budget in pixel units, at least 0; scalar or ``(B,)``.
      num_draws: points drawn, at least 1. With several, the first point that is
        misclassified is kept, x before all others, or else the one of highest
        cross-entropy: random search, at one forward pass each.
      bounds: box (low, high) that inputs are clipped to, or None.

    Raises:
      ValueError: for an option out of range; when applied, as :class:`Attack`.
    """
    keep = "success" if num_draws > 1 else "last"
    return _renamed(
        pga(
            p=p,
            epsilon=epsilon,
            num_steps=0,
            num_restarts=num_draws,
            keep=keep,
            bounds=bounds,
        ),
        "uniform_noise",
    )


def gaussian_noise(
    *,
    epsilon: float | jax.Array,
    p: float = 2.0,
    bounds: Bounds = (0.0, 1.0),
) -> Attack:
    """Returns the baseline of one perturbation of length epsilon in a random direction.

    For p = 2 the direction is that of Gaussian noise; for other p it has the cone
    measure of the Lp sphere. Clipping to the box shortens it.

    Args:
      epsilon: length in pixel units, at least 0; scalar or ``(B,)``.
      p: exponent of the norm, in [1, inf].
      bounds: box (low, high) that inputs are clipped to, or None.

    Raises:
      ValueError: for an option out of range; when applied, as :class:`Attack`.
    """
    p = linalg.check_exponent("p", p)
    linalg.check_length("epsilon", epsilon)
    checks.check_bounds(bounds)

    def init(f: BatchFunction, problem: Problem) -> jax.Array:
        del f
        assert problem.keys is not None
        unit = linalg.sample_sphere(problem.keys, problem.x, p)
        radius = meshes.constant(epsilon)
        drawn = linalg.scale(unit, jnp.asarray(radius))
        return attack_lib.confine(problem.x, drawn, p, radius, bounds)

    stage = Stage(
        name="gaussian_noise",
        num_steps=0,
        bounds=bounds,
        epsilon=epsilon,
        init=init,
        step=lambda f, problem, state, i: state,
        finish=lambda problem, state: attack_lib.clip(problem.x + state, bounds),
        check=attack_lib.check_keys,
        any_labels=True,
    )
    return Attack(name="gaussian_noise", p=p, stages=(stage,))


def _objective(
    logits: jax.Array,
    labels: jax.Array,
    state: dict[str, jax.Array],
    loss: str | losses.Loss,
    q: float,
    targeted: bool,
) -> jax.Array:
    """What to maximise, ``(B,)``."""
    if loss == "logit_distance":
        return losses.logit_distance(logits, state["clean"], q)
    chosen = losses.NAMED[loss] if isinstance(loss, str) else loss
    return (-1.0 if targeted else 1.0) * chosen(logits, labels)


def _advance(
    delta: jax.Array,
    ascent: jax.Array,
    p: float,
    epsilon: float | jax.Array,
    step_size: float | jax.Array,
) -> jax.Array:
    direction = linalg.dual_map(ascent, linalg.conjugate_exponent(p))
    step_size = jnp.asarray(meshes.constant(step_size), direction.dtype)
    epsilon = meshes.constant(epsilon)
    unlimited = jnp.isinf(step_size)
    walked = delta + linalg.scale(direction, jnp.where(unlimited, 0.0, step_size))
    jumped = linalg.scale(direction, jnp.asarray(epsilon, direction.dtype))
    jumps = unlimited & (linalg.norm(direction, math.inf) > 0)
    return jnp.where(like(jumps, delta), jumped, walked)


def _positive(value: jax.Array) -> jax.Array:
    return jnp.where(value > 0, value, 1.0)


def _wide(x: jax.Array) -> Any:
    return jnp.promote_types(x.dtype, jnp.float32)


def _renamed(attack: Attack, name: str) -> Attack:
    stages = tuple(dataclasses.replace(stage, name=name) for stage in attack.stages)
    return dataclasses.replace(attack, name=name, stages=stages)
