"""The Jacobian's matrix, norms, triplets and gradients, against dense float64 ones."""

import functools
import itertools
import math

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import linalg, operators

INF = math.inf


def mlp(params, x):
    hidden = jax.nn.relu(x.reshape(len(x), -1) @ params["first"] + params["bias"])
    return hidden @ params["second"]


def mlp_params(n=12, hidden=16, d=4, dtype=jnp.float64):
    keys = jax.random.split(jax.random.key(0), 3)
    return {
        "first": jax.random.normal(keys[0], (n, hidden), dtype),
        "bias": 0.1 * jax.random.normal(keys[1], (hidden,), dtype),
        "second": jax.random.normal(keys[2], (hidden, d), dtype),
    }


class ConvNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), strides=2)(x))
        return nn.Dense(3)(nn.relu(nn.Conv(4, (3, 3))(x)).reshape(len(x), -1))


@functools.cache
def conv_network():
    module = ConvNet()
    x = jax.random.normal(jax.random.key(1), (8, 6, 6, 2))
    params = jax.jit(module.init)(jax.random.key(0), x)
    return functools.partial(module.apply, params), x


def exact(f, x):
    full = jax.jit(jax.vmap(jax.jacrev(lambda z: f(z[None])[0])))(x)
    return np.asarray(full).reshape(*full.shape[:2], -1)


def data(batch=6, n=12, dtype=jnp.float64):
    return jax.random.normal(jax.random.key(5), (batch, n), dtype)


def test_map_is_the_jacobian_and_its_transpose():
    f, x = conv_network()
    matrix = exact(f, x)
    linear_map = operators.jacobian_map(f, x)
    v = jax.random.normal(jax.random.key(2), x.shape)
    u = jax.random.normal(jax.random.key(3), (8, 3))
    flat, image = v.reshape(8, -1), jax.jit(linear_map.matvec)(v)
    np.testing.assert_allclose(image, np.einsum("bdn,bn->bd", matrix, flat), atol=1e-4)
    np.testing.assert_allclose(
        jax.jit(linear_map.rmatvec)(u).reshape(8, -1),
        np.einsum("bdn,bd->bn", matrix, u),
        atol=1e-4,
    )
    np.testing.assert_allclose(
        jax.jit(lambda v: operators.directional_derivative(f, x, v))(v),
        image,
        atol=1e-5,
    )


@pytest.mark.parametrize(("n", "d"), [(12, 4), (3, 9)])
def test_dense_jacobian_by_rows_and_by_columns(n, d):
    with jax.enable_x64(True):
        f = functools.partial(mlp, mlp_params(n=n, d=d))
        x = data(n=n)
        found = operators.dense_jacobian(f, x)
        np.testing.assert_allclose(found, exact(f, x), atol=1e-12)


def test_dense_jacobian_in_pieces_under_a_memory_limit():
    f, x = conv_network()
    one = 3 * 72 * 4
    pieces = list(operators.dense_jacobian_chunks(f, x, max_bytes=3 * one))
    assert [piece.stop - piece.start for piece, _ in pieces] == [3, 3, 2]
    assert all(matrix.nbytes <= 3 * one for _, matrix in pieces)
    whole = np.concatenate([matrix for _, matrix in pieces]).reshape(8, 3, -1)
    np.testing.assert_allclose(whole, exact(f, x), atol=1e-5)
    with pytest.raises(ValueError, match="max_bytes"):
        operators.dense_jacobian(f, x, max_bytes=one)
    with pytest.raises(ValueError, match="one example"):
        operators.dense_jacobian_chunks(f, x, max_bytes=one - 1)


@pytest.mark.parametrize("method", ("auto", "dense", "golub_kahan", "iterative"))
def test_every_method_finds_the_spectral_norm(method):
    with jax.enable_x64(True):
        f, x = functools.partial(mlp, mlp_params()), data()
        left, values, right = np.linalg.svd(exact(f, x), full_matrices=False)
        found = operators.jacobian_norm(
            f, x, method=method, num_steps=600, key=jax.random.key(0)
        )
        np.testing.assert_allclose(found.value, values[:, 0], rtol=1e-9)
        overlap = np.abs(np.einsum("bn,bn->b", found.right, right[:, 0]))
        np.testing.assert_allclose(overlap, 1, rtol=1e-6)
        overlap = np.abs(np.einsum("bd,bd->b", found.left, left[:, :, 0]))
        np.testing.assert_allclose(overlap, 1, rtol=1e-6)
        assert np.all(found.residual < 1e-6)


@pytest.mark.parametrize(("p", "q"), list(itertools.product((1.0, 2.0, INF), repeat=2)))
def test_dense_method_finds_every_norm_of_a_small_network(p, q):
    with jax.enable_x64(True):
        f, x = functools.partial(mlp, mlp_params(n=8)), data(n=8)
        found = operators.jacobian_norm(f, x, p=p, q=q)
        expected = linalg.matrix_norm(jnp.asarray(exact(f, x)), p, q)
        assert expected.exact
        np.testing.assert_allclose(found.value, expected.value, rtol=1e-9)
        np.testing.assert_allclose(linalg.norm(found.right, p), 1, rtol=1e-9)
        iterated = operators.jacobian_norm(
            f, x, p=p, q=q, method="iterative", key=jax.random.key(1), num_restarts=3
        )
        assert np.all(iterated.value <= found.value * (1 + 1e-9))


def test_auto_takes_the_way_with_fewer_passes():
    f, x = conv_network()
    assert operators.jacobian_norm(f, x).num_steps == 0
    few = operators.jacobian_norm(f, x, num_steps=1, key=jax.random.key(0))
    assert few.num_steps == 1


@pytest.mark.parametrize("method", ("dense", "golub_kahan", "iterative"))
@pytest.mark.parametrize("tolerance", (None, 1e-12))
def test_gradient_in_the_parameters_is_that_of_finite_differences(method, tolerance):
    if tolerance is not None and method != "iterative":
        tolerance = None
    with jax.enable_x64(True):
        x, params = data(batch=2), mlp_params()

        @jax.jit
        @jax.value_and_grad
        def sigma(params):
            return operators.jacobian_norm(
                lambda z: mlp(params, z),
                x,
                method=method,
                num_steps=500,
                tolerance=tolerance,
                key=jax.random.key(0),
            ).value.sum()

        _, gradient = sigma(params)
        step = jax.tree.map(
            lambda a: 1e-6 * jax.random.normal(jax.random.key(7), a.shape), params
        )
        ahead, behind = (
            sigma(jax.tree.map(lambda a, b, s=s: a + s * b, params, step))[0]
            for s in (1, -1)
        )
        expected = sum(
            jnp.vdot(a, b)
            for a, b in zip(
                jax.tree.leaves(gradient), jax.tree.leaves(step), strict=True
            )
        )
        np.testing.assert_allclose((ahead - behind) / 2, expected, rtol=1e-5)


@pytest.mark.parametrize(("p", "q"), [(2.0, 2.0), (INF, 2.0), (1.0, INF)])
@pytest.mark.parametrize("method", ("dense", "iterative"))
def test_a_dead_network_has_norm_zero_and_finite_gradients(p, q, method):
    x = jnp.ones((2, 5))

    def total(weight):
        def f(z):
            return jax.nn.relu(z @ weight - 100.0)

        found = operators.jacobian_norm(
            f, x, p=p, q=q, method=method, key=jax.random.key(0)
        )
        return found.value.sum(), found

    (value, found), gradient = jax.value_and_grad(total, has_aux=True)(jnp.ones((5, 3)))
    assert value == 0
    chex.assert_tree_all_finite((found, gradient))
    np.testing.assert_allclose(linalg.norm(found.right, p), 1, rtol=1e-5)


@pytest.mark.parametrize("method", ("dense", "golub_kahan"))
def test_singular_triplets(method):
    with jax.enable_x64(True):
        f, x = functools.partial(mlp, mlp_params(d=6)), data()
        found = operators.singular_triplets(f, x, 4, method=method, num_steps=6)
        left, values, right = np.linalg.svd(exact(f, x), full_matrices=False)
        np.testing.assert_allclose(found.values, values[:, :4], rtol=1e-9)
        assert found.right.shape == (6, 4, 12) and found.left.shape == (6, 4, 6)
        overlap = np.abs(np.einsum("bkn,bkn->bk", found.right, right[:, :4]))
        np.testing.assert_allclose(overlap, 1, rtol=1e-6)
        assert np.all(found.residual < 1e-9)


def test_it_works_under_pmap_sharded_jit_and_vmap():
    f, x = conv_network()
    devices = jax.device_count()
    for method in ("dense", "golub_kahan", "iterative"):

        def sigma(x, method=method):
            return operators.jacobian_norm(
                f, x, method=method, key=jax.random.key(0), num_steps=3
            ).value

        expected = jax.jit(sigma)(x) if method != "iterative" else None
        split = x.reshape(devices, -1, *x.shape[1:])
        parallel = jax.pmap(sigma)(split).reshape(-1)
        mesh = jax.make_mesh(
            (devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
        )
        sharding = jax.NamedSharding(mesh, jax.P("data"))
        sharded = jax.jit(sigma)(jax.device_put(x, sharding))
        mapped = jax.vmap(lambda z: sigma(z[None])[0])(x)
        assert np.all(np.isfinite(sharded))
        if method == "dense":
            # Exact, so independent of how the batch was cut.
            for found in (parallel, sharded, mapped):
                np.testing.assert_allclose(found, expected, rtol=1e-4)
        else:
            bound = np.linalg.norm(exact(f, x), 2, axis=(1, 2))
            for found in (parallel, sharded, mapped):
                assert np.all(found <= bound * (1 + 1e-5))


class TestVariants(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_jacobian_norm(self):
        f, x = conv_network()
        found = self.variant(lambda x: operators.jacobian_norm(f, x).value)(x)
        expected = np.linalg.norm(exact(f, x), 2, axis=(1, 2))
        np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "magic"}, "method is 'magic'.*golub_kahan"),
        ({"p": 0.0}, "p is 0"),
        ({"method": "golub_kahan", "p": 1.0}, "golub_kahan"),
        ({"method": "golub_kahan", "num_restarts": 2}, "num_restarts is 2"),
        ({"method": "dense", "tolerance": 0.1}, "tolerance"),
        ({"method": "iterative"}, "key is None"),
        ({"init": jnp.ones(3)}, "init has shape"),
        ({"num_steps": 2.5}, "num_steps"),
    ],
)
def test_bad_options_are_refused(options, message):
    f, x = conv_network()
    with pytest.raises(ValueError, match=message):
        operators.jacobian_norm(f, x, **options)


@pytest.mark.parametrize(
    "x", (jnp.ones((2, 3), jnp.int32), jnp.ones((0, 3)), jnp.ones(3))
)
def test_bad_inputs_are_refused(x):
    with pytest.raises(ValueError, match="x has"):
        operators.jacobian_norm(lambda z: z, x)


def test_functions_that_break_the_contract_are_refused():
    with pytest.raises(ValueError, match="f returns"):
        operators.jacobian_norm(jnp.sum, jnp.ones((2, 3)))


@pytest.mark.parametrize(
    "options",
    (
        {"method": "dense"},
        {"method": "dense", "p": INF},
        {"method": "golub_kahan", "num_steps": 3},
        {"method": "iterative", "num_steps": 100, "num_restarts": 2},
        {"method": "iterative", "num_steps": 100, "tolerance": 1e-6},
    ),
    ids=str,
)
def test_norms_and_their_gradients_under_shard_map(options):
    def total(weight, x):
        found = operators.jacobian_norm(
            lambda z: jnp.tanh(z @ weight), x, key=jax.random.key(0), **options
        )
        return found.value.sum(), found.value

    x, weight = data(16, 7, jnp.float32), data(7, 3, jnp.float32)
    gradient, values = jax.grad(total, has_aux=True)(weight, x)
    mesh = jax.make_mesh(
        (jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
    )
    rows = jax.P("data")
    sharded = jax.shard_map(
        jax.grad(total, has_aux=True),
        mesh=mesh,
        in_specs=(jax.P(), rows),
        out_specs=(jax.P(), rows),
    )
    found_gradient, found = jax.jit(sharded)(weight, x)
    np.testing.assert_allclose(found, values, rtol=1e-3)
    np.testing.assert_allclose(found_gradient, gradient, rtol=1e-2, atol=1e-2)


def test_dense_iteration_is_no_worse_than_its_start():
    f, x = functools.partial(mlp, mlp_params(n=30, dtype=jnp.float32)), data(n=30)
    options = {"p": INF, "method": "dense"}
    best = operators.jacobian_norm(f, x, num_restarts=200, num_steps=50, **options)
    again = operators.jacobian_norm(f, x, num_steps=0, init=best.right, **options)
    np.testing.assert_allclose(again.value, best.value, rtol=1e-5)


@pytest.mark.parametrize("method", ("dense", "golub_kahan", "iterative"))
def test_nan_in_one_example_stays_there(method):
    f, x = functools.partial(mlp, mlp_params(dtype=jnp.float32)), data()

    def spoilt(z):
        return f(z) * jnp.where(jnp.arange(len(z)) == 1, jnp.nan, 1.0)[:, None]

    found, clean = (
        operators.jacobian_norm(g, x, method=method, num_steps=4, key=jax.random.key(0))
        for g in (spoilt, f)
    )
    others = np.arange(len(x)) != 1
    assert np.isnan(found.value[1])
    np.testing.assert_allclose(found.value[others], clean.value[others], rtol=1e-4)
    np.testing.assert_allclose(linalg.norm(found.right, 2.0), 1, rtol=1e-4)


def test_no_steps_are_allowed_whatever_the_outputs():
    f, x = functools.partial(mlp, mlp_params(d=20, dtype=jnp.float32)), data()
    found = operators.jacobian_norm(f, x, num_steps=0, init=x)
    moved = operators.directional_derivative(f, x, x)
    expected = linalg.norm(moved, 2.0) / linalg.norm(x, 2.0)
    np.testing.assert_allclose(found.value, expected, rtol=1e-5)


def test_auto_counts_forward_passes_when_inputs_are_few():
    params = mlp_params(n=3, d=40, dtype=jnp.float32)
    f, x = functools.partial(mlp, params), data(n=3, dtype=jnp.float32)
    found = operators.jacobian_norm(f, x)
    assert found.num_steps == 0
    np.testing.assert_allclose(
        found.value, np.linalg.norm(exact(f, x), 2, axis=(1, 2)), rtol=1e-4
    )
