"""WideResNet, ResNet50 and ResNeXt34 against NumPy, and properties of all three."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import models

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
# These have both kinds of shortcut and strides on odd and even maps in few layers.
SHAPES = {
    "wide": (3, 6, 9, 3),
    "resnet": (3, 17, 20, 3),
    "resnext": (3, 6, 9, 3),
}


@functools.cache
def network(name, **options):
    options = {"mean": MEAN, "std": STD, "num_classes": 4, **options}
    if name == "wide":
        return models.WideResNet(depth=10, width=1, **options)
    if name == "resnet":
        return models.ResNet50(width=3, stage_sizes=(1, 2), **options)
    return models.ResNeXt34(width=3, stage_sizes=(1, 1, 1), **options)


@functools.cache
def variables(name):
    """Parameters and running statistics, all of them random, float64."""
    images = jax.ShapeDtypeStruct(SHAPES[name], jnp.float32)
    abstract = jax.eval_shape(network(name).init, jax.random.key(0), images)
    rng = np.random.default_rng(1)

    def randomize(path: Any, leaf: Any) -> np.ndarray:
        if path[-1].key == "kernel":
            return rng.normal(0, np.prod(leaf.shape[:-1]) ** -0.5, leaf.shape)
        low, high = (0.5, 2.0) if path[-1].key in ("var", "scale") else (-0.5, 0.5)
        return rng.uniform(low, high, leaf.shape)

    return jax.tree_util.tree_map_with_path(randomize, abstract)


def images(name, seed=0):
    return np.random.default_rng(seed).uniform(0, 1, SHAPES[name])


class Reference:
    """The networks in NumPy, written from their papers."""

    def __init__(self, name, act):
        self.params = variables(name)["params"]
        self.stats = variables(name)["batch_stats"]
        self.act, self.units = act, []

    def activate(self, h):
        self.units.append(h)
        return self.act(h)

    def norm(self, h, *path):
        stats, params = self.stats, self.params
        for part in path:
            stats, params = stats[part], params.get(part, {})
        h = (h - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
        return h * params.get("scale", 1) + params.get("bias", 0)

    def wide(self, h):
        h = convolve(h, self.params["conv"]["kernel"])
        for block in ("group1_block1", "group2_block1", "group3_block1"):
            params, stride = self.params[block], 1 if block == "group1_block1" else 2
            o = self.activate(self.norm(h, block, "norm1"))
            z = convolve(o, params["conv1"]["kernel"], stride)
            z = self.activate(self.norm(z, block, "norm2"))
            if "shortcut" in params:
                h = convolve(o, params["shortcut"]["kernel"], stride)
            h = h + convolve(z, params["conv2"]["kernel"])
        features = self.activate(self.norm(h, "norm")).mean((1, 2))
        head = self.params["logits"]
        return features @ head["kernel"] + head["bias"], features

    def resnet(self, h):
        h = convolve(h, self.params["conv"]["kernel"], 2)
        h = self.activate(self.norm(h, "norm"))
        wide = np.pad(h, [(0, 0), (1, 1), (1, 1), (0, 0)], constant_values=-np.inf)
        h = patches(wide, 3, 2).max((3, 4))
        for block in ("stage1_block1", "stage2_block1", "stage2_block2"):
            params, stride = self.params[block], 2 if block == "stage2_block1" else 1
            z = convolve(h, params["conv1"]["kernel"])
            z = self.activate(self.norm(z, block, "norm1"))
            z = convolve(z, params["conv2"]["kernel"], stride)
            z = self.activate(self.norm(z, block, "norm2"))
            z = self.norm(convolve(z, params["conv3"]["kernel"]), block, "norm3")
            if "shortcut" in params:
                h = convolve(h, params["shortcut"]["kernel"], stride)
                h = self.norm(h, block, "shortcut_norm")
            h = self.activate(h + z)
        features, head = h.mean((1, 2)), self.params["logits"]
        return features @ head["kernel"] + head["bias"], features

    def resnext(self, h):
        for stage in (1, 2, 3):
            h = convolve(h, self.params[f"conv{stage}"]["kernel"])
            h = self.norm(h, f"norm{stage}", "norm")
            h = self.activate(h + self.params[f"norm{stage}"]["bias"])
            if stage > 1:
                h = patches(h, 2, 2).mean((3, 4))
            block, c = f"stage{stage}_block1", h.shape[-1]
            params = self.params[block]
            z = convolve(h, params["conv1"]["kernel"])
            z = self.activate(self.norm(z, block, "norm1"))
            first, second = np.split(params["conv2"]["kernel"], 2, axis=-1)
            z = np.concatenate(
                [convolve(z[..., :c], first), convolve(z[..., c:], second)], -1
            )
            z = self.norm(z, block, "norm2")
            h = self.activate(h + (z[..., :c] + z[..., c:]) / 2)
        features = h.mean((1, 2))
        h = self.norm(features @ self.params["logits"]["kernel"], "logits_norm", "norm")
        return self.activate(h + self.params["logits_norm"]["bias"]), features


def patches(x, size, stride):
    """Returns windows (B, H', W', size, size, C)."""
    view = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))
    return np.moveaxis(view[:, ::stride, ::stride], 3, -1)


def convolve(x, kernel, stride=1):
    size = kernel.shape[0]
    pad = (size // 2, size // 2)
    x = np.pad(x, [(0, 0), pad, pad, (0, 0)])
    return np.einsum("bhwijc,ijck->bhwk", patches(x, size, stride), kernel)


def smooth(x):
    z = np.clip(x, -0.5, 0.5) + 0.5
    return np.where(np.abs(x) < 0.5, z**3 - z**4 / 2, np.maximum(x, 0))


# ResNeXt34 is tested in its authors' form, with a smooth activation, also on logits.
OPTIONS = {
    "wide": {},
    "resnet": {},
    "resnext": {"activation": "smooth_relu", "logit_activation": True},
}
NETWORKS = pytest.mark.parametrize("name", list(SHAPES))


@functools.cache
def everything(name):
    module = network(name, dtype=jnp.float64, **OPTIONS[name])
    return jax.jit(functools.partial(module.apply, outputs="all"))


@NETWORKS
def test_matches_an_independent_forward_pass(name):
    with jax.enable_x64(True):
        actual = everything(name)(variables(name), images(name))
        actual = jax.tree.map(np.asarray, actual)
    act = smooth if OPTIONS[name] else functools.partial(np.maximum, 0)
    reference = Reference(name, act)
    logits, features = getattr(reference, name)((images(name) - MEAN) / STD)
    assert actual.logits.dtype == jnp.float64
    np.testing.assert_allclose(actual.features, features, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(actual.logits, logits, rtol=1e-9, atol=1e-12)
    assert len(actual.preactivations) == len(reference.units)
    for ours, expected in zip(actual.preactivations, reference.units, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-12)
    if OPTIONS[name]:
        assert np.all(actual.logits >= 0)


@NETWORKS
def test_rows_are_independent_in_inference(name):
    changed = images(name)
    changed[1:] = 0.25
    with jax.enable_x64(True):
        actual = everything(name)(variables(name), images(name)).logits
        other = everything(name)(variables(name), changed).logits
    np.testing.assert_array_equal(actual[0], other[0])
    assert np.abs(actual[1] - other[1]).max() > 1e-3


@functools.cache
def step(name, rematerialize):
    """Gradients and new statistics in training, as a jitted function."""
    module = network(name, dtype=jnp.float64, rematerialize=rematerialize)

    def loss(params: Any, stats: Any, x: jax.Array) -> Any:
        found, new = module.apply(
            {"params": params, "batch_stats": stats},
            x,
            train=True,
            outputs="all",
            mutable=["batch_stats"],
        )
        units = sum(jnp.sum(unit**2) for unit in found.preactivations)
        return jnp.sum(found.logits**2) + 1e-2 * units, (found, new["batch_stats"])

    return jax.jit(jax.grad(loss, argnums=(0, 2), has_aux=True))


def arguments(name):
    return variables(name)["params"], variables(name)["batch_stats"], images(name)


@NETWORKS
def test_rematerialization_changes_no_name_value_or_gradient(name):
    x = jax.ShapeDtypeStruct(SHAPES[name], jnp.float32)
    plain, again = (
        jax.eval_shape(network(name, rematerialize=r).init, jax.random.key(0), x)
        for r in (False, True)
    )
    assert jax.tree.all(jax.tree.map(lambda a, b: a == b, plain, again))
    with jax.enable_x64(True):
        plain, again = (step(name, r) for r in (False, True))
        assert " remat" in str(again.trace(*arguments(name)).jaxpr)
        found, expected = again(*arguments(name)), plain(*arguments(name))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9),
        found,
        expected,
    )


@NETWORKS
def test_training_moves_every_statistic_towards_that_of_the_batch(name):
    with jax.enable_x64(True):
        _, (_, new) = step(name, False)(*arguments(name))
        new = jax.tree.map(np.asarray, new)
    old = variables(name)["batch_stats"]
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max() > 1e-3, new, old)
    assert jax.tree.structure(moved) == jax.tree.structure(old)
    assert jax.tree.all(moved)
    assert jax.tree.all(jax.tree.map(lambda leaf: leaf.dtype == np.float64, new))
    first = {"wide": "conv", "resnet": "conv", "resnext": "conv1"}[name]
    kernel = variables(name)["params"][first]["kernel"]
    h = (images(name) - MEAN) / STD
    h = convolve(h, kernel, 2 if name == "resnet" else 1)
    for path in (("group1_block1", "norm1"), ("norm",), ("norm1", "norm")):
        if path[0] in old and (name == "wide") == (len(path[0]) > 5):
            before, after = old, new
            for part in path:
                before, after = before[part], after[part]
            expected = 0.9 * before["mean"] + 0.1 * h.mean((0, 1, 2))
            np.testing.assert_allclose(after["mean"], expected)
            expected = 0.9 * before["var"] + 0.1 * h.var((0, 1, 2))
            np.testing.assert_allclose(after["var"], expected)
            return
    raise AssertionError("no first norm")


@NETWORKS
def test_smooth_networks_have_hessians_that_rematerialization_keeps(name):
    module, again = (
        network(name, dtype=jnp.float64, activation="smooth_relu", rematerialize=r)
        for r in (False, True)
    )
    weights = variables(name)

    def loss(module: Any, x: jax.Array) -> jax.Array:
        return jnp.sum(jax.nn.logsumexp(module.apply(weights, x), axis=1))

    gradient = jax.jit(jax.grad(functools.partial(loss, module)))
    # By forward over reverse mode, and by reverse mode over a linearisation.
    x = images(name)
    v = np.random.default_rng(3).normal(size=x.shape)
    hessian = jax.jit(
        lambda x: jax.jvp(jax.grad(functools.partial(loss, again)), (x,), (v,))[1]
    )
    with jax.enable_x64(True):
        product = hessian(x)
        difference = (gradient(x + 1e-5 * v) - gradient(x - 1e-5 * v)) / 2e-5
    assert np.abs(product).max() > 1e-3
    np.testing.assert_allclose(
        product, difference, rtol=1e-3, atol=1e-3 * np.abs(product).max()
    )


@NETWORKS
def test_bfloat16_keeps_parameters_statistics_and_logits_in_float32(name):
    module = network(name, dtype=jnp.bfloat16)
    x = jax.ShapeDtypeStruct(SHAPES[name], jnp.float32)
    weights = jax.eval_shape(module.init, jax.random.key(0), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(weights)} == {np.dtype("float32")}
    found, new = jax.eval_shape(
        functools.partial(
            module.apply, train=True, outputs="all", mutable=["batch_stats"]
        ),
        weights,
        x,
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(new)} == {np.dtype("float32")}
    assert found.logits.dtype == jnp.float32
    assert found.features.dtype == jnp.bfloat16
    assert {unit.dtype for unit in found.preactivations} == {jnp.dtype("bfloat16")}
    jaxpr = str(jax.make_jaxpr(module.apply)(weights, x))
    products = [line for line in jaxpr.splitlines() if "conv_general" in line]
    assert products
    assert all("bf16" in line for line in products)
