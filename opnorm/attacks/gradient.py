"""Projected gradient attacks of fixed budget, and random noise to compare with."""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from opnorm import linalg
from opnorm.attacks import box, checks, losses, meshes, parts, registry, repeats
from opnorm.attacks.attack import Attack
from opnorm.attacks.checks import Bounds
from opnorm.attacks.parts import Best, default_step_size
from opnorm.attacks.repeats import Turn
from opnorm.attacks.stage import Problem, Stage, check_keys
from opnorm.linalg import BatchFunction


@registry.register
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
      bounds: box (low, high) that inputs stay in, for all entries or for each, or
        None.

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


@registry.register
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
      loss: "cross_entropy", "margin" or "dlr" (the functions of these names),
        "logit_distance" (Lq distance to the clean logits; ignores labels), or a
        function ``(logits (B, K), labels (B,)) -> (B,)``.
      q: exponent of "logit_distance".
      targeted: descend the loss towards the labels instead.
      skip_blocked: whether gradient entries that point out of the box at a face are
        left out.
      bounds: box (low, high) that inputs stay in, for all entries or for each, or
        None.

    Raises:
      ValueError: for an option out of range; when applied, as :class:`Attack`.

    Source: Roth et al. 2020, Eqs. 15-18; Madry et al. 2018; Dong et al. 2018 for
    momentum.

    Example:
      A linear network gives the larger coordinate; the attack exchanges the
      two.

      >>> import jax
      >>> import jax.numpy as jnp
      >>> from opnorm import attacks
      >>> x, labels = jnp.array([[0.4, 0.6]]), jnp.array([1])
      >>> key = jax.random.key(0)
      >>> attack = attacks.pga(p=2, epsilon=0.3, num_steps=4)
      >>> found = attack.run(lambda x: x, x, labels, key)
      >>> found.success
      Array([ True], dtype=bool)
      >>> round(float(found.distance[0]), 3)
      0.3
    """
    p, q = linalg.check_exponent("p", p), linalg.check_exponent("q", q)
    linalg.check_length("epsilon", epsilon)
    linalg.check_length("momentum", momentum)
    if step_size is not None:
        linalg.check_length("step_size", step_size, positive=True)
    linalg.check_count("num_steps", num_steps, 0)
    linalg.check_count("num_restarts", num_restarts, 1)
    bounds = checks.check_bounds(bounds)
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
    radius = lax.stop_gradient(epsilon)
    size = (
        default_step_size(jnp.asarray(radius), num_steps)
        if step_size is None
        else lax.stop_gradient(step_size)
    )
    repeated = num_restarts > 1
    options = _Options(
        p=p,
        radius=radius,
        size=size,
        num_steps=num_steps,
        random_start=random_start,
        momentum=momentum,
        loss=losses.NAMED.get(loss, loss) if isinstance(loss, str) else loss,
        q=q,
        targeted=targeted,
        repeated=repeated,
        judges_last=keep == "last",
        bounds=bounds,
        faces=bounds if skip_blocked else None,
    )
    search = repeats.Search(
        # Judging a run takes one evaluation of its last point.
        num_steps + repeated,
        functools.partial(_init, options),
        functools.partial(_step, options),
    )
    if repeated:
        steps = repeats.repeat(
            search,
            bounds,
            num_restarts=num_restarts,
            keep="success" if keep == "success" else "goal",
        )
    else:
        steps = repeats.once(search, bounds, stops=keep == "success")

    def check(problem: Problem) -> None:
        if step_size is not None:
            checks.check_per_example("step_size", step_size, len(problem.x))
        started = problem.start is not None
        if loss == "logit_distance" and not random_start and not started:
            raise ValueError(
                "loss 'logit_distance' has no gradient at x; it needs "
                "random_start=True or a start."
            )
        if random_start and (not started or repeated):
            check_keys(problem)

    reads_labels = isinstance(loss, str) and loss != "logit_distance"
    stage = Stage(
        "pga",
        *steps,
        bounds=bounds,
        epsilon=radius,
        targeted=targeted,
        check=check,
        takes_start=True,
        any_labels=keep == "last" and not (reads_labels and steps.num_steps),
    )
    return Attack(name="pga", p=p, stages=(stage,), judges_input=keep == "success")


@registry.register
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
      bounds: box (low, high) that inputs are clipped to, for all entries or for each,
        or None.

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


@registry.register
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
      bounds: box (low, high) that inputs are clipped to, for all entries or for each,
        or None.

    Raises:
      ValueError: for an option out of range; when applied, as :class:`Attack`.
    """
    p = linalg.check_exponent("p", p)
    linalg.check_length("epsilon", epsilon)
    bounds = checks.check_bounds(bounds)

    def init(f: BatchFunction, problem: Problem) -> jax.Array:
        del f
        assert problem.keys is not None
        unit = parts.sample_sphere(problem.keys, problem.x, p, bounds)
        radius = meshes.constant(epsilon)
        drawn = linalg.scale(unit, jnp.asarray(radius))
        return parts.confine(problem.x, drawn, p, radius, bounds)

    stage = Stage(
        name="gaussian_noise",
        num_steps=0,
        bounds=bounds,
        epsilon=epsilon,
        init=init,
        step=lambda f, problem, state, i: state,
        finish=lambda problem, state: parts.clip(problem.x + state, bounds),
        check=check_keys,
        any_labels=True,
    )
    return Attack(name="gaussian_noise", p=p, stages=(stage,))


class _Options(NamedTuple):
    """The options of :func:`pga`.

    ``loss`` is a function or "logit_distance". If there are several runs (``repeated``)
    and ``judges_last``, only their last points may be kept.
    """

    p: float
    radius: float | jax.Array
    size: float | jax.Array
    num_steps: int
    random_start: bool
    momentum: float
    loss: str | losses.Loss
    q: float
    targeted: bool
    repeated: bool
    judges_last: bool
    bounds: Bounds
    faces: Bounds


class _State(NamedTuple):
    """The perturbation, the velocity with momentum, the clean logits if needed."""

    delta: jax.Array
    velocity: jax.Array | None
    clean: jax.Array | None


def _begin(options: _Options, problem: Problem, run: int | jax.Array) -> jax.Array:
    """Returns the perturbation that a run begins at."""
    x, keys = problem.x, problem.keys
    p, radius, bounds = options.p, options.radius, options.bounds
    begin = x if problem.start is None else problem.start
    if not options.random_start or keys is None:
        return parts.confine(x, begin - x, p, radius, bounds)
    limit = meshes.constant(radius)
    drawn = parts.sample_ball(parts.fold_in(keys, run), x, p, limit, bounds)
    if problem.start is not None:
        drawn = jnp.where(run == 0, begin - x, drawn)
    return parts.confine(x, drawn, p, radius, bounds)


def _init(options: _Options, f: BatchFunction, problem: Problem) -> _State:
    delta = _begin(options, problem, 0)
    velocity = jnp.zeros_like(delta) if options.momentum else None
    clean = f(problem.x) if options.loss == "logit_distance" else None
    return _State(delta, velocity, clean)


def _step(
    options: _Options,
    f: BatchFunction,
    problem: Problem,
    state: _State,
    turn: Turn,
) -> tuple[_State, Best, bool | jax.Array]:
    x, labels, delta = problem.x, problem.labels, state.delta
    # The first run has begun in init.
    fresh = (turn.step == 0) & (turn.run > 0)
    if options.repeated:
        delta = lax.cond(
            fresh,
            lambda: _begin(options, problem, turn.run).astype(x.dtype),
            lambda: delta,
        )

    def objective(logits: jax.Array) -> jax.Array:
        return _objective(options, logits, labels, state.clean)

    # Clipped as in the end: the sum may round to the outside of the box.
    point = parts.clip(x + delta, options.bounds)
    if options.num_steps == 0:
        logits = f(point)
        values, ascent = objective(logits), jnp.zeros_like(delta)
    else:
        values, logits, ascent = parts.value_and_gradient(f, objective, point)
    hit = parts.decided(logits, labels, options.targeted)
    if options.loss == "logit_distance":
        hit = jnp.zeros_like(hit)
    counts = turn.step == options.num_steps if options.judges_last else True
    # Without steps the ascent is a constant zero, and XLA folds its dual map and its
    # norm at compile time, for seconds.
    moved, velocity = delta, state.velocity
    if options.num_steps:
        state = state._replace(delta=delta)
        moved, velocity = _move(options, x, point, state, ascent, fresh)
    moved = parts.confine(x, moved, options.p, options.radius, options.bounds)
    new = _State(moved.astype(x.dtype), velocity, state.clean)
    return new, Best(delta, values, hit), counts


def _objective(
    options: _Options,
    logits: jax.Array,
    labels: jax.Array,
    clean: jax.Array | None,
) -> jax.Array:
    """Computes the function to maximise, ``(B,)``."""
    if isinstance(options.loss, str):
        assert clean is not None
        return losses.logit_distance(logits, clean, options.q)
    return (-1.0 if options.targeted else 1.0) * options.loss(logits, labels)


def _move(
    options: _Options,
    x: jax.Array,
    point: jax.Array,
    state: _State,
    ascent: jax.Array,
    fresh: jax.Array,
) -> tuple[jax.Array, jax.Array | None]:
    """Takes a step along the gradient; the perturbation is not confined yet."""
    delta, velocity = state.delta, state.velocity
    # An unlimited step starts from x, and is blocked there.
    jumps = jnp.isinf(meshes.constant(options.size))
    origin = jnp.where(parts.like(jumps, x), x, point)
    ascent = box.unblocked(origin, ascent, options.faces)
    if velocity is not None:
        unit = linalg.scale(ascent, 1 / parts.positive(linalg.norm(ascent, 1.0)))
        ascent = jnp.where(fresh, 0.0, options.momentum) * velocity + unit
        velocity = ascent.astype(velocity.dtype)
        ascent = box.unblocked(origin, ascent, options.faces)
    return _advance(options, delta, ascent), velocity


def _advance(options: _Options, delta: jax.Array, ascent: jax.Array) -> jax.Array:
    direction = linalg.dual_map(ascent, linalg.conjugate_exponent(options.p))
    step_size = jnp.asarray(meshes.constant(options.size), direction.dtype)
    epsilon = meshes.constant(options.radius)
    unlimited = jnp.isinf(step_size)
    walked = delta + linalg.scale(direction, jnp.where(unlimited, 0.0, step_size))
    jumped = linalg.scale(direction, jnp.asarray(epsilon, direction.dtype))
    jumps = unlimited & (linalg.norm(direction, math.inf) > 0)
    return parts.select(jumps, jumped, walked)


def _renamed(attack: Attack, name: str) -> Attack:
    stages = tuple(dataclasses.replace(stage, name=name) for stage in attack.stages)
    return dataclasses.replace(attack, name=name, stages=stages)
