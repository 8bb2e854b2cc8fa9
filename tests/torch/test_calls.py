"""The primitive of calls on the host, with NumPy in the place of PyTorch."""

import functools
import os
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm.torch import calls

WEIGHTS = ((1.0, -2.0, 0.5), (0.25, 1.0, 3.0))


class Sines(NamedTuple):
    """``f(x) = sin(x) W^T`` and its derivatives in closed form."""

    weights: tuple[tuple[float, ...], ...] = WEIGHTS

    def compute(self, kind, x, *args):
        w = np.asarray(self.weights, x.dtype)
        return {
            "apply": lambda: np.sin(x) @ w.T,
            "push": lambda v: (np.cos(x) * v) @ w.T,
            "pull": lambda u: np.cos(x) * (u @ w),
            "curve": lambda u, v: -np.sin(x) * (u @ w) * v,
            "bend": lambda v, w2: -(np.sin(x) * v * w2) @ w.T,
        }[kind](*args)


def through_host(x):
    return calls.call(x, host=Sines(), kind="apply", row_shape=(2,))


def in_jax(x):
    return jnp.sin(x) @ jnp.asarray(WEIGHTS, x.dtype).T


def derivatives(f, x, v, u):
    """Every rule of the primitive: derivatives, transposes and batches of each kind."""
    out, push = jax.linearize(f, x)
    pull = jax.vjp(f, x)[1]
    gradient = jax.grad(lambda z: jnp.sum(f(z) ** 2))

    def pushed(z):
        return jax.jvp(f, (z,), (v,))[1]

    def pulled(z, c):
        return jax.vjp(f, z)[1](c)[0]

    return {
        "value": out,
        "push": push(v),
        "pull": pull(u)[0],
        "transposed twice": jax.linear_transpose(lambda c: pull(c)[0], u)(v),
        "jacobian": jax.vmap(pull)(jnp.stack([u, 2 * u, u + 1]))[0],
        "mapped points": jax.vmap(f, in_axes=1)(jnp.stack([x, 2 * x], axis=1)),
        "hessian": jax.jvp(gradient, (x,), (v,))[1],
        "hessian reverse": jax.vjp(gradient, x)[1](v)[0],
        "bend": jax.jvp(pushed, (x,), (2 * v,))[1],
        "bend reverse": jax.vjp(pushed, x)[1](u)[0],
        "along the other": jax.grad(
            lambda c: jnp.vdot(jax.jvp(lambda z: pulled(z, c), (x,), (v,))[1], v)
        )(u),
    }


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_rule_agrees_with_jax(dtype):
    rng = np.random.default_rng(0)
    x, v, u = (rng.normal(size=(5, n)).astype(dtype) for n in (3, 3, 2))
    with jax.enable_x64(dtype == np.float64):
        found, expected = (
            jax.jit(functools.partial(derivatives, f))(x, v, u)
            for f in (through_host, in_jax)
        )
    # Under enable_x64 as a context the numbers keep all of their digits.
    tolerance = 1e-5 if dtype == np.float32 else 1e-13
    chex.assert_trees_all_equal_dtypes(found, expected)
    chex.assert_trees_all_close(found, expected, rtol=tolerance, atol=tolerance)


def test_third_derivatives_are_refused():
    third = jax.jacfwd(jax.jacfwd(jax.jacfwd(through_host)))
    with pytest.raises(ValueError, match="third derivative of a PyTorch module"):
        third(np.ones((1, 3), np.float32))


def test_a_batch_that_is_spread_over_devices_gives_the_same():
    x = np.random.default_rng(1).normal(size=(8, 3)).astype(np.float32)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.P("data")

    def gradient(z):
        return jax.grad(lambda y: jnp.sum(through_host(y) ** 2))(z)

    both = jax.shard_map(gradient, mesh=mesh, in_specs=rows, out_specs=rows)
    expected = jax.grad(lambda y: jnp.sum(in_jax(y) ** 2))(x)
    placed = jax.device_put(x, jax.NamedSharding(mesh, rows))
    for compute in (gradient, both):
        np.testing.assert_allclose(jax.jit(compute)(placed), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("cores", "given", "expected"),
    [(1, None, "2"), (1, "4", "4"), (2, None, None)],
)
def test_callbacks_have_a_second_thread_on_one_core(
    monkeypatch, cores, given, expected
):
    monkeypatch.setattr(
        os, "sched_getaffinity", lambda pid: range(cores), raising=False
    )
    monkeypatch.setenv("PJRT_NPROC", given or "")
    if given is None:
        monkeypatch.delenv("PJRT_NPROC")
    calls.give_callbacks_a_thread()
    assert os.environ.get("PJRT_NPROC") == expected
