"""Hessians in inputs and parameters against dense second derivatives."""

from collections.abc import Callable

import chex
import flax.linen as nn
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, struct

from opnorm import linalg, models, operators
from opnorm.models import layers


def network(params, x, nonlinearity=jax.nn.relu):
    h = x.reshape(len(x), -1)
    return nonlinearity(h @ params["first"]) @ params["second"] + params["bias"]


def parameters(dtype=jnp.float64):
    first, second, bias = jax.random.split(jax.random.key(0), 3)
    return {
        "first": jax.random.normal(first, (6, 8), dtype),
        "second": jax.random.normal(second, (8, 3), dtype),
        "bias": jax.random.normal(bias, (3,), dtype),
    }


def cross_entropy(logits, labels):
    rows = jnp.arange(len(labels))
    return -jax.nn.log_softmax(logits)[rows, labels]


def images(count=4):
    key = jax.random.key(1)
    x = jax.random.normal(key, (count, 2, 3), jnp.float64)
    return x, jnp.arange(count) % 3


def dense_input_hessians(loss, x):
    """(B, n, n), by two forward-mode derivatives of one example at a time."""
    single = jax.vmap(jax.jacfwd(jax.jacfwd(lambda z: loss(z[None])[0])))
    return single(x).reshape(len(x), 6, 6)


@pytest.mark.parametrize("nonlinearity", [jax.nn.relu, jnp.tanh])
def test_the_input_hessians_are_the_dense_ones(nonlinearity):
    with jax.enable_x64(True):
        params, (x, y) = parameters(), images()

        def loss(x, y=y):
            return cross_entropy(network(params, x, nonlinearity), y)

        def dense(x):
            return jnp.stack(
                [
                    dense_input_hessians(lambda z, i=i: loss(z, y[i : i + 1]), row)[0]
                    for i, row in enumerate(x[:, None])
                ]
            )

        def found(x, key):
            hessian = operators.input_hessian_map(loss, x)
            pairs = linalg.eigenpairs(hessian, which="largest", num_steps=6, key=key)
            signs = jnp.sign(jax.random.normal(key, x.shape))
            return hessian.matvec(signs), signs, pairs

        exact = jax.jit(dense)(x)
        product, signs, pairs = jax.jit(found)(x, jax.random.key(2))
        expected = jnp.einsum("bmn,bn->bm", exact, signs.reshape(4, 6))
        np.testing.assert_allclose(product.reshape(4, 6), expected, atol=1e-10)
        top = np.linalg.eigvalsh(exact)
        np.testing.assert_allclose(pairs.values[:, 0], top[:, -1], rtol=1e-10)

        def f(x):
            return network(params, x, nonlinearity)

        gauss_newton = operators.cross_entropy_gauss_newton(f, x)
        vectors = gauss_newton.vectors.reshape(4, 3, 6)
        rebuilt = jnp.einsum("bk,bkm,bkn->bmn", gauss_newton.values, vectors, vectors)
        if nonlinearity is jax.nn.relu:
            np.testing.assert_allclose(rebuilt, exact, atol=1e-10)
            np.testing.assert_allclose(gauss_newton.values[:, :2], top[:, :-3:-1])
            whole = operators.cross_entropy_hessian(f, x)
            chex.assert_trees_all_close(whole, gauss_newton, rtol=1e-12, atol=1e-14)
        else:
            # The missing part has eigenvalues of both signs.
            assert np.abs(rebuilt - exact).max() > 1e-3
            with pytest.raises(ValueError, match="f is not piecewise linear at 4 of"):
                operators.cross_entropy_hessian(f, x)
            # Under jit no network can be refused, and the result is NaN.
            under_jit = jax.jit(lambda x: operators.cross_entropy_hessian(f, x))(x)
            assert np.isnan(under_jit.values).all()
            assert np.isnan(under_jit.residual).all()
        # The rows of J, centred by the softmax, are linearly dependent.
        np.testing.assert_allclose(gauss_newton.values[:, 2], 0, atol=1e-12)


def test_networks_are_tried_for_curvature():
    kernel = jax.random.normal(jax.random.key(5), (3, 3, 2, 4))
    # The last example is too large for the corner of the smooth ReLU.
    x = jax.random.uniform(jax.random.key(6), (3, 4, 4, 2)).at[2].mul(1e6)

    def convolved(x):
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def normalized(x):
        norm = nn.BatchNorm(use_running_average=True)
        return norm.apply(norm.init(jax.random.key(0), x), x)

    linear = (jax.nn.relu, jnp.abs, layers.max_pool, normalized, jnp.sign)
    curved = (
        jax.nn.elu,
        layers.local_response_normalization,
        jax.nn.softmax,
        jnp.square,
    )

    @jax.jit
    def tried(x):
        return [
            operators.is_curved(
                # A piecewise linear function follows each, as in a network.
                lambda x, f=f: jnp.abs(f(convolved(x))).sum(axis=1)[:, 0],
                x,
                key=jax.random.key(7),
            )
            for f in (*linear, *curved, models.smooth_relu)
        ]

    found = np.asarray(tried(x))
    assert not found[: len(linear)].any()
    assert found[len(linear) : -1, :2].all()
    np.testing.assert_array_equal(found[-1], [True, True, False])
    with pytest.raises(ValueError, match="key"):
        operators.is_curved(lambda x: x, x.reshape(3, -1), key=None)


def data_set(shards=3, batch=8):
    key = jax.random.key(3)
    x = jax.random.normal(key, (shards, batch, 2, 3), jnp.float64)
    y = jax.random.randint(jax.random.key(4), (shards, batch), 0, 3)
    return {"x": x, "y": y}


def logits(params, batch):
    return network(params, batch["x"], jnp.tanh)


def mean_loss(outputs, batch):
    return jnp.mean(cross_entropy(outputs, batch["y"]))


def loss(params, batch):
    return mean_loss(logits(params, batch), batch)


@jax.jit
def dense_matrices(params, batches):
    """The Hessian and its Gauss-Newton part over all examples at once."""
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    whole = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), batches)
    hessian = jax.jacfwd(jax.jacrev(lambda p: loss(unravel(p), whole)))(flat)
    outputs = logits(params, whole)
    jacobian = jax.jacrev(lambda p: logits(unravel(p), whole))(flat)
    p = jax.nn.softmax(outputs)
    inner = jnp.einsum("bd,de->bde", p, jnp.eye(3)) - jnp.einsum("bd,be->bde", p, p)
    middle = jnp.einsum("bdn,bde,bem->nm", jacobian, inner, jacobian) / len(p)
    return hessian, middle


def test_parameter_hessian_and_gauss_newton_are_the_dense_ones():
    with jax.enable_x64(True):
        params, batches = parameters(), data_set()
        hessian, gauss_newton = dense_matrices(params, batches)

        def spectra(params, batches):
            found = []
            for matrix in (
                operators.parameter_hessian(loss, params, batches),
                operators.gauss_newton(logits, mean_loss, params, batches),
            ):
                process = linalg.lanczos(matrix.map, 60, key=jax.random.key(0))
                found.append(
                    [
                        linalg.ritz_pairs(process, 2, which=which)
                        for which in ("largest", "smallest", "magnitude")
                    ]
                )
            return found

        found = jax.jit(spectra)(params, batches)
        for dense, (largest, smallest, magnitude) in zip(
            (hessian, gauss_newton), found, strict=True
        ):
            values = np.linalg.eigvalsh(dense)
            size = np.abs(values).max()
            np.testing.assert_allclose(largest.values[0], values[:-3:-1], rtol=1e-10)
            np.testing.assert_allclose(
                smallest.values[0], values[:2], atol=1e-10 * size
            )
            assert magnitude.values[0, 0] == largest.values[0, 0]
        # The Hessian has eigenvalues of both signs, unlike the Gauss-Newton matrix.
        assert np.linalg.eigvalsh(hessian)[0] < -1e-3
        matrix = operators.parameter_hessian(loss, params, batches)
        vector = found[0][0].vectors[0, 0]
        tree = matrix.unravel(vector)
        assert jax.tree.structure(tree) == jax.tree.structure(params)
        np.testing.assert_array_equal(matrix.ravel(tree)[0], vector)


def test_devices_share_the_batches():
    with jax.enable_x64(True):
        params, batches = parameters(), data_set()
        mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        spread = jax.NamedSharding(mesh, jax.P(None, "data"))

        def product(params, batches, v):
            return operators.parameter_hessian(loss, params, batches).map.matvec(v)

        v = jax.random.normal(jax.random.key(0), (1, 75), jnp.float64)
        dense, _ = dense_matrices(params, batches)
        compiled = jax.jit(product).lower(
            jax.device_put(params, jax.NamedSharding(mesh, jax.P())),
            jax.device_put(batches, spread),
            v,
        )
        compiled = compiled.compile()
        assert "all-reduce" in compiled.as_text()
        found = compiled(
            jax.device_put(params, jax.NamedSharding(mesh, jax.P())),
            jax.device_put(batches, spread),
            v,
        )
        np.testing.assert_allclose(found[0], dense @ v[0], rtol=1e-10)


def test_bad_inputs_are_refused():
    params, batches = parameters(jnp.float32), data_set()
    with pytest.raises(ValueError, match=r"params has leaves of .*int32"):
        operators.parameter_hessian(loss, {"a": jnp.arange(3)}, batches)
    uneven = {"x": batches["x"], "y": batches["y"][:2]}
    with pytest.raises(ValueError, match="batches has first axes"):
        operators.parameter_hessian(loss, params, uneven)
    with pytest.raises(ValueError, match=r"params has leaves of .*<U1"):
        operators.parameter_hessian(loss, {"a": "x"}, batches)
    x = images()[0]
    for wrong in (
        lambda x: network(params, x),
        lambda x: jnp.argmax(network(params, x), axis=1),
        lambda x: (network(params, x)[:, 0],),
    ):
        with pytest.raises(ValueError, match="loss returns"):
            operators.input_hessian_map(wrong, x)
    with pytest.raises(ValueError, match="a batch axis is missing"):
        operators.input_hessian_map(lambda x: x, x[0, 0])


def test_numbers_are_parameters_too():
    batches = np.float32([[1.0, 2.0], [3.0, 4.0]])
    params = {"scale": 2.0, "shift": np.float32(0.5)}

    def f(params, batch):
        return params["scale"] * batch + params["shift"] ** 2

    def mean_square(outputs, batch):
        return jnp.mean(outputs**2)

    def loss(params, batch):
        return mean_square(f(params, batch), batch)

    def columns(matrix):
        return [matrix.map.matvec(jnp.eye(2)[i : i + 1])[0] for i in range(2)]

    hessian = columns(operators.parameter_hessian(loss, params, batches))
    middle = columns(operators.gauss_newton(f, mean_square, params, batches))
    # The loss is mean((a x + b^2)^2). The outputs have the derivatives x and 2 b, and
    # are curved in b only.
    x = batches.ravel()
    rows = np.stack([x, np.full(4, 2 * params["shift"])])
    expected = 2 * rows @ rows.T / 4
    np.testing.assert_allclose(middle, expected, rtol=1e-5)
    outputs = params["scale"] * x + params["shift"] ** 2
    expected[1, 1] += np.mean(2 * outputs) * 2
    np.testing.assert_allclose(hessian, expected, rtol=1e-5)


class Tanh(nnx.Module):
    """A network with parameters, statistics and a stream of random numbers."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.linear = nnx.Linear(2, 3, rngs=rngs)
        self.scale = nnx.BatchStat(jnp.float32(2.0))
        self.dropout = nnx.Dropout(0.5, deterministic=True, rngs=rngs)

    def __call__(self, x):
        return jnp.tanh(self.scale[...] * self.dropout(self.linear(x)))


@struct.dataclass
class Activated:
    """A network with an integer and a function among its leaves."""

    weight: jax.Array
    count: jax.Array
    activation: Callable = jnp.tanh

    def __call__(self, x):
        return self.activation(x @ self.weight)


@pytest.mark.parametrize(
    "f", [Tanh(), Activated(jnp.ones((2, 3)), jnp.arange(2))], ids=["nnx", "tree"]
)
def test_networks_are_trees_of_parameters(f):
    batches = np.float32([[[1.0, 2.0], [0.5, -1.0]]])

    def square(network, batch):
        return jnp.mean(network(batch) ** 2)

    matrices = (
        operators.parameter_hessian(square, f, batches),
        operators.gauss_newton(
            lambda network, batch: network(batch),
            lambda outputs, batch: jnp.mean(outputs**2),
            f,
            batches,
        ),
    )
    if isinstance(f, Tanh):
        weights = [f.linear.bias[...], f.linear.kernel[...]]
        flat, unravel = jax.flatten_util.ravel_pytree(weights)

        def outputs(vector):
            bias, kernel = unravel(vector)
            return jnp.tanh(2 * (batches[0] @ kernel + bias))
    else:
        flat = f.weight.ravel()

        def outputs(vector):
            return jnp.tanh(batches[0] @ vector.reshape(2, 3))

    @jax.jit
    def dense(vector):
        jacobian = jax.jacobian(outputs)(vector).reshape(6, -1)
        hessian = jax.hessian(lambda v: jnp.mean(outputs(v) ** 2))(vector)
        return hessian, 2 / 6 * jacobian.T @ jacobian

    for matrix, expected in zip(matrices, dense(flat), strict=True):
        assert matrix.map.in_shape == flat.shape
        rows = jax.jit(jax.vmap(lambda v, m=matrix: m.map.matvec(v[None])[0]))
        np.testing.assert_allclose(
            rows(np.eye(flat.size, dtype=np.float32)), expected, atol=1e-5
        )
        tree = matrix.unravel(flat + 1)
        assert jax.tree.structure(tree) == jax.tree.structure(f)
        np.testing.assert_array_equal(matrix.ravel(tree)[0], flat + 1)
