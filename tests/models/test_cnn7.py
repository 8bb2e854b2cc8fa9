"""CNN7 against an independent NumPy / SciPy version and the paper's numbers."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate

from opnorm import models

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


@functools.cache
def _compiled(train: bool, mean: Any = MEAN, std: Any = STD) -> Any:
    """A small network in float64, and its compiled forward pass."""
    model = models.CNN7(width=2, mean=mean, std=std, dtype=jnp.float64)
    options = {"train": True, "mutable": ["batch_stats"]} if train else {}
    return model, jax.jit(functools.partial(model.apply, outputs="all", **options))


@functools.cache
def _variables(model: Any, shape: tuple[int, ...]) -> Any:
    """Parameters and running statistics, all of them random."""
    images = jax.ShapeDtypeStruct(shape, model.dtype)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    rng = np.random.default_rng(1)

    def randomize(path: Any, leaf: jax.Array) -> np.ndarray:
        name = path[-1].key
        if name == "kernel":
            fan_in = np.prod(leaf.shape[:-1])
            return rng.normal(0, fan_in**-0.5, leaf.shape).astype(leaf.dtype)
        low, high = (0.5, 2.0) if name == "var" else (-0.3, 0.3)
        return rng.uniform(low, high, leaf.shape).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(randomize, variables)


def _reference(variables: Any, images: np.ndarray, mean: Any, std: Any) -> Any:
    """Logits, features and pre-activations, one channel and one pixel at a time."""
    parameters, statistics = variables["params"], variables["batch_stats"]
    h = (images - np.asarray(mean)) / np.asarray(std)
    preactivations = []
    for index in range(1, 8):
        kernel = np.asarray(parameters[f"conv{index}"]["kernel"], np.float64)
        bias = np.asarray(parameters[f"conv{index}"]["bias"], np.float64)
        mode = "valid" if index == 7 else "same"
        maps = [
            [
                sum(
                    correlate(image[:, :, c], kernel[:, :, c, k], mode)
                    for c in range(image.shape[2])
                )
                for k in range(kernel.shape[3])
            ]
            for image in h
        ]
        h = np.moveaxis(np.array(maps), 1, 3) + bias
        norm = statistics[f"norm{index}"]
        h = (h - np.asarray(norm["mean"])) / np.sqrt(np.asarray(norm["var"]) + 1e-5)
        preactivations.append(h)
        h = np.maximum(h, 0)
        if index in (2, 4, 6, 7) and h.shape[1] > 1:
            h = _pool_reference(h)
    features = h.reshape(len(h), -1)
    head = parameters["logits"]
    return features @ head["kernel"] + head["bias"], features, preactivations


def _pool_reference(x: np.ndarray) -> np.ndarray:
    out = np.empty((x.shape[0], x.shape[1] // 2, x.shape[2] // 2, x.shape[3]), x.dtype)
    for i in range(out.shape[1]):
        for j in range(out.shape[2]):
            out[:, i, j] = x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].max((1, 2))
    return out


def _images(shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 1, shape).astype(dtype)


def test_has_the_parameters_and_relu_units_of_the_paper() -> None:
    model = models.CNN7()
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    sizes = [leaf.size for leaf in jax.tree.leaves(variables["params"])]
    assert sum(sizes) == 9_306_250

    everything = jax.eval_shape(
        lambda v, x: model.apply(v, x, outputs="all"), variables, images
    )
    assert sum(unit.size for unit in everything.preactivations) == 462_848
    chex.assert_shape(everything.features, (1, 1024))
    chex.assert_shape(everything.logits, (1, 10))


@pytest.mark.parametrize(
    ("shape", "mean", "std"),
    [
        ((2, 32, 32, 3), MEAN, STD),
        ((2, 28, 28, 1), 0.5, 0.5),
    ],
)
def test_matches_an_independent_forward_pass(
    shape: tuple[int, ...], mean: Any, std: Any
) -> None:
    images = _images(shape, np.float64)
    with jax.enable_x64(True):
        model, apply = _compiled(False, mean, std)
        variables = _variables(model, shape)
        actual = jax.tree.map(np.asarray, apply(variables, images))
    logits, features, preactivations = _reference(variables, images, mean, std)
    assert actual.logits.dtype == jnp.float64
    np.testing.assert_allclose(actual.features, features, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(actual.logits, logits, rtol=1e-9, atol=1e-12)
    assert len(actual.preactivations) == 7
    for ours, reference in zip(actual.preactivations, preactivations, strict=True):
        np.testing.assert_allclose(ours, reference, rtol=1e-9, atol=1e-12)


def test_logits_are_a_linear_layer_of_the_features() -> None:
    model: Any = models.CNN7(width=2, num_classes=4)
    images = _images((3, 32, 32, 3))
    variables = _variables(model, images.shape)

    @jax.jit
    def apply(x: jax.Array) -> tuple[models.Outputs, jax.Array]:
        everything = model.apply(variables, x, outputs="all")
        return everything, model.apply(variables, x)

    everything, logits = apply(images)
    head = variables["params"]["logits"]
    assert logits.shape == (3, 4)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(everything.logits, logits, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        np.asarray(everything.features) @ head["kernel"] + head["bias"],
        logits,
        rtol=1e-5,
        atol=1e-6,
    )


def test_rows_are_independent_in_inference_and_not_in_training() -> None:
    images = _images((2, 32, 32, 3), np.float64)
    changed = images.copy()
    changed[1:] = 0.25

    def change(train: bool) -> np.ndarray:
        """The first row alone, where the second one changes."""
        model, apply = _compiled(train)
        with jax.enable_x64(True):
            found = [
                apply(_variables(model, images.shape), x) for x in (images, changed)
            ]
        first, second = (np.asarray((x[0] if train else x).logits[0]) for x in found)
        return np.abs(first - second).max()

    assert change(train=False) == 0
    assert change(train=True) > 1e-3


def test_training_moves_running_statistics_towards_those_of_the_batch() -> None:
    images = _images((2, 32, 32, 3), np.float64)
    with jax.enable_x64(True):
        model, train = _compiled(True)
        variables = _variables(model, images.shape)
        _, new = jax.tree.map(np.asarray, train(variables, images))
    first = variables["params"]["conv1"]
    padded = np.pad((images - MEAN) / STD, [(0, 0), (1, 1), (1, 1), (0, 0)])
    taps = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    h = np.einsum("bhwcij,ijck->bhwk", taps, first["kernel"])
    first_map = h + first["bias"]
    old = variables["batch_stats"]["norm1"]
    moved = new["batch_stats"]["norm1"]
    chex.assert_trees_all_equal_shapes_and_dtypes(
        variables["batch_stats"], new["batch_stats"]
    )
    np.testing.assert_allclose(
        moved["mean"], 0.9 * old["mean"] + 0.1 * first_map.mean((0, 1, 2)), rtol=1e-9
    )
    # Flax keeps the biased variance, PyTorch the unbiased one.
    np.testing.assert_allclose(
        moved["var"], 0.9 * old["var"] + 0.1 * first_map.var((0, 1, 2)), rtol=1e-9
    )


def test_gradients_are_finite_even_for_constant_images() -> None:
    model = models.CNN7(width=2)
    images = np.zeros((2, 32, 32, 3), np.float32)
    variables = _variables(model, (2, 32, 32, 3))

    def loss(parameters: Any, x: jax.Array) -> jax.Array:
        logits, _ = model.apply(
            {**variables, "params": parameters}, x, train=True, mutable=["batch_stats"]
        )
        return (logits**2).sum()

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(variables["params"], images)
    chex.assert_tree_all_finite(gradients)


def test_bfloat16_keeps_parameters_statistics_and_logits_in_float32() -> None:
    model = models.CNN7(width=2, dtype=jnp.bfloat16)
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype("float32")}
    everything = jax.eval_shape(
        lambda v, x: model.apply(v, x, outputs="all"), variables, images
    )
    assert everything.logits.dtype == jnp.float32
    assert everything.features.dtype == jnp.bfloat16


def test_rematerialization_changes_no_name_value_or_gradient() -> None:
    images = _images((2, 24, 24, 3), np.float64)

    def step(rematerialize: bool) -> Any:
        model = models.CNN7(width=2, dtype=jnp.float64, rematerialize=rematerialize)

        def loss(parameters: Any, statistics: Any, x: jax.Array) -> Any:
            everything, new = model.apply(
                {"params": parameters, "batch_stats": statistics},
                x,
                train=True,
                outputs="all",
                mutable=["batch_stats"],
            )
            return (everything.logits**2).sum(), (everything, new)

        return jax.jit(jax.grad(loss, argnums=(0, 2), has_aux=True))

    with jax.enable_x64(True):
        plain = models.CNN7(width=2, dtype=jnp.float64)
        variables = _variables(plain, images.shape)
        again = jax.eval_shape(
            plain.clone(rematerialize=True).init, jax.random.key(0), images
        )
        chex.assert_trees_all_equal_shapes_and_dtypes(variables, again)
        arguments = variables["params"], variables["batch_stats"], images
        rematerialized = step(True)
        assert " remat" in str(rematerialized.trace(*arguments).jaxpr)
        chex.assert_trees_all_close(
            rematerialized(*arguments), step(False)(*arguments), rtol=1e-7, atol=1e-9
        )


def test_names_are_those_of_saved_checkpoints() -> None:
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    tree = jax.eval_shape(models.CNN7(width=2).init, jax.random.key(0), images)
    names = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    }
    assert names == {
        *(f"params/conv{i}/{leaf}" for i in range(1, 8) for leaf in ("kernel", "bias")),
        *(
            f"batch_stats/norm{i}/{leaf}"
            for i in range(1, 8)
            for leaf in ("mean", "var")
        ),
        "params/logits/kernel",
        "params/logits/bias",
    }


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 32, 32, 3), np.uint8), "images has dtype uint8"),
        (np.zeros((32, 32, 3), np.float32), "images has shape"),
        (np.zeros((0, 32, 32, 3), np.float32), "images has shape"),
        (np.zeros((2, 16, 32, 3), np.float32), "at least 24"),
    ],
)
def test_rejects_images_it_cannot_take(images: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        models.CNN7(width=2).init(jax.random.key(0), images)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": (0.5, 0.5)}, "mean is"),
        ({"std": (0.5, 0.0, 0.5)}, "std is"),
        ({"width": 0}, "width is 0"),
        ({"num_classes": 0}, "num_classes is 0"),
        ({"activation": "gelu"}, "activation is 'gelu'"),
    ],
)
def test_rejects_attributes_it_cannot_use(options: Any, message: str) -> None:
    images = np.zeros((1, 32, 32, 3), np.float32)
    with pytest.raises(ValueError, match=message):
        models.CNN7(**{"width": 2, **options}).init(jax.random.key(0), images)


def test_rejects_unknown_outputs() -> None:
    with pytest.raises(ValueError, match="outputs is 'features'"):
        models.CNN7(width=2).init(
            jax.random.key(0), jnp.zeros((1, 32, 32, 3)), outputs="features"
        )
