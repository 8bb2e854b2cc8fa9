"""The cost of power iteration beside linear passes and the exact norm."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from experiments.benchmark.setting import Found, Setting, subject
from experiments.common import timing
from opnorm import models, operators

_STEPS = 10


def measure(setting: Setting) -> Found:
    """Times power iteration, the passes that it consists of, and the dense norm."""
    network, x, _ = subject(setting)
    start = jax.random.normal(jax.random.key(2), x.shape)
    rows = jax.random.normal(jax.random.key(3), (_STEPS, len(x), 10))
    tangents = jax.random.normal(jax.random.key(4), (_STEPS, *x.shape))

    # Value and direction, which a penalty uses; the residual would be a pass more.
    def power(f: models.Network) -> Any:
        return operators.jacobian_norm(
            f, x, method="iterative", num_steps=_STEPS, init=start
        )[:2]

    def passes(f: models.Network) -> Any:
        _, push = jax.linearize(f, x)
        pull = jax.linear_transpose(push, x)
        forward = [push(tangent) for tangent in tangents]
        backward = [pull(row)[0] for row in rows]
        return sum(forward[1:], forward[0]), sum(backward[1:], backward[0])

    def naive(f: models.Network) -> Any:
        def body(_: Any, v: jax.Array) -> Any:
            _, u = jax.jvp(f, (x,), (v,))
            u = u / jnp.linalg.norm(u, axis=-1, keepdims=True)
            _, pull = jax.vjp(f, x)
            v = pull(u)[0]
            length = jnp.linalg.norm(v.reshape(len(v), -1), axis=-1)
            return v / length[:, None, None, None]

        return lax.fori_loop(0, _STEPS, body, start)

    def dense(f: models.Network) -> Any:
        return operators.jacobian_norm(f, x, method="dense")

    iterative = f"{_STEPS} power steps"
    linear = f"{2 * _STEPS} linear passes"
    named = {
        iterative: power,
        linear: passes,
        "naive power loop": naive,
        "exact dense sigma": dense,
    }
    rounds = setting.take_turns(
        {name: setting.compiled(name, fun, network) for name, fun in named.items()}
    )
    ratios = timing.ratios(
        rounds,
        (iterative, linear),
        ("naive power loop", iterative),
        ("exact dense sigma", iterative),
    )
    return Found(timing.medians(rounds), ratios)
