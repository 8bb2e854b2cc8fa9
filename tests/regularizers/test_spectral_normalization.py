"""Bounds on the norms of layers, against dense matrices and singular values."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import operators, regularizers

SHAPE = (1, 6, 5, 2)


class Net(nn.Module):
    """A strided convolution, one without padding, and a dense layer."""

    @nn.compact
    def __call__(self, x, train=False):
        del train
        dtype = x.dtype
        x = nn.Conv(4, (3, 3), strides=2, param_dtype=dtype, name="first")(x)
        x = nn.relu(x)
        x = nn.Conv(3, (2, 2), padding="VALID", param_dtype=dtype, name="second")(x)
        return nn.Dense(4, param_dtype=dtype, name="last")(x.reshape(len(x), -1))


@pytest.fixture(scope="module")
def network():
    """Parameters in float64, and abstract layers."""
    with jax.enable_x64(True):
        x = jnp.ones(SHAPE, jnp.float64)
        params = Net().init(jax.random.key(0), x)["params"]
        # The norms are 3.1, 2.0 and 0.7, so a bound between them binds some layers.
        params["last"]["kernel"] *= 0.5
        found = jax.eval_shape(
            lambda params: operators.layers(Net(), {"params": params}, x), params
        )
        return params, found


@functools.cache
def normalize(form, bound):
    """A program for each form and bound."""

    def call(params, layers, vectors):
        return regularizers.spectral_normalize(
            params, layers, vectors, bound=bound, form=form
        )

    return jax.jit(call, static_argnums=1)


def dense(name, kernel, layers):
    """The matrix of a layer, from its products with unit vectors."""
    (layer,) = (layer for layer in layers if layer.name == name)
    if name == "last":
        return np.asarray(kernel).T
    size = int(np.prod(layer.input_shape))
    units = np.eye(size).reshape(size, *layer.input_shape)
    images = jax.lax.conv_general_dilated(
        units,
        kernel,
        layer.strides,
        layer.padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return np.asarray(images).reshape(size, -1).T


def exact(name, kernel, layers, form):
    if form == "kernel":
        kernel = np.asarray(kernel)
        return np.linalg.norm(kernel.reshape(-1, kernel.shape[-1]), 2)
    return np.linalg.norm(dense(name, kernel, layers), 2)


@pytest.mark.parametrize("form", ["operator", "kernel"])
def test_norms_become_the_bound_where_they_exceed_it(network, form):
    with jax.enable_x64(True):
        params, layers = network
        before = {
            name: exact(name, part["kernel"], layers, form)
            for name, part in params.items()
        }
        bound = float(np.sort(list(before.values()))[:2].mean())
        vectors = regularizers.init_spectral_vectors(
            params, layers, jax.random.key(1), form=form, num_steps=1
        )
        for _ in range(300):
            found = normalize(form, bound)(params, layers, vectors)
            for name, value in found.norms.items():
                assert value <= before[name] * (1 + 1e-12)
            vectors = found.vectors
        for name, part in found.params.items():
            np.testing.assert_allclose(found.norms[name], before[name], rtol=1e-6)
            after = exact(name, part["kernel"], layers, form)
            np.testing.assert_allclose(after, min(bound, before[name]), rtol=1e-6)
            np.testing.assert_array_equal(part["bias"], params[name]["bias"])
            if before[name] <= bound:
                np.testing.assert_array_equal(part["kernel"], params[name]["kernel"])
        assert sum(value > bound for value in before.values()) == 2


def test_the_gradient_is_that_of_division_by_the_exact_norm(network):
    with jax.enable_x64(True):
        params, layers = network
        kernel = params["last"]["kernel"]
        weights = jax.random.normal(jax.random.key(3), kernel.shape, kernel.dtype)
        vectors = jax.jit(
            lambda params: regularizers.init_spectral_vectors(
                params, layers, jax.random.key(1), num_steps=5000
            )
        )(params)

        def by_steps(params):
            found = regularizers.spectral_normalize(params, layers, vectors, bound=0.5)
            return jnp.sum(weights * found.params["last"]["kernel"])

        def by_decomposition(kernel):
            sigma = jnp.linalg.svd(kernel, compute_uv=False)[0]
            return jnp.sum(weights * kernel / (sigma / 0.5))

        gradient = jax.jit(jax.grad(by_steps))(params)
        expected = jax.jit(jax.grad(by_decomposition))(kernel)
        np.testing.assert_allclose(gradient["last"]["kernel"], expected, atol=1e-8)
        # The result does not depend on the scale of a kernel that is divided.
        np.testing.assert_allclose(
            jnp.sum(gradient["last"]["kernel"] * kernel), 0, atol=1e-10
        )
        np.testing.assert_array_equal(gradient["first"]["kernel"], 0)


def test_several_steps_are_single_steps_in_a_row(network):
    with jax.enable_x64(True):
        params, layers = network
        start = regularizers.init_spectral_vectors(
            params, layers, jax.random.key(1), num_steps=0
        )
        three = jax.jit(
            lambda params, vectors: regularizers.spectral_normalize(
                params, layers, vectors, bound=1.0, num_steps=3
            )
        )(params, start)
        vectors = start
        for _ in range(3):
            found = normalize("operator", 1.0)(params, layers, vectors)
            vectors = found.vectors
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-14),
            three,
            found,
        )
        steps = regularizers.init_spectral_vectors(
            params, layers, jax.random.key(1), num_steps=3
        )
        for name, vector in steps.items():
            np.testing.assert_allclose(vector, vectors[name], atol=1e-12)


def test_an_infinite_bound_changes_nothing(network):
    with jax.enable_x64(True):
        params, layers = network
        vectors = regularizers.init_spectral_vectors(
            params, layers, jax.random.key(1), num_steps=0
        )
        found = normalize("operator", np.inf)(params, layers, vectors)
        jax.tree.map(np.testing.assert_array_equal, found.params, params)


def test_a_zero_kernel_does_not_end_the_search():
    layers = (operators.Layer(jnp.zeros((3, 2)), "dense", "dense", (3,)),)
    zero, ones = ({"dense": {"kernel": jnp.full((3, 2), v)}} for v in (0.0, 1.0))
    vectors = regularizers.init_spectral_vectors(zero, layers, jax.random.key(0))

    def total(params, vectors):
        found = regularizers.spectral_normalize(params, layers, vectors, bound=0.5)
        return found.params["dense"]["kernel"].sum(), found

    gradient, found = jax.grad(total, has_aux=True)(zero, vectors)
    np.testing.assert_array_equal(gradient["dense"]["kernel"], 1)
    np.testing.assert_array_equal(found.params["dense"]["kernel"], 0)
    _, found = total(ones, found.vectors)
    np.testing.assert_allclose(found.norms["dense"], np.sqrt(6), rtol=1e-6)
    found = regularizers.global_spectral_norm(
        zero, regularizers.init_vectors(zero, jax.random.key(0))
    )
    found = regularizers.global_spectral_norm(ones, found.vectors)
    np.testing.assert_allclose(found.norms["dense/kernel"], np.sqrt(6), rtol=1e-6)


def test_clipping_bounds_every_layer(network):
    with jax.enable_x64(True):
        params, layers = network
        before = {
            name: exact(name, part["kernel"], layers, "operator")
            for name, part in params.items()
        }
        clipped = jax.jit(
            lambda params: regularizers.clip_spectral_norms(params, layers, 0.8)
        )(params)
        kernel = np.asarray(params["last"]["kernel"])
        left, values, right = np.linalg.svd(kernel, full_matrices=False)
        np.testing.assert_allclose(
            clipped["last"]["kernel"],
            left * np.minimum(values, 0.8) @ right,
            atol=1e-12,
        )
        for name in ("first", "second"):
            # The bound is for periodic convolutions; with zero padding the norm is
            # slightly different.
            assert before[name] > 0.9
            after = exact(name, clipped[name]["kernel"], layers, "operator")
            assert 0.4 < after <= 0.8 * 1.01
            np.testing.assert_array_equal(clipped[name]["bias"], params[name]["bias"])
        unchanged = regularizers.clip_spectral_norms(params, layers, 100.0)
        jax.tree.map(np.testing.assert_array_equal, unchanged, params)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bound": 0.0}, "bound is 0.0; it must be positive"),
        ({"num_steps": 0}, "num_steps is 0; it must be at least 1"),
        ({"form": "matrix"}, "form is 'matrix'; it may be operator, kernel"),
        ({"vectors": {}}, r"vectors has the layers \[\]"),
        ({"form": "kernel"}, r"'first'; .* 'kernel' it must be \(1, 18\)"),
        (
            {"vectors": {n: np.ones((1, 18)) for n in ("first", "second", "last")}},
            r"\(1, 18\) for 'first'; .* 'operator' it must be \(1, 6, 5, 2\)",
        ),
        ({"layers": ()}, "layers has no convolution or dense layer"),
        ({"params": {"other": {"kernel": np.ones((2, 2))}}}, "kernels of .'other'."),
    ],
)
def test_bad_arguments_are_named(network, change, message):
    params, layers = network
    vectors = {layer.name: jnp.ones((1, *layer.input_shape)) for layer in layers}
    given = {"params": params, "layers": layers, "vectors": vectors, "bound": 1.0}
    with pytest.raises(ValueError, match=message):
        regularizers.spectral_normalize(**(given | change))


def test_a_layer_called_twice_and_an_endless_bound_of_clipping_are_refused(network):
    params, layers = network
    with pytest.raises(ValueError, match="layers has 'first' twice"):
        regularizers.init_spectral_vectors(
            params, (*layers, layers[0]), jax.random.key(0)
        )
    with pytest.raises(ValueError, match="bound is inf; it must be finite"):
        regularizers.clip_spectral_norms(params, layers, np.inf)


def channels_first(weights, x):
    """A strided convolution and a matrix in the layouts of PyTorch."""
    out = jax.lax.conv(x, weights["conv"], (2, 1), "VALID")
    return out.reshape(len(x), -1) @ weights["head"].T


def test_layers_of_any_network_are_bounded_in_their_layout():
    rng = np.random.default_rng(0)
    weights = {
        "conv": jnp.asarray(rng.normal(size=(3, 2, 2, 2)), jnp.float32),
        "head": jnp.asarray(rng.normal(size=(4, 24)), jnp.float32),
    }
    f = jax.tree_util.Partial(channels_first, weights)
    layers = operators.find_layers(f, jnp.zeros((1, 2, 4, 5)))

    @jax.jit
    def bounded(f):
        vectors = regularizers.init_spectral_vectors(
            f, layers, jax.random.key(0), num_steps=100
        )
        found = regularizers.spectral_normalize(f, layers, vectors, bound=0.5)
        clipped = regularizers.clip_spectral_norms(f, layers[1:], 0.5)
        listed = regularizers.init_vectors(f, jax.random.key(1), layers=layers)
        penalty = regularizers.global_spectral_norm(
            f, listed, layers=layers, num_steps=20
        )
        return found, clipped, penalty.norms

    found, clipped, kernels = bounded(f)
    head = np.asarray(weights["head"], np.float64)
    np.testing.assert_allclose(found.norms["head"], np.linalg.norm(head, 2), rtol=1e-3)
    divided = weights["conv"] * 0.5 / found.norms["conv"]
    np.testing.assert_allclose(found.params.args[0]["conv"], divided, rtol=1e-5)
    u, s, v = np.linalg.svd(head, full_matrices=False)
    expected = u * np.minimum(s, 0.5) @ v
    np.testing.assert_allclose(clipped.args[0]["head"], expected, atol=1e-5)
    matrix = np.asarray(weights["conv"], np.float64).reshape(3, -1)
    np.testing.assert_allclose(kernels["conv"], np.linalg.norm(matrix, 2), rtol=1e-3)


def test_computed_kernels_and_other_trees_are_refused():
    f = jax.tree_util.Partial(lambda w, x: x @ jnp.exp(w), jnp.ones((3, 2)))
    layers = operators.find_layers(f, jnp.zeros((1, 3)))
    with pytest.raises(ValueError, match="computed inside the network"):
        regularizers.clip_spectral_norms(f, layers, 0.5)
    w = jnp.ones((3, 2))
    plain = operators.find_layers(lambda x: x @ w, jnp.zeros((1, 3)))
    with pytest.raises(ValueError, match=r"params has kernels of \['a'\]"):
        regularizers.clip_spectral_norms({"a": jnp.ones((2, 2))}, plain, 0.5)
