"""Layers found in programs of networks, against Jacobians and closed forms."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import opnorm
from opnorm import linalg, models, operators
from opnorm.linalg.convolution import geometry
from opnorm.operators.slopes import largest_slope
from tests.support.layer_networks import RESIDUAL, chain, matrix, random_variables

DRAW = np.random.default_rng(0)


def draw(*shape):
    return jnp.asarray(DRAW.normal(size=shape), jnp.float32)


def found(apply, weights, shape, dtype=jnp.float32, **options):
    f = jax.tree_util.Partial(apply, weights)
    x = jax.ShapeDtypeStruct((3, *shape), dtype)
    return operators.find_layers(f, x, **options)


def channels_first(kernel, x):
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(2, 1),
        padding=((1, 0), (0, 2)),
        rhs_dilation=(1, 2),
        feature_group_count=2,
        dimension_numbers=("NCHW", "OIHW", "NCHW"),
    )


def grouped_transpose(kernel, x):
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding=((2, 1), (0, 3)),
        lhs_dilation=(2, 3),
        rhs_dilation=(1, 2),
        feature_group_count=2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def each(kernel, x):
    """A convolution of one image without a batch, as Equinox has it."""
    return lax.conv(x[None], kernel, (1, 1), "SAME")[0]


def normalised(weights, x):
    v = weights["v"]
    return x @ (weights["g"] * v / jnp.linalg.norm(v, axis=0))


@jax.remat
@jax.jit
def hidden(w, x):
    return x @ w.astype(jnp.float32).T


def patches(kernel, x):
    """One convolution of all parts of an image."""
    parts = x.reshape(-1, 3, 4, 2)
    out = lax.conv_general_dilated(
        parts, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return out.reshape(len(x), -1)


CASES = {
    "channels first": (channels_first, draw(6, 2, 3, 2), (4, 5, 6)),
    "transposed": (
        lambda w, x: lax.conv_transpose(x, w, (2, 2), "SAME"),
        draw(3, 2, 2, 4),
        (3, 4, 2),
    ),
    "transposed with groups": (grouped_transpose, draw(3, 2, 2, 6), (3, 3, 4)),
    "mapped": (
        lambda w, x: jax.vmap(functools.partial(each, w))(x),
        draw(3, 2, 3, 3),
        (2, 4, 5),
    ),
    "einsum": (
        lambda w, x: jnp.einsum("bthd,hdo->bto", x, w),
        draw(3, 2, 5),
        (4, 3, 2),
    ),
    "matrices": (
        lambda w, x: jnp.einsum("bgi,gio->bgo", x, w),
        draw(3, 2, 4),
        (3, 2),
    ),
    "left": (lambda w, x: jax.vmap(lambda row: w @ row)(x), draw(4, 6), (6,)),
    "weight norm": (normalised, {"v": draw(5, 4), "g": draw(4)}, (5,)),
    "transformed": (hidden, draw(4, 5), (5,)),
    "patches": (patches, draw(3, 3, 2, 2), (6, 4, 2)),
    "factors": (lambda w, x: x / jnp.exp(w)[:, None], draw(3), (2, 3, 2)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_layer_has_the_singular_values_of_the_jacobian(name):
    apply, weights, shape = CASES[name]
    (layer,) = found(apply, weights, shape)
    assert layer.uncounted == ()
    jacobian = jax.jit(jax.jacobian(lambda x: apply(weights, x[None]).ravel()))
    exact = np.asarray(jacobian(jnp.zeros(shape)), np.float64)
    dense = matrix(operators.layer_map(layer))
    assert dense.size == exact.size
    expected = np.linalg.svd(exact.reshape(-1, np.prod(shape)), compute_uv=False)
    np.testing.assert_allclose(
        np.linalg.svd(dense, compute_uv=False), expected, rtol=1e-4, atol=1e-5
    )
    # The leaf at the path of the layer gives its kernel.
    if name in ("weight norm", "factors"):
        assert layer.path is None
    else:
        assert layer.path == "0/0"


@pytest.mark.parametrize("name", ["chain", "cnn7", "wide"])
def test_layers_of_our_networks_are_those_of_their_modules(name):
    if name == "chain":
        (module, variables), shape = chain(), (1, 5, 6, 4)
    else:
        module = RESIDUAL.get(name) or models.CNN7(width=4, std=(0.5, 0.2, 0.4))
        shape = (1, 19, 18, 3) if name in RESIDUAL else (1, 24, 24, 3)
        variables = random_variables(module, shape)
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    for batch_norm in ("fold",) if name != "chain" else ("fold", "separate", "ignore"):
        expected = operators.layers(module, variables, x, batch_norm=batch_norm)
        layers = operators.find_layers(
            opnorm.network(module, variables), x, batch_norm=batch_norm
        )
        assert layers[0].uncounted == ()
        assert set(layers[0].ignored) == set(expected[0].ignored)
        for layer, other in zip(layers, expected, strict=True):
            for field in ("name", "kind", "input_shape", "batch_norm"):
                assert getattr(layer, field) == getattr(other, field)
            np.testing.assert_array_equal(layer.kernel, other.kernel)
            if layer.kind == "convolution":
                one, two = (
                    geometry(each.kernel, each.input_shape, **each.options)
                    for each in (layer, other)
                )
                assert one == two


class Block(nnx.Module):
    """A convolution, a BatchNorm and a linear layer of NNX."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(2, 4, (3, 3), strides=2, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(4, use_running_average=True, rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)
        self.norm.scale[...] = jnp.array([2.0, -1.0, 0.5, 3.0])
        self.norm.var[...] = jnp.array([1.0, 4.0, 0.25, 2.0])

    def __call__(self, x):
        return self.head(jnp.mean(nnx.relu(self.norm(self.conv(x))), axis=(1, 2)))


def test_an_nnx_module_gives_folded_layers():
    module = Block()
    layers = operators.find_layers(module, jnp.zeros((1, 6, 6, 2)))
    assert [(layer.name, layer.kind, layer.batch_norm) for layer in layers] == [
        ("conv", "convolution", "norm"),
        ("head", "dense", None),
    ]
    factors = np.array([2.0, -1.0, 0.5, 3.0]) / np.sqrt(
        np.array([1.0, 4.0, 0.25, 2.0]) + 1e-5
    )
    expected = np.asarray(module.conv.kernel[...]) * factors
    np.testing.assert_allclose(layers[0].kernel, expected, rtol=1e-6)
    # The mean over 3 x 3 places has the norm 1 / 3.
    gains = [gain for node in layers[0].graph for gain, _ in node.parents]
    np.testing.assert_allclose(gains, [1, 1 / 3, 1], rtol=1e-6)


def test_a_plain_function_gives_the_arrays_that_it_closes_over():
    w, b = draw(4, 3), draw(3)
    (layer,) = operators.find_layers(lambda x: nn.relu(x @ w + b), jnp.zeros((1, 4)))
    assert (layer.kind, layer.path) == ("dense", layer.name)
    np.testing.assert_array_equal(layer.kernel, w)


def test_a_table_is_a_dense_layer_on_one_hot_vectors():
    table, head = draw(7, 3), draw(6, 2)

    def apply(weights, tokens):
        return weights[0][tokens].reshape(len(tokens), -1) @ weights[1]

    layers = found(apply, (table, head), (2,), jnp.int32)
    assert [layer.kind for layer in layers] == ["embedding", "dense"]
    assert layers[0].input_shape == (2, 7)
    exact = np.linalg.norm(table, 2) * np.linalg.norm(head, 2)
    bound = jnp.exp(operators.log_lipschitz_bound(layers))
    np.testing.assert_allclose(bound, exact, rtol=1e-4)

    def one_hot(weights, tokens):
        return jax.nn.one_hot(tokens, 7) @ weights

    (layer,) = found(one_hot, table, (2,), jnp.int32)
    assert (layer.input_shape, layer.uncounted) == ((2, 7), ())


def test_steps_of_a_scan_are_layers():
    stacked = draw(3, 4, 4)

    def apply(weights, x):
        return lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, weights)[0]

    layers = found(apply, stacked, (4,))
    assert [layer.path for layer in layers] == [None] * 3
    for layer, expected in zip(layers, stacked, strict=True):
        np.testing.assert_array_equal(layer.kernel, expected)


W, V = np.diag([3.0, 1.0, 2.0]).astype(np.float32), 0.5 * np.eye(3, dtype=np.float32)


def pooled(x):
    """Maxima over windows of 3 places with stride 2, by slices."""
    return jnp.maximum(jnp.maximum(x[:, :-2:2], x[:, 1:-1:2]), x[:, 2::2])


# Functions of (W, V, x) with x (B, 3) or (B, 7), and Lipschitz constants. W has the
# norm 3 and V the norm 0.5.
BOUNDS = {
    "chain": (lambda w, v, x: nn.relu(x @ w) @ v, 1.5),
    "constants": (lambda w, v, x: (x - 0.5) / 0.25 @ w * 2, 24.0),
    "residual": (lambda w, v, x: x + nn.relu(x @ w) @ v, 2.5),
    "branches": (lambda w, v, x: jnp.concatenate([x @ w, x @ v], 1), 9.25**0.5),
    "activations": (lambda w, v, x: nn.leaky_relu(nn.elu(jnp.tanh(x @ w))), 3.0),
    "mean": (lambda w, v, x: jnp.mean(x @ w, axis=1), 3 / 3**0.5),
    "copies": (lambda w, v, x: jnp.repeat(x @ w, 4, axis=1), 6.0),
    "overlap": (lambda w, v, x: pooled(jnp.pad(x @ w, ((0, 0), (2, 2)))), 3 * 2**0.5),
    "apart": (lambda w, v, x: jnp.maximum(*jnp.split((x @ w)[:, :2], 2, 1)), 3.0),
    "window": (
        lambda w, v, x: nn.max_pool((x @ w)[:, :, None], (3,), (2,), padding="SAME"),
        3 * 2**0.5,
    ),
    "pooled": (lambda w, v, x: nn.leaky_relu(pooled((x @ w)[:, :, None])), 3.0),
    "twice": (lambda w, v, x: (x @ w) + (x @ w), 6.0),
    "choice": (lambda w, v, x: jnp.where(x > 0, 2 * x, x) @ w, 6.0),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_lipschitz_bounds_are_the_closed_forms(name):
    apply, expected = BOUNDS[name]
    layers = found(lambda weights, x: apply(*weights, x), (W, V), (3,))
    assert layers[0].uncounted == ()
    bound = np.exp(operators.log_lipschitz_bound(layers))
    np.testing.assert_allclose(bound, expected, rtol=2e-5)
    assert bound >= expected


@pytest.mark.parametrize(
    ("then", "named"),
    [
        (lambda x: nn.softmax(x @ W), "div"),
        (lambda x: (x @ W) ** 2, "square|integer_pow"),
        (lambda x: jnp.exp(x @ W), "exp"),
        (lambda x: jnp.where(x > 0, 1.0, 0.0) @ W, "select_n|convert_element_type"),
        (lambda x: (x > 0).astype(float) @ W, "convert_element_type"),
        (lambda x: jnp.where(x[:, :1] > 0, x @ W, x @ V), "select_n"),
        (lambda x: jnp.where(x[:, :1] > 0, x, 0) @ W, "select_n"),
        (lambda x: (x @ W) * (x @ V), "mul"),
        (lambda x: jnp.einsum("bi,bj->bij", x @ W, x @ V), "dot_general"),
        (lambda x: jnp.linalg.inv(x[:, :, None] * jnp.eye(3)) @ W, "lu|custom"),
    ],
)
def test_operations_that_are_not_understood_are_named(then, named):
    layers = operators.find_layers(then, jnp.zeros((1, 3)))
    with pytest.raises(ValueError, match=named):
        operators.log_lipschitz_bound(layers)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (nn.silu, 1.09984),
        (nn.gelu, 1.1289),
        (functools.partial(nn.gelu, approximate=False), 1.1289),
        (nn.selu, 1.0507009 * 1.6732632),
        (nn.softplus, 1.0),
        (nn.sigmoid, 0.25),
        (lambda z: jnp.where(z > 0, z, 1.0), np.inf),
        (jnp.square, np.inf),
    ],
)
def test_slopes_of_activations_are_their_largest(function, expected):
    # The numbers are maxima of the derivatives in float64.
    found = largest_slope(function)
    assert expected * (1 - 1e-5) <= found <= expected * (1 + 1e-3)


@pytest.mark.parametrize("activation", ["elu", "smooth_relu"])
def test_activations_of_our_networks_have_slopes_of_at_most_one(activation):
    module = models.MLP(hidden=(4,), activation=activation, std=1.0)
    variables = random_variables(module, (1, 2, 2, 3))
    x = jnp.zeros((1, 2, 2, 3))
    layers = operators.find_layers(opnorm.network(module, variables), x)
    assert layers[0].uncounted == ()
    gains = [gain for node in layers[0].graph for gain, _ in node.parents]
    np.testing.assert_allclose(gains, 1.0, rtol=1e-5)


def test_layers_can_be_found_in_a_gradient():
    w = draw(3, 3)

    @jax.jit
    @jax.value_and_grad
    def squared(w):
        f = jax.tree_util.Partial(lambda w, x: nn.relu(x @ w.T), w)
        (layer,) = operators.find_layers(f, jnp.zeros((1, 3)))
        return linalg.norm(layer.kernel.reshape(1, -1))[0] ** 2

    value, gradient = squared(w)
    np.testing.assert_allclose(value, np.sum(np.square(w)), rtol=1e-5)
    chex.assert_trees_all_close(gradient, 2 * w, rtol=1e-5)


def test_bad_networks_are_named():
    x = jnp.zeros((1, 3))
    module, _ = chain()
    with pytest.raises(ValueError, match=r"f is a Chain; .*opnorm.network"):
        operators.find_layers(module, x)
    with pytest.raises(ValueError, match="without layers"):
        operators.find_layers(nn.relu, x)
    with pytest.raises(ValueError, match="depends on x"):
        operators.find_layers(lambda x: jnp.zeros((len(x), 2)), x)
    with pytest.raises(ValueError, match="batch_norm is 'none'"):
        operators.find_layers(lambda x: x @ W, x, batch_norm="none")
    layers = operators.find_layers(lambda x: x @ W @ V, x)
    with pytest.raises(ValueError, match="all are needed"):
        operators.log_lipschitz_bound(layers[:1])
