"""The layers found in networks, their norms and what is computed from them."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from opnorm import linalg, models, operators


class Chain(nn.Module):
    """A BatchNorm that can be folded, and one that takes a ReLU's output."""

    def setup(self):
        self.conv = nn.Conv(6, (3, 2), strides=2, feature_group_count=2)
        self.norm = nn.BatchNorm(use_running_average=True)
        self.after = nn.BatchNorm(use_running_average=True, use_scale=False)
        self.twice = nn.Dense(6)
        self.head = nn.Dense(3)

    def normalized(self, x):
        return self.norm(self.conv(x))

    def __call__(self, x):
        h = self.after(nn.relu(self.normalized(x)))
        h = nn.relu(self.twice(nn.relu(self.twice(h))))
        return self.head(h.reshape(len(h), -1))


def random_variables(module, shape, seed=0):
    """Parameters and statistics, all of them random."""
    dtype = getattr(module, "dtype", jnp.float32)
    abstract = jax.eval_shape(
        module.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, dtype)
    )
    rng = np.random.default_rng(seed)

    def draw(path: Any, leaf: Any) -> jax.Array:
        if path[-1].key == "kernel":
            size = np.prod(leaf.shape[:-1]) ** -0.5
            return jnp.asarray(rng.normal(0, size, leaf.shape), leaf.dtype)
        return jnp.asarray(rng.uniform(0.3, 2, leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, abstract)


@functools.cache
def chain():
    module = Chain()
    return module, random_variables(module, (1, 5, 6, 4))


def found(**options):
    module, variables = chain()
    x = jax.ShapeDtypeStruct((7, 5, 6, 4), jnp.float32)
    return operators.layers(module, variables, x, **options)


def matrix(linear_map):
    columns = jax.jit(jax.vmap(lambda v: linear_map.matvec(v[None])[0]))(
        np.eye(linear_map.in_size, dtype=np.float32).reshape(-1, *linear_map.in_shape)
    )
    return np.asarray(columns).reshape(linear_map.in_size, -1).T.astype(np.float64)


def matrices(layers):
    return [matrix(operators.layer_map(layer)) for layer in layers]


@functools.cache
def folded_matrices():
    return matrices(found())


@functools.cache
def measured():
    """Everything that is computed from the layers, compiled at once."""

    @jax.jit
    def everything(layers):
        return {
            "norms": operators.layer_norms(layers),
            "lipschitz": operators.log_lipschitz_bound(layers, input_scale=(2, -3)),
            "gram": operators.log_lipschitz_bound(layers, method="gram_iteration"),
            **{
                form: (
                    operators.log_spectral_complexity(layers, form=form),
                    operators.singular_value_std(layers, form=form),
                )
                for form in ("operator", "kernel")
            },
        }

    return everything, everything(found())


def test_calls_are_listed_in_order_with_their_shapes_and_options():
    layers = found(batch_norm="separate")
    assert [(layer.name, layer.kind) for layer in layers] == [
        ("conv", "convolution"),
        ("norm", "batch_norm"),
        ("after", "batch_norm"),
        ("twice", "dense"),
        ("twice", "dense"),
        ("head", "dense"),
    ]
    shapes = [(5, 6, 4), *[(3, 3, 6)] * 4, (54,)]
    assert [layer.input_shape for layer in layers] == shapes
    assert (layers[0].strides, layers[0].padding, layers[0].groups) == (
        (2, 2),
        "SAME",
        2,
    )
    assert layers[0].kernel.shape == (3, 2, 2, 6)
    _, variables = chain()
    assert layers[3].kernel is variables["params"]["twice"]["kernel"]

    folded = found()
    assert [layer.name for layer in folded] == [
        "conv",
        "after",
        "twice",
        "twice",
        "head",
    ]
    assert [layer.batch_norm for layer in folded] == ["norm"] + [None] * 4
    ignored = found(batch_norm="ignore")
    assert [layer.name for layer in ignored] == ["conv", "twice", "twice", "head"]
    assert ignored[0].kernel is variables["params"]["conv"]["kernel"]


def test_a_folded_layer_is_the_linear_part_of_convolution_and_batch_norm():
    module, variables = chain()
    jacobian = jax.jit(
        jax.jacrev(
            lambda x: module.apply(variables, x[None], method=Chain.normalized)[0]
        )
    )(jnp.zeros((5, 6, 4)))
    expected = np.asarray(jacobian).reshape(-1, 5 * 6 * 4)
    np.testing.assert_allclose(folded_matrices()[0], expected, rtol=1e-4, atol=1e-6)
    convolution, norm, *_ = matrices(found(batch_norm="separate")[:2])
    np.testing.assert_allclose(norm @ convolution, expected, rtol=1e-4, atol=1e-6)


def test_layer_maps_have_their_transposes():
    for layer, dense in zip(found(), folded_matrices(), strict=True):
        linear_map = operators.layer_map(layer)
        u = np.random.default_rng(0).normal(size=(1, *linear_map.out_shape))
        pulled = linear_map.rmatvec(jnp.asarray(u, jnp.float32))
        np.testing.assert_allclose(pulled.ravel(), dense.T @ u.ravel(), atol=1e-4)


def test_norms_are_those_of_the_dense_matrices_and_lie_between_the_bounds():
    norms = measured()[1]["norms"]
    exact = np.array([np.linalg.norm(dense, 2) for dense in folded_matrices()])
    np.testing.assert_allclose(norms.value, exact, rtol=1e-5)
    assert np.all(norms.residual <= 1e-2 * exact)
    assert np.all(norms.lower <= exact)
    assert np.all(exact <= norms.upper)
    np.testing.assert_allclose(norms.lower, exact, rtol=1e-4)
    np.testing.assert_allclose(norms.upper[1:], exact[1:], rtol=1e-4)
    assert norms.upper[0] < 1.3 * exact[0]
    layers = found()
    kernels = [np.asarray(layer.kernel, np.float64) for layer in layers]
    kernels[1] = np.diag(kernels[1])
    expected = [np.linalg.norm(k.reshape(-1, k.shape[-1]), 2) for k in kernels]
    np.testing.assert_allclose(norms.kernel_matrix, expected, rtol=1e-5)


def complexity(dense):
    spectral = np.array([np.linalg.norm(m, 2) for m in dense])
    frobenius = np.array([np.linalg.norm(m) for m in dense])
    product = np.sum(np.log(spectral))
    ratio = np.log(np.sum((frobenius / spectral) ** 2))
    return 2 * product + ratio, product, ratio


def kernel_matrices():
    kernels = [np.asarray(layer.kernel, np.float64) for layer in found()]
    kernels[1] = np.diag(kernels[1])
    return [k.reshape(-1, k.shape[-1]) for k in kernels]


def test_log_complexity_is_the_definition():
    results = measured()[1]
    expected = complexity(folded_matrices())
    np.testing.assert_allclose(results["operator"][0], expected, rtol=1e-4)
    expected = complexity(kernel_matrices())
    np.testing.assert_allclose(results["kernel"][0], expected, rtol=1e-4)


def test_std_is_that_of_all_singular_values():
    results = measured()[1]
    layer, *_ = found()
    periodic = linalg.convolution_map(
        layer.kernel, (6, 6, 4), strides=2, padding="CIRCULAR", groups=2
    )
    operator = [matrix(periodic), *kernel_matrices()[1:]]
    for form, dense in (("operator", operator), ("kernel", kernel_matrices())):
        expected = [np.std(np.linalg.svd(m, compute_uv=False)) for m in dense]
        np.testing.assert_allclose(results[form][1], expected, rtol=1e-4)


def test_lipschitz_bound_is_the_product_of_the_upper_bounds():
    results = measured()[1]
    expected = np.log(results["norms"].upper).sum()
    np.testing.assert_allclose(results["lipschitz"], expected + np.log(3), rtol=1e-5)
    assert expected - 1e-5 <= results["gram"] <= expected + 0.1


def test_a_zero_layer_has_no_complexity_and_no_norm():
    everything, _ = measured()
    layers = found()
    zero = layers[0].replace(kernel=jnp.zeros_like(layers[0].kernel))
    results = everything((zero, *layers[1:]))
    assert results["norms"].upper[0] == 0
    assert results["lipschitz"] == results["operator"][0].log_complexity == -np.inf
    assert np.isfinite(results["operator"][0].log_ratio)


@pytest.mark.parametrize("name", ["mlp", "cnn7"])
def test_lipschitz_bound_holds_for_the_jacobians_of_our_models(name):
    shape = (4, 24, 24, 3) if name == "cnn7" else (4, 4, 4, 3)
    std = (0.5, 0.25, 0.4)
    model = models.create(name, width=4, std=std)
    variables = random_variables(model, shape)
    layers = operators.layers(model, variables, jnp.zeros(shape), train=False)
    if name == "mlp":
        assert [layer.kernel.shape for layer in layers] == [(48, 4), (4, 4), (4, 10)]
    else:
        assert [layer.name for layer in layers] == [f"conv{i}" for i in range(1, 8)] + [
            "logits"
        ]
        assert [layer.batch_norm for layer in layers[:7]] == [
            f"norm{i}" for i in range(1, 8)
        ]
        assert [layer.padding for layer in layers[:7]] == ["SAME"] * 6 + ["VALID"]
        sizes = [24, 24, 12, 12, 6, 6, 3]
        channels = [3, 4, 4, 8, 8, 16, 16]
        expected = [(n, n, c) for n, c in zip(sizes, channels, strict=True)]
        assert [layer.input_shape for layer in layers] == [*expected, (32,)]
        kernel = variables["params"]["conv2"]["kernel"]
        variance = variables["batch_stats"]["norm2"]["var"]
        folded = np.asarray(kernel) / np.sqrt(np.asarray(variance) + 1e-5)
        np.testing.assert_allclose(layers[1].kernel, folded, rtol=1e-5)
    bound = jax.jit(
        lambda variables: operators.log_lipschitz_bound(
            operators.layers(model, variables, jnp.zeros(shape)),
            input_scale=[1 / s for s in std],
        )
    )(variables)
    x = np.random.default_rng(1).uniform(size=shape).astype(np.float32)
    f = functools.partial(model.apply, variables)
    norms = jax.jit(lambda x: operators.jacobian_norm(f, x, method="dense").value)(x)
    assert 0 < np.max(norms) <= np.exp(bound)


RESIDUAL = {
    "wide": models.WideResNet(depth=10, width=2),
    "resnet": models.ResNet50(width=2, stage_sizes=(1, 2)),
    "resnext": models.ResNeXt34(width=2, stage_sizes=(1, 1)),
}


@functools.cache
def residual(name):
    """Layers of a small residual network by name, and its variables."""
    module, shape = RESIDUAL[name], (1, 19, 18, 3)
    variables = random_variables(module, shape)
    found = operators.layers(module, variables, jnp.zeros(shape))
    layers = {layer.name: layer for layer in found}
    assert len(layers) == len(found)
    kernels = {
        jax.tree_util.keystr(path[:-1], simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(variables["params"])
        if path[-1].key == "kernel"
    }
    separate = {layer.name for layer in found if layer.kind == "batch_norm"}
    assert set(layers) == kernels | separate
    return layers, variables, separate


def test_every_layer_of_residual_networks_is_found_with_its_options():
    layers, _, separate = residual("wide")
    strided = {"group2_block1", "group3_block1"}
    for name, layer in layers.items():
        if layer.kind == "convolution":
            block, _, which = name.rpartition("/")
            stride = 2 if block in strided and which != "conv2" else 1
            pad = 0 if which == "shortcut" else 1
            assert layer.strides == (stride, stride)
            assert layer.padding == ((pad, pad), (pad, pad))
    # The first takes the first convolution's output alone; the others take sums.
    assert layers["conv"].batch_norm == "group1_block1/norm1"
    assert layers["group2_block1/conv1"].batch_norm == "group2_block1/norm2"
    assert layers["group2_block1/conv2"].batch_norm is None
    assert separate == {"group2_block1/norm1", "group3_block1/norm1", "norm"}

    layers, _, separate = residual("resnet")
    assert not separate
    assert (layers["conv"].strides, layers["conv"].padding) == ((2, 2), ((3, 3),) * 2)
    for name, stride in (("stage2_block1", 2), ("stage2_block2", 1)):
        found = [layers[f"{name}/conv{i}"] for i in (1, 2, 3)]
        assert [layer.strides[0] for layer in found] == [1, stride, 1]
        assert [layer.batch_norm for layer in found] == [
            f"{name}/norm{i}" for i in (1, 2, 3)
        ]
    shortcut = layers["stage2_block1/shortcut"]
    assert shortcut.strides == (2, 2)
    assert shortcut.batch_norm == "stage2_block1/shortcut_norm"
    assert layers["stage2_block2/conv1"].input_shape == (3, 3, 16)

    layers, _, separate = residual("resnext")
    assert not separate
    assert layers["logits"].batch_norm == "logits_norm/norm"
    assert layers["conv2"].batch_norm == "norm2/norm"
    for name, layer in layers.items():
        assert layer.groups == (2 if name.endswith("block1/conv2") else 1)
    assert layers["stage2_block1/conv2"].input_shape == (9, 9, 8)


def test_a_batch_norm_that_shares_its_input_is_not_folded():
    module = models.WideResNet(depth=10, width=1)
    variables = random_variables(module, (1, 8, 8, 3))
    layers = operators.layers(module, variables, jnp.zeros((1, 8, 8, 3)))
    # At width 1 the first shortcut takes the first convolution's output, too.
    assert [layer.name for layer in layers[:2]] == ["conv", "group1_block1/norm1"]
    assert layers[0].batch_norm is None


@pytest.mark.parametrize(
    ("name", "path", "norm"),
    [
        ("resnet", "stage2_block1/conv2", "stage2_block1/norm2"),
        ("resnext", "stage1_block1/conv2", "stage1_block1/norm2"),
    ],
)
def test_norms_of_strided_and_of_grouped_layers_are_those_of_dense_matrices(
    name, path, norm
):
    layers, variables, _ = residual(name)
    # A small map, odd and even, so that its matrix is small.
    layer = layers[path].replace(input_shape=(5, 4, layers[path].input_shape[-1]))
    with jax.enable_x64(True):
        wide = layer.replace(kernel=jnp.asarray(layer.kernel, jnp.float64))
        norms = jax.tree.map(np.asarray, jax.jit(operators.layer_norms)([wide]))

    def at(tree, path):
        return functools.reduce(lambda tree, part: tree[part], path.split("/"), tree)

    kernel = np.asarray(at(variables["params"], path)["kernel"], np.float64)
    scale = np.asarray(at(variables["params"], norm)["scale"], np.float64)
    variance = np.asarray(at(variables["batch_stats"], norm)["var"], np.float64)
    kernel = kernel * scale / np.sqrt(variance + 1e-5)
    dense = dense_convolution(kernel, 5, 4, layer.strides[0], layer.groups)
    exact = np.linalg.norm(dense, 2)
    assert layer.strides[0] * layer.groups == 2
    np.testing.assert_allclose(norms.value[0], exact, rtol=1e-6)
    assert norms.lower[0] <= exact * (1 + 1e-6)
    assert exact <= norms.upper[0] * (1 + 1e-6)


def dense_convolution(kernel, height, width, stride, groups):
    """The matrix of a 3x3 convolution padded by 1, tap by tap."""
    inside, channels = kernel.shape[2:]
    rows, columns = -(-height // stride), -(-width // stride)
    dense = np.zeros((rows, columns, channels, height, width, inside * groups))
    for i, j, k in np.ndindex(rows, columns, channels):
        first = k // (channels // groups) * inside
        for di, dj in np.ndindex(3, 3):
            y, x = i * stride + di - 1, j * stride + dj - 1
            if 0 <= y < height and 0 <= x < width:
                dense[i, j, k, y, x, first : first + inside] = kernel[di, dj, :, k]
    return dense.reshape(rows * columns * channels, -1)


class One(nn.Module):
    """A single layer made by a function."""

    make: Any

    @nn.compact
    def __call__(self, x):
        return self.make()(x)


def one(make):
    module = One(make)
    x = jax.ShapeDtypeStruct((1, 5, 4), jnp.float32)
    variables = jax.tree.map(
        lambda leaf: jnp.ones(leaf.shape, leaf.dtype),
        jax.eval_shape(module.init, jax.random.key(0), x),
    )
    return operators.layers(module, variables, x)


def test_options_of_convolutions_are_translated():
    (layer,) = one(lambda: nn.Conv(2, 3, padding="CAUSAL", kernel_dilation=2))
    assert (layer.padding, layer.kernel_dilation) == (((4, 0),), (2,))
    (layer,) = one(lambda: nn.Conv(2, 3, padding=1, strides=3))
    assert (layer.padding, layer.strides) == (((1, 1),), (3,))
    mask = jnp.zeros((3, 4, 2)).at[1].set(1.0)
    (layer,) = one(lambda: nn.Conv(2, 3, mask=mask))
    np.testing.assert_array_equal(layer.kernel, mask)


class Matrices(nn.Module):
    """Matrices of its own: one is added, one never used, a method multiplies by one."""

    def setup(self):
        draw = nn.initializers.ones
        self.bias = self.param("bias", draw, (5, 4))
        self.spare = self.param("spare", draw, (4, 4))
        self.w = self.param("w", lambda _: {"inner": jnp.ones((4, 4))})
        self.norm = nn.LayerNorm()
        self.dense = nn.Dense(3)

    def multiplied(self, x):
        return self.dense(x @ self.w["inner"])

    def __call__(self, x):
        return self.dense(self.norm(x + self.bias))


def test_matrices_that_are_added_or_not_used_are_no_layers():
    (layer,) = one(Matrices)
    assert layer.name == "Matrices_0/dense"


class Factor(nn.Module):
    """A chain with something that is no layer behind it."""

    then: Any

    @nn.compact
    def __call__(self, x):
        return self.then(self, nn.Dense(3)(x))


def parameter(module, *shape):
    return module.param("gain", nn.initializers.constant(5.0), shape)


@pytest.mark.parametrize(
    ("then", "named"),
    [
        (lambda m, x: x * parameter(m), "'gain'"),
        (lambda m, x: x * parameter(m, 3), "'gain'"),
        (lambda m, x: x / parameter(m, 3), "'gain'"),
        (lambda m, x: x * jnp.exp(1 + parameter(m)), "'gain'"),
        (lambda m, x: jnp.where(x > 0, x, parameter(m) * x), "'gain'"),
        (lambda m, x: jax.jit(jnp.multiply)(x, parameter(m)), "'gain'"),
        (lambda m, x: nn.LayerNorm()(x), "'LayerNorm_0'"),
        (lambda m, x: nn.RMSNorm(use_scale=False)(x), "'RMSNorm_0'"),
        (lambda m, x: nn.GroupNorm(3)(x), "'GroupNorm_0'"),
    ],
)
def test_bounds_refuse_networks_that_multiply_elsewhere(then, named):
    module, x = Factor(then), jnp.ones((1, 4))
    variables = random_variables(module, x.shape)
    layers = operators.layers(module, variables, x)
    assert [layer.kind for layer in layers] == ["dense"]
    for bound in (
        operators.log_lipschitz_bound,
        operators.log_spectral_complexity,
        functools.partial(operators.log_capacity, scheme="erm"),
    ):
        with pytest.raises(ValueError, match=named):
            bound(layers)


@pytest.mark.parametrize(
    "then",
    [
        lambda m, x: x + parameter(m),
        lambda m, x: nn.relu(x - jnp.exp(parameter(m, 3))),
        lambda m, x: jnp.maximum(x, parameter(m, 1, 3)),
        lambda m, x: x,
    ],
)
def test_parameters_that_are_added_are_no_factors(then):
    module, x = Factor(then), jnp.ones((1, 4))
    layers = operators.layers(module, random_variables(module, x.shape), x)
    assert [layer.uncounted for layer in layers] == [()]


def test_a_bound_refuses_layers_without_their_batch_norm():
    with pytest.raises(ValueError, match=r"after.*norm.*'fold' or 'separate'"):
        operators.log_lipschitz_bound(found(batch_norm="ignore"))


class Standardised(nn.Dense):
    """Weight standardisation: the kernel that multiplies is not the parameter."""

    def param(self, name, *args, **options):
        value = super().param(name, *args, **options)
        return 10 * value if name == "kernel" else value


class Repeated(nn.Module):
    """A body for nn.scan."""

    @nn.compact
    def __call__(self, x, _):
        return nn.Dense(4)(x), None


def scan():
    wrap = nn.scan(
        Repeated, variable_broadcast="params", split_rngs={"params": False}, length=3
    )
    return lambda x: wrap()(x, None)


def vmap():
    axes = {"variable_axes": {"params": None}, "split_rngs": {"params": False}}
    return nn.vmap(nn.Dense, in_axes=1, **axes)(3)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Matrices().multiplied, r"'Matrices_0/w/inner' .* \(4, 4\)"),
        (lambda: nn.Embed(5, 4).attend, r"'Embed_0/embedding' .* \(5, 4\)"),
        (scan, "'ScanRepeated_0/Dense_0' is called in a transformation"),
        (lambda: nn.RNN(nn.SimpleCell(4)), "is called in a transformation"),
        (vmap, "is called in a transformation"),
        (
            lambda: nn.remat(nn.BatchNorm)(use_running_average=True),
            "is called in a transformation",
        ),
        (lambda: Standardised(3), "Standardised, which has a param of its own"),
        (lambda: nn.DenseGeneral(3), "DenseGeneral"),
        (lambda: nn.ConvTranspose(3, (3,)), "ConvTranspose"),
        (lambda: nn.Conv(3, 3, padding="REFLECT"), "padding"),
        (lambda: nn.Conv(3, 3, padding=1, input_dilation=2), "input_dilation"),
        (lambda: nn.BatchNorm(use_running_average=False), "batch statistics"),
        (lambda: nn.BatchNorm(use_running_average=True, axis=1), "axis"),
        (lambda: nn.remat(nn.Dense)(3), "inside the network"),
        (lambda: nn.LayerNorm(), "must call"),
    ],
)
def test_networks_that_cannot_be_listed_are_refused(make, named):
    with pytest.raises(ValueError, match=named):
        one(make)


def test_a_spectrally_normalised_kernel_is_refused():
    class Normalised(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.SpectralNorm(nn.Dense(3))(x, update_stats=False)

    module, x = Normalised(), jnp.ones((2, 4))
    with pytest.raises(ValueError, match="computed inside"):
        operators.layers(module, random_variables(module, x.shape), x)


def test_bad_options_are_named():
    with pytest.raises(ValueError, match=r"module is Sequential; it must be .* linen"):
        operators.layers(nnx.Sequential(), {}, jnp.ones((2, 4)))
    with pytest.raises(ValueError, match="batch_norm"):
        found(batch_norm="none")
    for function in (operators.singular_value_std, operators.log_spectral_complexity):
        with pytest.raises(ValueError, match="form"):
            function(found(), form="matrix")
    with pytest.raises(ValueError, match="layers is empty"):
        operators.log_lipschitz_bound([])
