"""The cost of PGA beside forward passes and gradients."""

import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmark.setting import Found, Setting, subject
from experiments.common import timing
from opnorm import attacks, models

_Timed = Callable[[models.Network, jax.Array, jax.Array], Any]


def ratio_name(num_steps: int) -> str:
    """Returns the name of the ratio of an attack of so many steps."""
    return f"PGA-{num_steps} / {num_steps} x (forward + input gradient)"


def measure(setting: Setting) -> Found:
    """Times attacks of each number of steps, and the passes that they consist of."""
    given = subject(setting)
    named: dict[str, _Timed] = {"forward": _forward, "input gradient": _gradient}
    named |= {f"PGA-{k}": _pga(k) for k in setting.attack_steps}
    rounds = setting.take_turns(
        {name: setting.compiled(name, fun, *given) for name, fun in named.items()}
    )
    pairs = zip(rounds["forward"], rounds["input gradient"], strict=True)
    single = [forward + gradient for forward, gradient in pairs]
    ratios = {
        ratio_name(k): statistics.median(
            t / (k * s) for t, s in zip(rounds[f"PGA-{k}"], single, strict=True)
        )
        for k in setting.attack_steps
    }
    return Found(timing.medians(rounds), ratios)


def _forward(f: models.Network, x: jax.Array, y: jax.Array) -> Any:
    del y
    return f(x)


def _gradient(f: models.Network, x: jax.Array, y: jax.Array) -> Any:
    def total(x: jax.Array) -> jax.Array:
        return jnp.sum(attacks.cross_entropy(f(x), y))

    return jax.grad(total)(x)


def _pga(num_steps: int) -> _Timed:
    attack = attacks.pga(p=2.0, epsilon=0.5, num_steps=num_steps)

    def run(f: models.Network, x: jax.Array, y: jax.Array) -> Any:
        return attack(f, x, y, jax.random.key(1))

    return run
