"""Norms, triplets and gradients of Jacobians, against dense matrices in float64."""

import functools
import itertools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import operators
from tests.support.jacobians import conv_network, data, mlp, mlp_matrices, mlp_params
from tests.support.matrices import exact_norm

INF = math.inf


METHODS = {
    "dense": {"method": "dense"},
    "golub_kahan": {"method": "golub_kahan", "num_steps": 600},
    "iterative": {"method": "iterative", "num_steps": 600},
    "tolerance": {"method": "iterative", "num_steps": 600, "tolerance": 1e-12},
}


@functools.cache
def norms_and_gradients(name):
    """One program for each method, with gradients in the parameters and results."""

    def total(params, x, factors):
        found = operators.jacobian_norm(
            lambda z: mlp(params, z) * factors[:, None],
            x,
            key=jax.random.key(0),
            **METHODS[name],
        )
        return found.value.sum(), found

    return jax.jit(jax.grad(total, has_aux=True))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_finds_the_spectral_norm_and_its_gradient(name):
    with jax.enable_x64(True):
        params, x = mlp_params(), data()
        left, values, right = np.linalg.svd(
            mlp_matrices(params, x), full_matrices=False
        )
        gradient, found = norms_and_gradients(name)(params, x, jnp.ones(6))
        np.testing.assert_allclose(found.value, values[:, 0], rtol=1e-9)
        overlap = np.abs(np.einsum("bn,bn->b", found.right, right[:, 0]))
        np.testing.assert_allclose(overlap, 1, rtol=1e-6)
        overlap = np.abs(np.einsum("bd,bd->b", found.left, left[:, :, 0]))
        np.testing.assert_allclose(overlap, 1, rtol=1e-6)
        assert np.all(found.residual < 1e-6)

        rng = np.random.default_rng(7)
        step = {name: 1e-6 * rng.normal(size=a.shape) for name, a in params.items()}
        ahead, behind = (
            np.linalg.norm(
                mlp_matrices({k: params[k] + s * step[k] for k in step}, x), 2, (1, 2)
            ).sum()
            for s in (1, -1)
        )
        expected = sum(np.vdot(gradient[name], step[name]) for name in step)
        np.testing.assert_allclose((ahead - behind) / 2, expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["dense", "golub_kahan", "iterative"])
def test_nan_in_one_example_stays_there(name):
    with jax.enable_x64(True):
        factors = np.where(np.arange(6) == 1, np.nan, 1.0)
        run = functools.partial(norms_and_gradients(name), mlp_params(), data())
        (_, found), (_, clean) = run(jnp.asarray(factors)), run(jnp.ones(6))
        others = np.isfinite(factors)
        assert np.isnan(found.value[1])
        np.testing.assert_allclose(found.value[others], clean.value[others], rtol=1e-4)
        length = np.linalg.norm(found.right, axis=1)
        np.testing.assert_allclose(length, 1, rtol=1e-4)


# The tests of matrix_norm and operator_norm use every pair. These show that p and q
# arrive.
PAIRS = ((2.0, 2.0), (INF, 2.0), (1.0, INF))


def test_dense_method_finds_the_norms_of_a_small_network():
    with jax.enable_x64(True):
        params, x = mlp_params(n=8), data(n=8)

        @jax.jit
        def both(x, key):
            norm = functools.partial(
                operators.jacobian_norm, functools.partial(mlp, params), x
            )
            options = {"method": "iterative", "key": key}
            return [(norm(p=p, q=q), norm(p=p, q=q, **options)) for p, q in PAIRS]

        matrices = mlp_matrices(params, x)
        for (p, q), (found, iterated) in zip(
            PAIRS, both(x, jax.random.key(1)), strict=True
        ):
            expected = [exact_norm(matrix, p, q) for matrix in matrices]
            np.testing.assert_allclose(found.value, expected, rtol=1e-9)
            length = np.linalg.norm(found.right, p, axis=1)
            np.testing.assert_allclose(length, 1, rtol=1e-9)
            assert np.all(iterated.value <= found.value * (1 + 1e-9))


def test_auto_takes_the_way_with_fewer_passes():
    params, x = mlp_params(), data()

    @jax.jit
    def norms(x):
        norm = functools.partial(
            operators.jacobian_norm, functools.partial(mlp, params), x
        )
        return norm(), norm(num_steps=1, key=jax.random.key(0))

    many, few = norms(x)
    assert (many.num_steps, few.num_steps) == (0, 1)
    exact = np.linalg.norm(mlp_matrices(params, x), 2, axis=(1, 2))
    np.testing.assert_allclose(many.value, exact, rtol=1e-4)


def test_a_dead_network_has_norm_zero_and_finite_gradients():
    cases = list(itertools.product(("dense", "iterative"), PAIRS))

    @jax.jit
    @functools.partial(jax.jacrev, has_aux=True)
    def totals(weight, x):
        def f(z):
            return jax.nn.relu(z @ weight - 100.0)

        found = [
            operators.jacobian_norm(
                f, x, p=p, q=q, method=method, key=jax.random.key(0)
            )
            for method, (p, q) in cases
        ]
        return [norm.value.sum() for norm in found], found

    gradients, found = totals(jnp.ones((5, 3)), jnp.ones((2, 5)))
    chex.assert_tree_all_finite((found, gradients))
    for (_, (p, _)), norm in zip(cases, found, strict=True):
        np.testing.assert_array_equal(norm.value, 0)
        np.testing.assert_allclose(np.linalg.norm(norm.right, p, axis=1), 1, rtol=1e-5)


def test_singular_triplets():
    with jax.enable_x64(True):
        params, x = mlp_params(d=6), data()

        @jax.jit
        def triplets(x):
            return [
                operators.singular_triplets(
                    functools.partial(mlp, params), x, 4, method=method, num_steps=6
                )
                for method in ("dense", "golub_kahan")
            ]

        _, values, right = np.linalg.svd(mlp_matrices(params, x), full_matrices=False)
        for found in triplets(x):
            np.testing.assert_allclose(found.values, values[:, :4], rtol=1e-9)
            assert found.right.shape == (6, 4, 12)
            assert found.left.shape == (6, 4, 6)
            overlap = np.abs(np.einsum("bkn,bkn->bk", found.right, right[:, :4]))
            np.testing.assert_allclose(overlap, 1, rtol=1e-6)
            assert np.all(found.residual < 1e-9)


def test_it_works_under_sharded_jit_and_vmap():
    f, x, matrices = conv_network()
    params = mlp_params(n=72)
    devices = jax.device_count()

    def sigma(x):
        norm = functools.partial(operators.jacobian_norm, num_steps=3)
        # The first has loops over convolutions, the others carry states through loops.
        return [
            norm(f, x, method="dense").value,
            *(
                norm(
                    functools.partial(mlp, params),
                    x,
                    method=method,
                    key=jax.random.key(0),
                ).value
                for method in ("golub_kahan", "iterative")
            ),
        ]

    exact = np.linalg.norm(matrices, 2, axis=(1, 2))
    bound = np.linalg.norm(mlp_matrices(params, x.reshape(8, -1)), 2, axis=(1, 2))
    mesh = jax.make_mesh(
        (devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
    )
    sharding = jax.NamedSharding(mesh, jax.P("data"))
    results = (
        jax.jit(sigma)(jax.device_put(x, sharding)),
        jax.jit(jax.vmap(lambda z: sigma(z[None])))(x),
    )
    for result in results:
        dense, *searched = map(np.ravel, result)
        # The dense norm is exact, so it does not depend on the split of the batch.
        np.testing.assert_allclose(dense, exact, rtol=1e-4)
        for found in searched:
            assert np.all((found > 0) & (found <= bound * (1 + 1e-5)))


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
        ({"num_steps": True}, "num_steps is True"),
        ({"key": 0}, "key is 0; it must be a typed key"),
    ],
)
def test_bad_options_are_refused(options, message):
    f, x, _ = conv_network()
    with pytest.raises(ValueError, match=message):
        operators.jacobian_norm(f, x, **options)


@pytest.mark.parametrize("method", ["dense", "golub_kahan", "iterative"])
def test_keys_that_are_not_typed_are_refused(method):
    # The batch has two examples, since a raw key has two numbers.
    x, key = jnp.ones((2, 3)), jax.random.PRNGKey(0)
    with pytest.raises(ValueError, match="key has dtype uint32; it must be a typed"):
        operators.jacobian_norm(jnp.sin, x, method=method, key=key)
    if method != "iterative":
        with pytest.raises(ValueError, match="key has dtype uint32"):
            operators.singular_triplets(jnp.sin, x, method=method, key=key)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k is 0; it must be an int from 1 to 3"),
        ({"k": 4}, "k is 4; it must be an int from 1 to 3"),
        ({"k": True}, "k is True"),
        ({"num_steps": 2.0}, "num_steps is 2.0"),
        ({"method": "magic"}, "method is 'magic'"),
    ],
)
def test_bad_options_of_singular_triplets_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        operators.singular_triplets(jnp.sin, jnp.ones((2, 3)), **options)


def test_counts_and_exponents_of_numpy_are_numbers():
    def found(x):
        two = np.int64(2)
        options = {"p": np.float32(2), "q": two, "num_steps": two}
        norm = operators.jacobian_norm(
            jnp.sin, x, method="golub_kahan", key=jax.random.key(0), **options
        )
        return norm.value, operators.singular_triplets(jnp.sin, x, two).values

    shapes = jax.tree.map(jnp.shape, jax.eval_shape(found, jnp.ones((4, 3))))
    assert shapes == ((4,), (4, 2))


def test_norms_and_their_gradients_under_shard_map():
    cases = (
        {"method": "dense"},
        {"method": "dense", "p": INF},
        {"method": "golub_kahan", "num_steps": 3},
        {"method": "iterative", "num_steps": 100, "num_restarts": 2},
        {"method": "iterative", "num_steps": 100, "tolerance": 1e-6},
    )

    def totals(weight, x):
        found = [
            operators.jacobian_norm(
                lambda z: jnp.tanh(z @ weight), x, key=jax.random.key(0), **options
            ).value
            for options in cases
        ]
        return [values.sum() for values in found], found

    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(16, 7)), rng.normal(size=(7, 3))
    mesh = jax.make_mesh(
        (jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
    )
    rows = jax.P("data")
    sharded = jax.shard_map(
        jax.jacrev(totals, has_aux=True),
        mesh=mesh,
        in_specs=(jax.P(), rows),
        out_specs=(jax.P(), rows),
    )
    given = (np.float32(weight), np.float32(x))
    for options, gradient, values in zip(cases, *jax.jit(sharded)(*given), strict=True):
        p = options.get("p", 2.0)

        def exact(weight, p=p):
            slopes = 1 - np.tanh(x @ weight) ** 2
            matrices = np.einsum("nd,bd->bdn", weight, slopes)
            return np.array([exact_norm(matrix, p, 2.0) for matrix in matrices])

        np.testing.assert_allclose(values, exact(weight), rtol=1e-3)
        expected = np.zeros_like(weight)
        for entry in np.ndindex(weight.shape):
            step = np.zeros_like(weight)
            step[entry] = 1e-5
            change = exact(weight + step) - exact(weight - step)
            expected[entry] = change.sum() / 2e-5
        np.testing.assert_allclose(gradient, expected, rtol=1e-2, atol=1e-2)


def test_dense_iteration_is_no_worse_than_its_start():
    x, params = data(n=30), mlp_params(n=30)

    @jax.jit
    def twice(x):
        norm = functools.partial(
            operators.jacobian_norm,
            functools.partial(mlp, params),
            x,
            p=INF,
            method="dense",
        )
        best = norm(num_restarts=200, num_steps=50)
        return best.value, norm(num_steps=0, init=best.right).value

    best, again = twice(x)
    np.testing.assert_allclose(again, best, rtol=1e-5)


def test_no_steps_are_allowed_whatever_the_outputs():
    params, x = mlp_params(d=20), data()
    found = operators.jacobian_norm(
        functools.partial(mlp, params), x, num_steps=0, init=x
    )
    moved = np.einsum("bdn,bn->bd", mlp_matrices(params, x), x)
    expected = np.linalg.norm(moved, axis=1) / np.linalg.norm(x, axis=1)
    np.testing.assert_allclose(found.value, expected, rtol=1e-5)


def test_auto_counts_forward_passes_when_inputs_are_few():
    params, x = mlp_params(n=3, d=40), data(n=3)
    found = operators.jacobian_norm(functools.partial(mlp, params), x)
    assert found.num_steps == 0
    exact = np.linalg.norm(mlp_matrices(params, x), 2, axis=(1, 2))
    np.testing.assert_allclose(found.value, exact, rtol=1e-4)


def test_the_sign_of_a_dense_norms_vectors_is_that_of_the_left_ones_largest_entry():
    # Rounding chooses the sign of a decomposition. The same example in a batch of
    # another size must not be searched in the opposite direction.
    matrices = np.random.default_rng(5).normal(size=(12, 3, 6)).astype(np.float32)
    x = jnp.zeros((12, 6))
    found = jax.jit(
        lambda x: operators.jacobian_norm(
            lambda z: jnp.einsum("bdn,bn->bd", matrices, z), x, method="dense"
        )
    )(x)
    left = np.asarray(found.left)
    chosen = left[np.arange(12), np.abs(left).argmax(1)]
    assert (chosen > 0).all()
    left_vectors, _, _ = np.linalg.svd(matrices.astype(np.float64))
    cosines = np.abs(np.sum(left_vectors[:, :, 0] * left, axis=1))
    np.testing.assert_allclose(cosines, 1, atol=1e-5)


def reverse_alone(weights, by_callback):
    """``sin(x) W`` with a backward function, in JAX or by calls of NumPy."""

    @jax.custom_vjp
    def f(x):
        return forward(x)[0]

    def value(x):
        return np.sin(x) @ weights

    def gradient(x, u):
        return np.asarray(np.cos(x) * (u @ weights.T), np.float32)

    def forward(x):
        shape = jax.ShapeDtypeStruct((len(x), weights.shape[1]), x.dtype)
        return (
            jax.pure_callback(value, shape, x) if by_callback else jnp.sin(x) @ weights
        ), x

    def backward(x, u):
        if by_callback:
            return (jax.pure_callback(gradient, x, x, u),)
        return (jnp.cos(x) * (u @ weights.T),)

    f.defvjp(forward, backward)
    return f


@pytest.mark.parametrize("shape", [(6, 4), (3, 5)])
def test_reverse_mode_alone_is_enough(shape):
    rng = np.random.default_rng(0)
    weights = rng.normal(size=shape).astype(np.float32)
    x = rng.normal(size=(2, shape[0])).astype(np.float32)
    matrices = np.float64(np.cos(x)[:, :, None] * weights)
    sigma = np.linalg.norm(matrices, 2, (1, 2))
    callback, plain = (reverse_alone(weights, kind) for kind in (True, False))
    # With one step "auto" would multiply from the right, if that were there.
    found = [
        operators.jacobian_norm(callback, x, method="dense"),
        operators.jacobian_norm(callback, x, num_steps=1, key=jax.random.key(0)),
        operators.jacobian_norm(plain, x, method="golub_kahan", key=jax.random.key(0)),
    ]
    for norm in found:
        np.testing.assert_allclose(norm.value, sigma, rtol=1e-5)
    triplets = operators.singular_triplets(callback, x, num_steps=1)
    np.testing.assert_allclose(triplets.values[:, 0], sigma, rtol=1e-5)
    with pytest.raises(ValueError, match=r"reverse mode alone.*'dense' needs"):
        operators.jacobian_norm(
            callback, x, method="golub_kahan", key=jax.random.key(0)
        )
