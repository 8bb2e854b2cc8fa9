"""AlexNet, Inception, ResNet32 and ELUNet against NumPy, and their pieces."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import models, operators
from opnorm.models import layers

# Strides and windows on even and odd maps, and as few places as possible.
SHAPES = {
    "alexnet": (3, 10, 13, 3),
    "inception": (3, 6, 9, 3),
    "resnet32": (3, 6, 9, 3),
    "elu_net": (3, 27, 30, 1),
}
NETWORKS = pytest.mark.parametrize("name", list(SHAPES))
WITH_BLOCKS = pytest.mark.parametrize("name", list(SHAPES)[:3])


@functools.cache
def network(name, **options):
    shift = {} if name == "elu_net" else {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 1)}
    options = {"num_classes": 4, **shift, **options}
    if name == "alexnet":
        return models.AlexNet(width=3, **options)
    if name == "inception":
        return models.Inception(width=6, **options)
    if name == "resnet32":
        return models.ResNet32(width=2, stage_sizes=(1, 2, 1), **options)
    return models.ELUNet(width=2, **options)


@functools.cache
def variables(name):
    """Parameters, all of them random, float64."""
    images = jax.ShapeDtypeStruct(SHAPES[name], jnp.float32)
    abstract = jax.eval_shape(network(name).init, jax.random.key(0), images)
    rng = np.random.default_rng(1)

    def randomize(path: Any, leaf: Any) -> np.ndarray:
        if path[-1].key == "kernel":
            return rng.normal(0, np.prod(leaf.shape[:-1]) ** -0.5, leaf.shape)
        return rng.uniform(-0.5, 0.5, leaf.shape)

    return jax.tree_util.tree_map_with_path(randomize, abstract)


def images(name):
    return np.random.default_rng(0).uniform(0, 1, SHAPES[name])


@pytest.mark.parametrize(
    ("name", "channels", "expected"),
    [
        ("alexnet", 3, 4_237_130),
        ("inception", 3, 1_810_682),
        ("resnet32", 3, 1_481_146),
        ("elu_net", 1, 710_218),
        ("mlp1", 3, 1_209_866),
        ("mlp", 3, 1_472_522),
        ("mlp1", 1, 407_050),
        ("mlp", 1, 669_706),
    ],
)
def test_parameters_are_as_many_as_published(name, channels, expected):
    assert count(models.create(name), (1, 28, 28, channels)) == expected


def test_the_residual_network_that_was_meant_has_fewer_parameters():
    module = models.ResNet32(multipliers=(1, 2, 4))
    assert count(module, (1, 28, 28, 3)) == 464_698


def count(module, shape):
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    tree = jax.eval_shape(module.init, jax.random.key(0), images)
    assert set(tree) == {"params"}
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


class Reference:
    """The networks in NumPy, written from the paper and its code."""

    def __init__(self, name):
        self.params, self.units = variables(name)["params"], []
        self.act = elu if name == "elu_net" else functools.partial(np.maximum, 0)

    def activate(self, h):
        self.units.append(h)
        return self.act(h)

    def conv(self, h, path, stride=1, padding="SAME"):
        layer = functools.reduce(lambda tree, key: tree[key], path, self.params)
        kernel = layer["kernel"]
        if padding == "SAME":
            h = pad_same(h, kernel.shape[0], stride, 0)
        taps = windows(h, kernel.shape[0], stride)
        return np.einsum("bhwijc,ijck->bhwk", taps, kernel) + layer.get("bias", 0)

    def dense(self, h, name):
        return h @ self.params[name]["kernel"] + self.params[name]["bias"]

    def alexnet(self, h):
        for name in ("conv1", "conv2"):
            h = self.activate(self.conv(h, (name,)))
            h = normalized(windows(h, 3, 2).max((3, 4)), 4, 1, 0.001 / 9, 0.75)
        h = h.reshape(len(h), -1)
        for name in ("dense1", "dense2"):
            h = self.activate(self.dense(h, name))
        return h

    def inception(self, h):
        h = self.activate(self.conv(h, ("conv",)))
        for stage, blocks in ((1, 2), (2, 4), (3, 2)):
            if stage > 1:
                new = self.activate(self.conv(h, (f"stage{stage}_halve", "conv3"), 2))
                old = windows(pad_same(h, 3, 2, -np.inf), 3, 2).max((3, 4))
                h = np.concatenate([new, old], -1)
            for block in range(1, blocks + 1):
                convs = ((f"stage{stage}_block{block}", f"conv{s}") for s in (1, 3))
                h = [self.activate(self.conv(h, conv)) for conv in convs]
                h = np.concatenate(h, -1)
        return averaged(h, 7).reshape(len(h), -1)

    def resnet32(self, h):
        h = self.conv(h, ("conv",))
        for stage, block in ((1, 1), (2, 1), (2, 2), (3, 1)):
            name = f"stage{stage}_block{block}"
            stride = 2 if stage > 1 and block == 1 else 1
            o, shortcut = self.activate(h), h
            if block == 1:
                shortcut = self.conv(o, (name, "shortcut"), stride, "VALID")
            # Maps of every size are padded by one on every side.
            o = np.pad(o, [(0, 0), (1, 1), (1, 1), (0, 0)])
            o = self.activate(self.conv(o, (name, "conv1"), stride, "VALID"))
            h = shortcut + self.conv(o, (name, "conv2"))
        return self.activate(h).mean((1, 2))

    def elu_net(self, h):
        h = self.activate(self.conv(h, ("conv1",), 2))
        h = self.activate(self.conv(h, ("conv2",), 2, "VALID"))
        h = self.activate(self.conv(h, ("conv3",), 1, "VALID"))
        return h.reshape(len(h), -1)


def windows(x, size, stride):
    """Returns windows (B, H', W', size, size, C)."""
    view = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))
    return np.moveaxis(view[:, ::stride, ::stride], 3, -1)


def pad_same(x, size, stride, value):
    """Pads by TensorFlow's rule: as few places as needed, an odd one at the end."""
    widths = [(0, 0)]
    for n in x.shape[1:3]:
        total = max((math.ceil(n / stride) - 1) * stride + size - n, 0)
        widths.append((total // 2, total - total // 2))
    return np.pad(x, [*widths, (0, 0)], constant_values=value)


def averaged(x, size):
    out = np.empty_like(x)
    for i, j in np.ndindex(x.shape[1:3]):
        top, left = max(i - size // 2, 0), max(j - size // 2, 0)
        window = x[:, top : i + size // 2 + 1, left : j + size // 2 + 1]
        out[:, i, j] = window.mean((1, 2))
    return out


def normalized(x, radius, bias, alpha, beta):
    out = np.empty_like(x)
    for c in range(x.shape[-1]):
        window = x[..., max(c - radius, 0) : c + radius + 1]
        out[..., c] = x[..., c] / (bias + alpha * (window**2).sum(-1)) ** beta
    return out


def elu(x):
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


@functools.cache
def everything(name):
    module = network(name, dtype=jnp.float64)
    return jax.jit(functools.partial(module.apply, outputs="all"))


@NETWORKS
def test_matches_an_independent_forward_pass(name):
    with jax.enable_x64(True):
        actual = everything(name)(variables(name), images(name))
        actual = jax.tree.map(np.asarray, actual)
    reference, module = Reference(name), network(name)
    shifted = (images(name) - np.array(module.mean)) / np.array(module.std)
    features = getattr(reference, name)(shifted)
    logits = reference.dense(features, "logits")
    assert actual.logits.dtype == jnp.float64
    np.testing.assert_allclose(actual.features, features, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(actual.logits, logits, rtol=1e-9, atol=1e-12)
    assert len(actual.preactivations) == len(reference.units)
    for ours, expected in zip(actual.preactivations, reference.units, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-12)


def test_variants_of_alexnet_match_an_independent_forward_pass():
    shape = (6, *SHAPES["alexnet"][1:])
    x = np.random.default_rng(3).uniform(0, 1, shape)
    tree, rng = variables("alexnet"), np.random.default_rng(2)
    norms, statistics = {}, {}
    for index, channels in ((1, 3), (2, 8)):
        scale, bias, mean = rng.normal(size=(3, channels))
        norms[f"norm{index}"] = {"scale": scale, "bias": bias}
        variance = rng.uniform(0.5, 2, channels)
        statistics[f"norm{index}"] = {"mean": mean, "var": variance}
    bounded = {"params": tree["params"] | norms, "batch_stats": statistics}
    key = jax.random.key(5)

    @jax.jit
    def everything(tree, bounded, x):
        modules = [
            network("alexnet", dtype=jnp.float64, **options)
            for options in (
                {"batch_norm": True, "dropout": 0.5},
                {"response_normalization": False},
                {"dropout": 0.5},
            )
        ]
        dropped, seen = modules[2].apply(
            tree,
            x,
            train=True,
            rngs={"dropout": key},
            capture_intermediates=lambda module, _: "dropout" in (module.name or ""),
        )
        return (
            modules[0].apply(bounded, x),
            modules[1].apply(tree, x),
            modules[2].apply(tree, x),
            dropped,
            jax.tree.leaves(seen),
        )

    with jax.enable_x64(True):
        norm, plain, still, dropped, seen = jax.tree.map(
            np.asarray, everything(tree, bounded, jnp.asarray(x))
        )
    module = network("alexnet")
    shifted = (x - np.array(module.mean)) / np.array(module.std)

    def logits(norm=False, response=True):
        reference = Reference("alexnet")
        h = shifted
        for index in (1, 2):
            h = reference.conv(h, (f"conv{index}",))
            if norm:
                known, own = statistics[f"norm{index}"], norms[f"norm{index}"]
                h = (h - known["mean"]) / np.sqrt(known["var"] + 1e-5)
                h = h * own["scale"] + own["bias"]
            h = windows(np.maximum(h, 0), 3, 2).max((3, 4))
            if response:
                h = normalized(h, 4, 1, 0.001 / 9, 0.75)
        h = h.reshape(len(h), -1)
        for name in ("dense1", "dense2", "logits"):
            h = reference.dense(h, name)
            h = h if name == "logits" else np.maximum(h, 0)
        return h

    tolerance = {"rtol": 1e-9, "atol": 1e-12}
    np.testing.assert_allclose(norm, logits(norm=True), **tolerance)
    np.testing.assert_allclose(plain, logits(response=False), **tolerance)
    # Nothing is dropped in inference.
    np.testing.assert_allclose(still, logits(), **tolerance)
    assert np.abs(dropped - still).max() > 1e-3
    # The first map is that of inference times 0 or 1 / (1 - rate).
    h = Reference("alexnet").conv(shifted, ("conv1",))
    h = normalized(windows(np.maximum(h, 0), 3, 2).max((3, 4)), 4, 1, 0.001 / 9, 0.75)
    kept = seen[0][h > 0] / h[h > 0]
    np.testing.assert_allclose(kept * (kept - 2), 0, atol=1e-9)
    assert 0.35 < np.mean(kept > 1) < 0.65


@NETWORKS
def test_rows_are_independent(name):
    changed = images(name)
    changed[1:] = 0.25
    with jax.enable_x64(True):
        actual = everything(name)(variables(name), images(name)).logits
        other = everything(name)(variables(name), changed).logits
    np.testing.assert_array_equal(actual[0], other[0])
    assert np.abs(actual[1] - other[1]).max() > 1e-6


@NETWORKS
def test_is_the_same_function_in_training(name):
    x = jax.ShapeDtypeStruct(SHAPES[name], jnp.float32)
    train, infer = (
        jax.make_jaxpr(functools.partial(network(name).apply, train=train))
        for train in (True, False)
    )
    assert str(train(variables(name), x)) == str(infer(variables(name), x))


@NETWORKS
def test_the_features_of_a_published_network_are_those_of_its_last_map(name):
    x = jax.ShapeDtypeStruct((2, 28, 28, SHAPES[name][-1]), jnp.float32)
    module = models.create(name)
    tree = jax.eval_shape(module.init, jax.random.key(0), x)
    found = jax.eval_shape(functools.partial(module.apply, outputs="all"), tree, x)
    assert found.logits.shape == (2, 10)
    size, units = {
        "alexnet": (192, [(28, 28, 96), (13, 13, 256), (384,), (192,)]),
        "inception": (7 * 7 * 336, [(28, 28, 96), (7, 7, 176), (7, 7, 160)]),
        "resnet32": (128, [(28, 28, 16), (7, 7, 128), (7, 7, 128)]),
        "elu_net": (128, [(14, 14, 64), (5, 5, 128), (1, 1, 128)]),
    }[name]
    assert found.features.shape == (2, size)
    shapes = [unit.shape[1:] for unit in found.preactivations]
    assert [shapes[0], *shapes[1 - len(units) :]] == units


def test_every_branch_of_the_narrowest_inception_has_a_channel():
    x = jax.ShapeDtypeStruct((1, 1, 1, 1), jnp.float32)
    tree = jax.eval_shape(models.Inception(width=1).init, jax.random.key(0), x)
    assert tree["params"]["stage1_block1"]["conv1"]["kernel"].shape == (1, 1, 1, 1)
    assert tree["params"]["logits"]["kernel"].shape == (2 + 2, 10)


def test_kernels_start_as_published_and_biases_from_zero():
    x = jnp.zeros((1, 28, 28, 3))
    params = jax.jit(models.AlexNet(width=12).init)(jax.random.key(0), x)["params"]
    for layer in params.values():
        kernel = layer["kernel"]
        taps = math.prod(kernel.shape[:-2])
        largest = np.abs(kernel).max() * np.sqrt(taps * sum(kernel.shape[-2:]) / 6)
        assert 0.95 < largest <= 1
        np.testing.assert_array_equal(layer["bias"], 0)
    module = models.ResNet32(width=16, stage_sizes=(1,), multipliers=(2,))
    params = jax.jit(module.init)(jax.random.key(0), x)["params"]
    block = params["stage1_block1"]
    for kernel in (block["conv1"]["kernel"], block["conv2"]["kernel"]):
        deviation = kernel * np.sqrt(math.prod(kernel.shape[:-1]))
        np.testing.assert_allclose(np.std(deviation), 1, rtol=0.05)
        # The distribution is truncated at two deviations, then scaled to variance 1.
        assert 2.1 < np.abs(deviation).max() < 2 / 0.879
    assert np.abs(params["logits"]["kernel"]).max() <= np.sqrt(6 / 42)
    assert set(params["conv"]) == {"kernel"}


@functools.cache
def step(name, rematerialize):
    """Gradients in parameters and images, as a jitted function."""
    module = network(name, dtype=jnp.float64, rematerialize=rematerialize)

    def loss(tree: Any, x: jax.Array) -> Any:
        found = module.apply(tree, x, outputs="all")
        units = sum(jnp.sum(unit**2) for unit in found.preactivations)
        return jnp.sum(found.logits**2) + 1e-2 * units, found

    return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))


@WITH_BLOCKS
def test_rematerialization_changes_no_name_value_or_gradient(name):
    x = jax.ShapeDtypeStruct(SHAPES[name], jnp.float32)
    plain, again = (
        jax.eval_shape(network(name, rematerialize=r).init, jax.random.key(0), x)
        for r in (False, True)
    )
    assert jax.tree.all(jax.tree.map(lambda a, b: a == b, plain, again))
    with jax.enable_x64(True):
        arguments = variables(name), images(name)
        assert " remat" in str(step(name, True).trace(*arguments).jaxpr)
        found, expected = (step(name, r)(*arguments) for r in (True, False))
    assert np.all(np.isfinite(found[0][1]))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9),
        found,
        expected,
    )


@NETWORKS
def test_bfloat16_keeps_parameters_and_logits_in_float32(name):
    module = network(name, dtype=jnp.bfloat16)
    x = jax.ShapeDtypeStruct(SHAPES[name], jnp.float32)
    tree = jax.eval_shape(module.init, jax.random.key(0), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {np.dtype("float32")}
    found = jax.eval_shape(functools.partial(module.apply, outputs="all"), tree, x)
    assert found.logits.dtype == jnp.float32
    assert found.features.dtype == jnp.bfloat16
    assert {unit.dtype for unit in found.preactivations} == {jnp.dtype("bfloat16")}
    jaxpr = str(jax.make_jaxpr(module.apply)(tree, x))
    products = [line for line in jaxpr.splitlines() if "conv_general" in line]
    assert products
    assert all("bf16" in line for line in products)


@NETWORKS
def test_all_kernels_are_found_as_layers(name):
    tree = variables(name)
    x = jax.ShapeDtypeStruct(SHAPES[name], jnp.float32)
    found = operators.layers(network(name), tree, x, train=False)
    expected = {
        jax.tree_util.keystr(path[1:-1], simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if path[-1].key == "kernel"
    }
    assert sorted(layer.name for layer in found) == sorted(expected)
    for layer in found:
        np.testing.assert_allclose(layer.kernel, expected[layer.name], rtol=1e-6)
    assert found[-1].name == "logits"
    assert found[0].strides == ((2, 2) if name == "elu_net" else (1, 1))


@pytest.mark.parametrize(("name", "size"), [("alexnet", 7), ("elu_net", 27)])
def test_names_the_smallest_image_it_takes(name, size):
    module = models.create(name, width=1)
    x = jax.ShapeDtypeStruct((1, size, size, 1), jnp.float32)
    jax.eval_shape(module.init, jax.random.key(0), x)
    with pytest.raises(ValueError, match=rf"1, {size}, {size - 1}.*at least {size}"):
        module.init(jax.random.key(0), jnp.zeros((1, size, size - 1, 1)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"multipliers": (1, 2)}, "multipliers is .*3 stages"),
        ({"multipliers": (1, 2, 0)}, "multipliers is 0"),
        ({"stage_sizes": ()}, "stage_sizes is empty"),
    ],
)
def test_stages_without_channels_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        models.ResNet32(**options).init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))


@pytest.mark.parametrize(
    "options", [(4, 1.0, 0.001 / 9, 0.75), (1, 2.0, 0.5, 0.5), (30, 0.5, 0.1, 1.0)]
)
def test_response_normalization_divides_by_neighbouring_channels(options):
    x = 3 * np.random.default_rng(0).normal(size=(2, 3, 2, 12))
    names = ("depth_radius", "bias", "alpha", "beta")
    normalize = functools.partial(
        layers.local_response_normalization, **dict(zip(names, options, strict=True))
    )
    with jax.enable_x64(True):
        found = jax.jit(normalize)(x)
    np.testing.assert_allclose(found, normalized(x, *options), rtol=1e-12)
    default = layers.local_response_normalization(x.astype(np.float32))
    expected = normalized(x, 4, 1, 0.001 / 9, 0.75)
    np.testing.assert_allclose(default, expected, rtol=1e-5)


def test_response_normalization_has_its_derivative_everywhere():
    options = {"depth_radius": 2, "alpha": 0.3}
    normalize = functools.partial(layers.local_response_normalization, **options)
    x = np.random.default_rng(1).normal(size=(3, 7))
    x[1] = 0
    with jax.enable_x64(True):
        jacobians = jax.jit(
            lambda x: [jax.vmap(j(normalize))(x) for j in (jax.jacfwd, jax.jacrev)]
        )
        forward, backward = jacobians(jnp.asarray(x))
    near = np.abs(np.subtract.outer(np.arange(7), np.arange(7))) <= 2
    for row, ours, other in zip(x, forward, backward, strict=True):
        base = 1 + 0.3 * near @ row**2
        expected = np.diag(base**-0.75)
        expected -= 1.5 * 0.3 * near * np.outer(row * base**-1.75, row)
        np.testing.assert_allclose(ours, expected, rtol=1e-10, atol=1e-14)
        np.testing.assert_allclose(other, expected, rtol=1e-10, atol=1e-14)
    np.testing.assert_array_equal(forward[1], np.eye(7))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_response_normalization_of_half_precision_does_not_overflow(dtype):
    # The squares overflow in float16.
    x = np.linspace(-3000, 3000, 24).reshape(2, 12).astype(dtype)

    @jax.jit
    def both(x):
        found, pull = jax.vjp(layers.local_response_normalization, x)
        return found, *pull(jnp.ones_like(found))

    found, gradient = both(x)
    assert found.dtype == dtype
    expected = normalized(np.asarray(x, np.float64), 4, 1, 0.001 / 9, 0.75)
    tolerance = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(found.astype(jnp.float32), expected, rtol=tolerance)
    assert gradient.dtype == dtype
    assert np.all(np.isfinite(gradient.astype(jnp.float32)))


@pytest.mark.parametrize(("shape", "size"), [((2, 9, 4, 3), 7), ((1, 5, 6, 2), 3)])
def test_local_averages_leave_out_what_is_outside_of_the_image(shape, size):
    x = np.random.default_rng(2).normal(size=shape)
    with jax.enable_x64(True):
        found = jax.jit(layers.local_average, static_argnums=1)(x, size)
    np.testing.assert_allclose(found, averaged(x, size), rtol=1e-12, atol=1e-14)


def test_local_averages_of_half_precision_are_rounded_once():
    x = np.random.default_rng(3).uniform(100, 101, size=(1, 7, 7, 2))
    x = jnp.asarray(x, jnp.bfloat16)
    found = layers.local_average(x, 7)
    assert found.dtype == jnp.bfloat16
    expected = averaged(np.asarray(x, np.float64), 7)
    np.testing.assert_allclose(found.astype(jnp.float32), expected, rtol=2**-8)


def test_local_averages_of_a_map_of_seven_amplify_by_a_twentieth():
    impulses = np.eye(49, dtype=np.float32).reshape(49, 7, 7, 1)
    matrix = layers.local_average(impulses, 7).reshape(49, 49)
    assert 1.04 < np.linalg.norm(matrix, 2) < 1.045
