"""Theorem 1 of Roth et al. 2020: inside a ReLU cell PGA is the power method."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import attacks, linalg, operators

EXPONENTS = (1.0, 2.0, math.inf)
SIZES = (8, 12, 10, 4)


def _parameters() -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [
        (rng.normal(size=(n, m)) / math.sqrt(n), 0.3 * rng.normal(size=m))
        for n, m in itertools.pairwise(SIZES)
    ]


def _network(x: jax.Array) -> jax.Array:
    *hidden, (weight, bias) = _parameters()
    for inner, shift in hidden:
        x = jax.nn.relu(x @ inner + shift)
    return x @ weight + bias


def _cell_radius(x: np.ndarray, p: float) -> np.ndarray:
    """min_i |pre_i| / ||d pre_i / dx||_{p*} over all ReLU units, in numpy."""
    conjugate = {1.0: math.inf, 2.0: 2.0, math.inf: 1.0}[p]
    radii = []
    for row in x:
        value, jacobian, smallest = row, np.eye(len(row)), math.inf
        for weight, bias in _parameters()[:-1]:
            pre, rows = value @ weight + bias, weight.T @ jacobian
            lengths = np.linalg.norm(rows, conjugate, axis=1)
            # Rows that no active unit reaches are constant, and bound nothing.
            moving = lengths > 0
            smallest = min(smallest, (np.abs(pre)[moving] / lengths[moving]).min())
            on = pre > 0
            value, jacobian = pre * on, rows * on[:, None]
        radii.append(smallest)
    return np.array(radii)


@pytest.mark.parametrize("q", EXPONENTS)
@pytest.mark.parametrize("p", EXPONENTS)
def test_pga_iterates_are_power_method_iterates(p: float, q: float) -> None:
    rng = np.random.default_rng(1)
    clean = rng.normal(size=(3, SIZES[0]))
    radius = _cell_radius(clean, p) / 2
    v0 = rng.normal(size=clean.shape)
    v0 /= np.linalg.norm(v0, p, axis=1, keepdims=True)
    with jax.enable_x64(True):
        x, epsilon = jnp.asarray(clean), jnp.asarray(radius)

        def attacked(num_steps: int, start: jax.Array) -> jax.Array:
            attack = attacks.pga(
                p=p,
                epsilon=epsilon,
                num_steps=num_steps,
                step_size=math.inf,
                random_start=False,
                loss="logit_distance",
                q=q,
                bounds=None,
            )
            return attack(_network, x, jnp.zeros(3, int), start=start)

        def power(v: jax.Array) -> linalg.OperatorNorm:
            linear_map = operators.jacobian_map(_network, x)
            return linalg.operator_norm(linear_map, p=p, q=q, num_steps=1, init=v)

        start = point = x + epsilon[:, None] * v0
        one_attack_step = jax.jit(functools.partial(attacked, 1))
        one_power_step = jax.jit(power)
        v = jnp.asarray(v0)
        for _ in range(4):
            point, found = one_attack_step(point), one_power_step(v)
            v = found.right
            np.testing.assert_allclose((point - x) / epsilon[:, None], v, atol=1e-12)
            distance = attacks.logit_distance(_network(point), _network(x), q)
            np.testing.assert_allclose(distance, epsilon * found.value, rtol=1e-11)
        whole = jax.jit(functools.partial(attacked, 4))(start)
        np.testing.assert_allclose((whole - x) / epsilon[:, None], v, atol=1e-12)
