"""Auto-PGD, projected gradient ascent that chooses its own step sizes."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from opnorm import linalg
from opnorm.attacks import box, checks, losses, meshes, parts, registry, repeats
from opnorm.attacks.attack import Attack
from opnorm.attacks.checks import Bounds
from opnorm.attacks.parts import Best
from opnorm.attacks.repeats import Turn
from opnorm.attacks.stage import Problem, Stage, check_keys
from opnorm.linalg import BatchFunction

# Croce & Hein 2020, section 3: part of the steps that must improve, momentum.
_RHO = 0.75
_MOMENTUM = 0.75


@registry.register
def apgd(
    *,
    p: float,
    epsilon: float | jax.Array,
    num_steps: int = 100,
    num_restarts: int = 1,
    loss: str | losses.Loss = "cross_entropy",
    num_targets: int = 9,
    large_radius: bool = True,
    keep: str = "success",
    targeted: bool = False,
    bounds: Bounds = (0.0, 1.0),
) -> Attack:
    """Returns Auto-PGD: ascent with momentum whose step halves when it stops paying.

    The step starts at 2 epsilon. At checkpoints that come ever more often it is halved,
    and the search goes back to the best point so far, where fewer than three quarters
    of the steps raised the loss, or where neither step nor best loss has changed since
    the last checkpoint. For p = 1 the steps are sparse, on the largest entries of the
    gradient, and projected exactly on ball and box; the search runs at three, two and
    one times epsilon. Every run starts at a random point of the sphere and costs
    ``num_steps + 1`` forward and backward passes (three more for p = 1).

    Follows the published code where it differs from the paper (at most instead of fewer
    than three quarters; no halving for want of change at the first checkpoint;
    checkpoints at whole numbers of steps), but counts the first step by its own start,
    and leaves out gradient entries that point out of the box at a face: a sparse step
    would spend its length, and a normalised one a part of it, where the box takes it
    away.

    Args:
      p: exponent of the norm: 1, 2 or inf.
      epsilon: budget in pixel units, at least 0; scalar or ``(B,)``, may be traced.
      num_steps: steps of each run, at least 1.
      num_restarts: runs for each target, at least 1.
      loss: "cross_entropy", "margin", "dlr", "dlr_targeted" (a run for each of the
        classes with the largest clean logits, but the label), or a function ``(logits
        (B, K), labels (B,)) -> (B,)`` to maximise.
      num_targets: how many classes "dlr_targeted" steers to, at least 1; of K classes
        at most K - 1.
      large_radius: for p = 1, whether to begin at three times epsilon.
      keep: "success": the first misclassified point, x being the first that is looked
        at, or else the one of highest loss; "loss": the one of highest loss.
      targeted: descend the loss towards the labels, and stop there.
      bounds: box (low, high), for all entries or for each, or None.

    Raises:
      ValueError: for an option out of range; when applied, as :class:`Attack`.

    Source: Croce & Hein 2020, Algorithm 1; Croce & Hein 2021, Algorithm 1, for p = 1.

    Example:
      A linear network gives the larger coordinate; the attack exchanges the
      two.

      >>> import jax
      >>> import jax.numpy as jnp
      >>> from opnorm import attacks
      >>> x, labels = jnp.array([[0.4, 0.6]]), jnp.array([1])
      >>> key = jax.random.key(0)
      >>> attack = attacks.apgd(p=2, epsilon=0.3, num_steps=5)
      >>> found = attack.run(lambda x: x, x, labels, key)
      >>> found.success
      Array([ True], dtype=bool)
      >>> round(float(found.distance[0]), 3)
      0.3
    """
    p = checks.check_norm(p, (1.0, 2.0, math.inf))
    linalg.check_length("epsilon", epsilon)
    for name, value in (
        ("num_steps", num_steps),
        ("num_restarts", num_restarts),
        ("num_targets", num_targets),
    ):
        linalg.check_count(name, value, 1)
    bounds = checks.check_bounds(bounds)
    named = (*losses.NAMED, "dlr_targeted")
    if isinstance(loss, str) and loss not in named:
        raise ValueError(f"loss is {loss!r}; it may be {', '.join(named)}.")
    if keep not in ("success", "loss"):
        raise ValueError(f"keep is {keep!r}; it may be 'success' or 'loss'.")
    if targeted and loss == "dlr_targeted":
        raise ValueError(
            "targeted is True; loss 'dlr_targeted' leaves the labels, and needs False."
        )
    options = _Options(
        p=p,
        radius=lax.stop_gradient(epsilon),
        loss=losses.NAMED.get(loss, loss) if isinstance(loss, str) else loss,
        targeted=targeted,
        large_radius=large_radius,
        bounds=bounds,
        plan=_plan(p, num_steps, large_radius),
    )
    search = repeats.Search(
        len(options.plan.window),
        functools.partial(_init, options),
        functools.partial(_step, options),
    )
    steps = repeats.repeat(
        search,
        bounds,
        num_restarts=num_restarts,
        num_targets=num_targets if loss == "dlr_targeted" else None,
        keep="success" if keep == "success" else "value",
    )
    stage = Stage(
        f"apgd_{loss if isinstance(loss, str) else 'custom'}",
        *steps,
        bounds=bounds,
        epsilon=options.radius,
        targeted=targeted,
        check=check_keys,
        takes_start=True,
        any_labels=keep == "loss" and not isinstance(loss, str),
    )
    return Attack(name=stage.name, p=p, stages=(stage,), judges_input=keep == "success")


class _Plan(NamedTuple):
    """The evaluations of a run, by their numbers.

    Attributes:
      opens: bool, whether the evaluation begins a run, or a radius.
      factor: float32, the radius over epsilon.
      window: int32, how many steps a checkpoint after it looks back on, or 0.
    """

    opens: np.ndarray
    factor: np.ndarray
    window: np.ndarray


class _Options(NamedTuple):
    """The options of :func:`apgd`; ``loss`` is a function, or "dlr_targeted"."""

    p: float
    radius: float | jax.Array
    loss: str | losses.Loss
    targeted: bool
    large_radius: bool
    bounds: Bounds
    plan: _Plan


class _Momentum(NamedTuple):
    """The pace of a run for p = 2 and inf, one row for each example.

    Attributes:
      before: the perturbation before the last step.
      last_loss: the loss of the last evaluation.
      rises: how many steps since the last checkpoint have raised the loss.
      checked_loss: the best loss at the last checkpoint.
      halved: whether the step was halved at the last checkpoint.
    """

    before: jax.Array
    last_loss: jax.Array
    rises: jax.Array
    checked_loss: jax.Array
    halved: jax.Array


class _Sparsity(NamedTuple):
    """The pace of a run for p = 1, one row for each example.

    Attributes:
      density: share of the entries that a step changes.
      support: number of entries of the best perturbation at the last checkpoint.
    """

    density: jax.Array
    support: jax.Array


class _Peak(NamedTuple):
    """The best perturbation of a run at the present radius."""

    delta: jax.Array
    gradient: jax.Array
    loss: jax.Array


class _State(NamedTuple):
    """A run: the perturbation to move from, its gradient, and the best one."""

    delta: jax.Array
    gradient: jax.Array
    peak: _Peak
    step_size: jax.Array
    pace: _Momentum | _Sparsity


def _init(options: _Options, f: BatchFunction, problem: Problem) -> _State:
    del f
    labels, wide = problem.labels, parts.wide(problem.x)
    nothing = jnp.zeros_like(problem.x)
    lowest = jnp.full_like(labels, -jnp.inf, dtype=wide)
    zero, false = jnp.zeros_like(labels, wide), jnp.zeros_like(labels, bool)
    pace: _Momentum | _Sparsity
    if options.p == 1:
        pace = _Sparsity(density=zero, support=zero)
    else:
        pace = _Momentum(
            before=nothing,
            last_loss=lowest,
            rises=jnp.zeros_like(labels, jnp.int32),
            checked_loss=lowest,
            halved=false,
        )
    return _State(nothing, nothing, _Peak(nothing, nothing, lowest), zero, pace)


def _step(
    options: _Options,
    f: BatchFunction,
    problem: Problem,
    state: _State,
    turn: Turn,
) -> tuple[_State, Best, jax.Array]:
    x, k, plan = problem.x, turn.step, options.plan
    factor = jnp.asarray(plan.factor)[k]
    final = jnp.asarray(plan.factor == 1)[k]
    reach = jnp.asarray(meshes.constant(options.radius), state.peak.loss.dtype)
    reach = jnp.broadcast_to(reach, problem.labels.shape) * factor
    first, opens = k == 0, jnp.asarray(plan.opens)[k]

    if isinstance(state.pace, _Sparsity):
        moved = _sparse_step(options, x, state, state.pace, reach)
        again = parts.confine(x, state.peak.delta, 1.0, reach, options.bounds)
        moved = jnp.where(opens, again, moved)
    else:
        moved = _momentum_step(options, x, state, state.pace, reach, k == 1)
    fresh = functools.partial(_start, options, problem, turn.run, reach)
    delta = lax.cond(first, fresh, lambda: moved).astype(x.dtype)

    # Clipped as in the end: the sum may round to the outside of the box.
    point = parts.clip(x + delta, options.bounds)
    loss, logits, gradient = parts.value_and_gradient(
        f, lambda z: _objective(options, z, problem.labels, turn.target), point
    )
    gradient = box.unblocked(point, gradient, options.bounds)
    loss = loss.astype(state.peak.loss.dtype)
    hit = parts.decided(logits, problem.labels, options.targeted) & final
    better = opens | (loss > state.peak.loss)
    peak = parts.select(better, _Peak(delta, gradient, loss), state.peak)
    new = state._replace(delta=delta, gradient=gradient, peak=peak)
    window = jnp.asarray(plan.window)[k]
    if isinstance(state.pace, _Sparsity):
        # The support of a start means something only if the start was projected on a
        # wide ball, or chosen by the caller.
        dense = first & (not options.large_radius)
        if problem.start is not None:
            dense &= turn.run > 0
        new = _adapt_sparse(new, state.pace, opens, dense, window > 0, reach)
    else:
        before = jnp.where(opens, delta, state.delta)
        new = _adapt(new, state.pace, before, loss, opens, window, reach)
    return new, Best(delta, loss, hit), final


def _objective(
    options: _Options,
    logits: jax.Array,
    labels: jax.Array,
    target: jax.Array | None,
) -> jax.Array:
    """Computes the function to maximise, ``(B,)``."""
    if isinstance(options.loss, str):
        assert target is not None
        return losses.dlr_targeted(logits, labels, target)
    return (-1.0 if options.targeted else 1.0) * options.loss(logits, labels)


def _start(
    options: _Options, problem: Problem, run: jax.Array, radius: jax.Array
) -> jax.Array:
    """Returns the perturbation that a run begins at."""
    assert problem.keys is not None
    x, p, bounds = problem.x, options.p, options.bounds
    keys = parts.fold_in(problem.keys, run)
    sampler = jax.random.normal
    if p == math.inf:
        sampler = functools.partial(jax.random.uniform, minval=-1.0)
    noise = jax.vmap(lambda key: linalg.draw(sampler, key, x.shape[1:], x.dtype))(keys)
    noise = parts.free(noise, bounds)
    if p == 1:
        noise = parts.confine(x, noise, p, radius, bounds)
    else:
        noise = linalg.scale(noise, 1 / parts.positive(linalg.norm(noise, p)))
        noise = parts.confine(x, linalg.scale(noise, radius), p, radius, bounds)
    if problem.start is not None:
        given = parts.confine(x, problem.start - x, p, radius, bounds)
        noise = jnp.where(run == 0, given, noise)
    return noise


def _plan(p: float, num_steps: int, large_radius: bool) -> _Plan:
    """Returns what each evaluation of a run does."""
    phases = [(1.0, num_steps)]
    if p == 1 and large_radius:
        third = math.ceil(0.3 * num_steps)
        rest = num_steps - 2 * third
        phases = [(3.0, third), (2.0, third), (1.0, max(rest, 1))]
    opens, factor, window = [], [], []
    for scale, steps in phases:
        opens += [True] + [False] * steps
        factor += [scale] * (steps + 1)
        windows = [0] * (steps + 1)
        if p == 1:
            length = max(int(0.04 * steps), 1)
            for at in range(length, steps + 1, length):
                windows[at] = length
        else:
            for at, length in _checkpoints(steps):
                windows[at] = length
        window += windows
    return _Plan(
        np.array(opens), np.array(factor, np.float32), np.array(window, np.int32)
    )


def _checkpoints(num_steps: int) -> list[tuple[int, int]]:
    """Returns checkpoints and the steps between them: 22, 41, 57, ... of 100 steps."""
    length, least = max(int(0.22 * num_steps), 1), max(int(0.06 * num_steps), 1)
    shorter = max(int(0.03 * num_steps), 1)
    found, at = [], 0
    while at + length <= num_steps:
        at += length
        found.append((at, length))
        length = max(length - shorter, least)
    return found


def _momentum_step(
    options: _Options,
    x: jax.Array,
    state: _State,
    pace: _Momentum,
    radius: jax.Array,
    first: jax.Array,
) -> jax.Array:
    p, delta, bounds = options.p, state.delta, options.bounds
    direction = linalg.dual_map(state.gradient, linalg.conjugate_exponent(p))
    ahead = delta + linalg.scale(direction, state.step_size)
    ahead = parts.confine(x, ahead, p, radius, bounds)
    share = jnp.where(first, 1.0, _MOMENTUM).astype(x.dtype)
    moved = delta + share * (ahead - delta) + (1 - share) * (delta - pace.before)
    return parts.confine(x, moved, p, radius, bounds)


def _adapt(
    state: _State,
    pace: _Momentum,
    before: jax.Array,
    loss: jax.Array,
    opens: jax.Array,
    window: jax.Array,
    radius: jax.Array,
) -> _State:
    """Halves step sizes at a checkpoint and goes back to the best points.

    Args:
      state: after the evaluation.
      pace: before the evaluation.
      before: ``(B, ...)``, the perturbation that the next step takes as its last one.
      loss: ``(B,)``, of the evaluation.
      opens: whether the evaluation begins a run, a bool scalar.
      window: steps that a checkpoint here looks back on, an int32 scalar, or 0.
      radius: ``(B,)``, of the ball.
    """
    peak = state.peak
    rises = parts.count(pace.rises, loss > pace.last_loss)
    few = rises.astype(float) <= _RHO * window.astype(float)
    same = ~pace.halved & (peak.loss <= pace.checked_loss)
    check = window > 0
    halve = check & (few | same)
    delta, gradient = parts.select(
        halve, (peak.delta, peak.gradient), (state.delta, state.gradient)
    )
    size = jnp.where(halve, state.step_size / 2, state.step_size)
    return state._replace(
        delta=delta,
        gradient=gradient,
        step_size=jnp.where(opens, 2 * radius, size),
        pace=_Momentum(
            before=before,
            last_loss=loss,
            rises=jnp.where(opens | check, 0, rises),
            checked_loss=jnp.where(opens | check, peak.loss, pace.checked_loss),
            halved=jnp.where(check, halve, pace.halved) | opens,
        ),
    )


def _sparse_step(
    options: _Options,
    x: jax.Array,
    state: _State,
    pace: _Sparsity,
    radius: jax.Array,
) -> jax.Array:
    gradient = state.gradient.reshape(len(x), -1)
    size = gradient.shape[1]
    modulus = jnp.abs(gradient)
    rank = jnp.clip(((1 - pace.density) * size).astype(jnp.int32), 0, size - 1)
    threshold = jnp.take_along_axis(jnp.sort(modulus, axis=1), rank[:, None], axis=1)
    kept = jnp.where(modulus >= threshold, jnp.sign(gradient), 0.0)
    count = jnp.sum(jnp.abs(kept), axis=1)
    direction = kept.reshape(x.shape)
    moved = linalg.scale(direction, state.step_size / parts.positive(count))
    return parts.confine(x, state.delta + moved, 1.0, radius, options.bounds)


def _adapt_sparse(
    state: _State,
    pace: _Sparsity,
    opens: jax.Array,
    dense: jax.Array,
    check: jax.Array,
    radius: jax.Array,
) -> _State:
    """Makes density and step size follow the support of the best point.

    Args:
      state: after the evaluation.
      pace: before the evaluation.
      opens: whether the evaluation begins a run or a radius, a bool scalar.
      dense: whether it is a start whose support means nothing, a bool scalar.
      check: whether there is a checkpoint, a bool scalar.
      radius: ``(B,)``, of the ball.
    """
    best = state.peak.delta.reshape(len(radius), -1)
    size = best.shape[1]
    support = jnp.sum(best != 0, axis=1).astype(radius.dtype)
    opening = jnp.where(dense, 0.2, support / size / 1.5)
    shrunk = support < 0.95 * pace.support
    back = check & shrunk & ~opens
    delta, gradient = parts.select(
        back,
        (state.peak.delta, state.peak.gradient),
        (state.delta, state.gradient),
    )
    step_size = jnp.where(shrunk, radius, state.step_size / 1.5)
    step_size = jnp.clip(step_size, radius / 10, radius)
    step_size = jnp.where(check, step_size, state.step_size)
    density = jnp.where(check, support / size / 1.5, pace.density)
    seen = jnp.where(check, support, pace.support)
    return state._replace(
        delta=delta,
        gradient=gradient,
        step_size=jnp.where(opens, radius, step_size),
        pace=_Sparsity(
            density=jnp.where(opens, opening, density),
            support=jnp.where(opens, jnp.where(dense, size, support), seen),
        ),
    )
