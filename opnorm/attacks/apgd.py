"""attacks: Auto-PGD, projected gradient ascent that chooses its own step sizes."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from opnorm import linalg
from opnorm.attacks import attack as attack_lib
from opnorm.attacks import box, checks, losses, meshes
from opnorm.attacks.attack import Attack, BatchFunction, Problem, Stage, like
from opnorm.attacks.checks import Bounds

# Croce & Hein 2020, section 3: part of the steps that must improve, momentum.
_RHO = 0.75
_MOMENTUM = 0.75


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
      bounds: box (low, high), or None.

    Raises:
      ValueError: for an option out of range; when applied, as :class:`Attack`.

    Source: Croce & Hein 2020, Algorithm 1; Croce & Hein 2021, Algorithm 1, for p = 1.
    """
    p = checks.check_norm(p, (1.0, 2.0, math.inf))
    linalg.check_length("epsilon", epsilon)
    for name, value in (
        ("num_steps", num_steps),
        ("num_restarts", num_restarts),
        ("num_targets", num_targets),
    ):
        linalg.check_count(name, value, 1)
    checks.check_bounds(bounds)
    named = (*losses.NAMED, "dlr_targeted")
    if isinstance(loss, str) and loss not in named:
        raise ValueError(f"loss is {loss!r}; it may be {', '.join(named)}.")
    if keep not in ("success", "loss"):
        raise ValueError(f"keep is {keep!r}; it may be 'success' or 'loss'.")
    if targeted and loss == "dlr_targeted":
        raise ValueError(
            "targeted is True; loss 'dlr_targeted' leaves the labels, and needs False."
        )
    targets = num_targets if loss == "dlr_targeted" else 1
    plan = _plan(p, num_steps, large_radius)
    period = len(plan["window"])
    radius = lax.stop_gradient(epsilon)

    def objective(
        logits: jax.Array, problem: Problem, state: dict[str, jax.Array], run: jax.Array
    ) -> jax.Array:
        if loss == "dlr_targeted":
            at = jnp.minimum(run // num_restarts, state["targets"].shape[1] - 1)
            target = lax.dynamic_index_in_dim(state["targets"], at, 1, keepdims=False)
            return losses.dlr_targeted(logits, problem.labels, target)
        chosen = losses.NAMED[loss] if isinstance(loss, str) else loss
        return (-1.0 if targeted else 1.0) * chosen(logits, problem.labels)

    def init(f: BatchFunction, problem: Problem) -> dict[str, jax.Array]:
        x, labels = problem.x, problem.labels
        wide = jnp.promote_types(x.dtype, jnp.float32)
        nothing = jnp.zeros_like(x)
        lowest = jnp.full_like(labels, -jnp.inf, dtype=wide)
        zero, false = jnp.zeros_like(labels, wide), jnp.zeros_like(labels, bool)
        state = {
            "delta": nothing,
            "gradient": nothing,
            "run_best": nothing,
            "run_gradient": nothing,
            "run_loss": lowest,
            "best": nothing,
            "loss": lowest,
            "step_size": zero,
            "done": false,
        }
        if p == 1:
            state |= {"density": zero, "support": zero}
        else:
            state |= {
                "before": nothing,
                "last_loss": lowest,
                "rises": jnp.zeros_like(labels, jnp.int32),
                "checked_loss": lowest,
                "halved": false,
            }
        if loss == "dlr_targeted":
            chosen = attack_lib.other_classes(f(x), labels, num_targets)
            state["targets"], state["num_targets"] = chosen
        return state

    def start(problem: Problem, run: jax.Array, radius: Any) -> jax.Array:
        assert problem.keys is not None
        x = problem.x
        keys = attack_lib.fold_in(problem.keys, run)
        if p == math.inf:
            draw = functools.partial(
                jax.random.uniform, shape=x.shape[1:], dtype=x.dtype, minval=-1.0
            )
        else:
            draw = functools.partial(
                jax.random.normal, shape=x.shape[1:], dtype=x.dtype
            )
        noise = jax.vmap(draw)(keys)
        if p == 1:
            noise = attack_lib.confine(x, noise, p, radius, bounds)
        else:
            noise = linalg.scale(noise, 1 / _positive(linalg.norm(noise, p)))
            noise = attack_lib.confine(
                x, linalg.scale(noise, radius), p, radius, bounds
            )
        if problem.start is not None:
            given = attack_lib.confine(x, problem.start - x, p, radius, bounds)
            noise = jnp.where(run == 0, given, noise)
        return noise

    def step(
        f: BatchFunction, problem: Problem, state: dict[str, jax.Array], i: jax.Array
    ) -> dict[str, jax.Array]:
        x, k, run = problem.x, i % period, i // period
        reach = jnp.asarray(meshes.constant(radius), state["loss"].dtype)
        reach = jnp.broadcast_to(reach, problem.labels.shape)
        final = jnp.asarray(plan["factor"] == 1)[k]
        within = reach * jnp.asarray(plan["factor"])[k]
        first, opens = k == 0, jnp.asarray(plan["opens"])[k]

        if p == 1:
            moved = _sparse_step(x, state, within, bounds)
            again = attack_lib.confine(x, state["run_best"], p, within, bounds)
            moved = jnp.where(opens, again, moved)
        else:
            moved = _momentum_step(x, state, p, within, bounds, k == 1)
        fresh = functools.partial(start, problem, run, within)
        delta = lax.cond(first, fresh, lambda: moved).astype(x.dtype)

        # Clipped as in the end: the sum may round to the outside of the box.
        point = attack_lib.clip(x + delta, bounds)
        value, logits, gradient = attack_lib.value_and_gradient(
            f, lambda z: objective(z, problem, state, run), point
        )
        gradient = box.unblocked(point, gradient, bounds)
        value = value.astype(state["loss"].dtype)
        hit = attack_lib.decided(logits, problem.labels, targeted) & final
        new = dict(state)
        better = opens | (value > state["run_loss"])
        for name, fresh_value in (
            ("run_best", delta),
            ("run_gradient", gradient),
            ("run_loss", value),
        ):
            new[name] = jnp.where(like(better, fresh_value), fresh_value, state[name])
        wins = final & (value > state["loss"])
        if keep == "success":
            wins |= hit
        new["best"] = jnp.where(like(wins, delta), delta, state["best"])
        new["loss"] = jnp.where(wins, value, state["loss"])
        new |= {"delta": delta, "gradient": gradient}
        if p == 1:
            # Only projected on a wide ball, or chosen, does a start have a support that
            # means something.
            dense = first & (not large_radius)
            if problem.start is not None:
                dense &= run > 0
            _adapt_sparse(new, opens, dense, jnp.asarray(plan["check"])[k], within)
        else:
            new["before"] = jnp.where(opens, delta, state["delta"])
            window = jnp.asarray(plan["window"])[k]
            _adapt(new, state, value, opens, window, within)
        runs = num_restarts * state.get("num_targets", 1)
        if keep == "success":
            new["done"] = hit
        new["done"] |= i + 1 >= runs * period
        return new

    stage = Stage(
        name=f"apgd_{loss if isinstance(loss, str) else 'custom'}",
        num_steps=targets * num_restarts * period,
        bounds=bounds,
        epsilon=radius,
        init=init,
        step=step,
        finish=lambda problem, state: attack_lib.clip(
            problem.x + state["best"], bounds
        ),
        done=lambda state: state["done"],
        targeted=targeted,
        check=attack_lib.check_keys,
        takes_start=True,
        any_labels=keep == "loss" and not isinstance(loss, str),
    )
    return Attack(name=stage.name, p=p, stages=(stage,), judges_input=keep == "success")


def _plan(p: float, num_steps: int, large_radius: bool) -> dict[str, np.ndarray]:
    """What each evaluation of a run is, by its number.

    "opens": it begins a run, or a radius; "factor": the radius over epsilon; "window":
    how many steps a checkpoint after it looks back on, or 0; "check": the same as a
    bool.
    """
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
    return {
        "opens": np.array(opens),
        "factor": np.array(factor, np.float32),
        "window": np.array(window, np.int32),
        "check": np.array(window, np.int32) > 0,
    }


def _checkpoints(num_steps: int) -> list[tuple[int, int]]:
    """Checkpoints and the steps between them: 22, 41, 57, ... of 100 steps."""
    length, least = max(int(0.22 * num_steps), 1), max(int(0.06 * num_steps), 1)
    shorter = max(int(0.03 * num_steps), 1)
    found, at = [], 0
    while at + length <= num_steps:
        at += length
        found.append((at, length))
        length = max(length - shorter, least)
    return found


def _momentum_step(
    x: jax.Array,
    state: dict[str, jax.Array],
    p: float,
    radius: jax.Array,
    bounds: Bounds,
    first: jax.Array,
) -> jax.Array:
    delta = state["delta"]
    direction = linalg.dual_map(state["gradient"], linalg.conjugate_exponent(p))
    ahead = delta + linalg.scale(direction, state["step_size"])
    ahead = attack_lib.confine(x, ahead, p, radius, bounds)
    share = jnp.where(first, 1.0, _MOMENTUM).astype(x.dtype)
    moved = delta + share * (ahead - delta) + (1 - share) * (delta - state["before"])
    return attack_lib.confine(x, moved, p, radius, bounds)


def _adapt(
    new: dict[str, jax.Array],
    state: dict[str, jax.Array],
    value: jax.Array,
    opens: jax.Array,
    window: jax.Array,
    radius: jax.Array,
) -> None:
    """Halves step sizes at a checkpoint and goes back to the best points."""
    rises = state["rises"] + (value > state["last_loss"])
    few = rises <= _RHO * window
    same = ~state["halved"] & (new["run_loss"] <= state["checked_loss"])
    check = window > 0
    halve = check & (few | same)
    new["delta"] = jnp.where(like(halve, new["delta"]), new["run_best"], new["delta"])
    new["gradient"] = jnp.where(
        like(halve, new["gradient"]), new["run_gradient"], new["gradient"]
    )
    size = jnp.where(halve, state["step_size"] / 2, state["step_size"])
    new["step_size"] = jnp.where(opens, 2 * radius, size)
    new["rises"] = jnp.where(opens | check, 0, rises)
    new["halved"] = jnp.where(check, halve, state["halved"]) | opens
    new["checked_loss"] = jnp.where(
        opens | check, new["run_loss"], state["checked_loss"]
    )
    new["last_loss"] = value


def _sparse_step(
    x: jax.Array, state: dict[str, jax.Array], radius: jax.Array, bounds: Bounds
) -> jax.Array:
    gradient = state["gradient"].reshape(len(x), -1)
    size = gradient.shape[1]
    modulus = jnp.abs(gradient)
    rank = jnp.clip(((1 - state["density"]) * size).astype(jnp.int32), 0, size - 1)
    threshold = jnp.take_along_axis(jnp.sort(modulus, axis=1), rank[:, None], axis=1)
    kept = jnp.where(modulus >= threshold, jnp.sign(gradient), 0.0)
    count = jnp.sum(jnp.abs(kept), axis=1)
    direction = kept.reshape(x.shape)
    moved = linalg.scale(direction, state["step_size"] / _positive(count))
    return attack_lib.confine(x, state["delta"] + moved, 1.0, radius, bounds)


def _adapt_sparse(
    new: dict[str, jax.Array],
    opens: jax.Array,
    dense: jax.Array,
    check: jax.Array,
    radius: jax.Array,
) -> None:
    """Follows the support of the best point with density and step size."""
    best = new["run_best"].reshape(len(radius), -1)
    size = best.shape[1]
    support = jnp.sum(best != 0, axis=1).astype(radius.dtype)
    opening = jnp.where(dense, 0.2, support / size / 1.5)
    shrunk = support < 0.95 * new["support"]
    back = check & shrunk & ~opens
    new["delta"] = jnp.where(like(back, new["delta"]), new["run_best"], new["delta"])
    new["gradient"] = jnp.where(
        like(back, new["gradient"]), new["run_gradient"], new["gradient"]
    )
    step_size = jnp.where(shrunk, radius, new["step_size"] / 1.5)
    step_size = jnp.clip(step_size, radius / 10, radius)
    step_size = jnp.where(check, step_size, new["step_size"])
    new["step_size"] = jnp.where(opens, radius, step_size)
    density = jnp.where(check, support / size / 1.5, new["density"])
    new["density"] = jnp.where(opens, opening, density)
    seen = jnp.where(check, support, new["support"])
    new["support"] = jnp.where(opens, jnp.where(dense, size, support), seen)


def _positive(value: jax.Array) -> jax.Array:
    return jnp.where(value > 0, value, 1.0)
