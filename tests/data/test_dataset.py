"""Loading by name, limits, conversion to floats."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opnorm import data
from opnorm.data import dataset as dataset_lib


@pytest.mark.parametrize("name", ["cifar11", "folder:", "folder", ""])
def test_unknown_names_are_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError, match=r"cifar10_mini, cifar10, .*folder:/path"):
        data.check_name(name)
    with pytest.raises(ValueError, match="is unknown"):
        data.load(name, split="train")


@pytest.mark.parametrize("name", ["cifar10_mini", "mnist", "folder:/path"])
def test_known_names_pass_without_reading_anything(name: str) -> None:
    data.check_name(name)


def test_unknown_splits_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"split is 'dev'.*train, validation, test"):
        data.load("cifar10_mini", split="dev")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"labels": np.array([0, -1])},
            "1 of 2 labels of 'x' are no class, such as -1",
        ),
        ({"labels": np.array([2, 3])}, "2 of 2 labels .* as 2; there are 2 classes"),
        (
            {"labels": np.array([0.0, 1.0])},
            "labels is float64 of shape .*must be integ",
        ),
        ({"labels": np.array([0])}, r"labels is int64 of shape \(1,\).*shape \(2,\)"),
        ({"images": np.zeros((2, 4, 4, 3))}, "images is float64 .*must be uint8"),
        ({"images": np.zeros((2, 48), np.uint8)}, r"of shape \(2, 48\); .*\(N, H, W"),
    ],
)
def test_arrays_that_are_no_dataset_are_refused(changes: dict, words: str) -> None:
    arrays = {"images": np.zeros((2, 4, 4, 3), np.uint8), "labels": np.array([0, 1])}
    data.Dataset(**arrays, class_names=("a", "b"), name="x", description="x")
    with pytest.raises(ValueError, match=words):
        data.Dataset(
            **(arrays | changes), class_names=("a", "b"), name="x", description="x"
        )


def test_limit_draws_a_balanced_subset_that_depends_on_the_seed() -> None:
    whole = data.load("cifar10_mini", split="test")
    part = data.load("cifar10_mini", split="test", limit=25, seed=1)
    counts = np.bincount(part.labels, minlength=10)
    assert len(part) == 25
    assert counts.min() == 2
    assert counts.max() == 3
    again = data.load("cifar10_mini", split="test", limit=25, seed=1)
    other = data.load("cifar10_mini", split="test", limit=25, seed=2)
    np.testing.assert_array_equal(part.images, again.images)
    assert (part.images != other.images).any()
    labels = {
        image.tobytes(): label
        for image, label in zip(whole.images, whole.labels, strict=True)
    }
    for image, label in zip(part.images, part.labels, strict=True):
        assert labels[image.tobytes()] == label
    assert len(data.load("cifar10_mini", split="test", limit=5000)) == 1000


@pytest.mark.parametrize(("limit", "seed"), [(0, 0), (1, -1)])
def test_limit_and_seed_have_lower_bounds(limit: int, seed: int) -> None:
    with pytest.raises(ValueError, match="limit is 0" if limit == 0 else "seed is -1"):
        data.load("cifar10_mini", split="test", limit=limit, seed=seed)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 4), max_size=30))
def test_interleaving_balances_every_prefix(labels: list[int]) -> None:
    order = dataset_lib.interleave_classes(labels)
    assert sorted(order) == list(range(len(labels)))
    taken = np.zeros(5, int)
    left = np.bincount(labels, minlength=5) if labels else np.zeros(5, int)
    last = [-1] * 5
    for index in order:
        label = labels[index]
        assert taken[label] == taken[left > 0].min()
        assert index > last[label]
        taken[label] += 1
        left[label] -= 1
        last[label] = index


@pytest.mark.parametrize("jit", [False, True])
def test_to_float_divides_by_255(jit: bool) -> None:
    images = np.arange(256, dtype=np.uint8).reshape(4, 8, 8, 1)
    convert = jax.jit(data.to_float) if jit else data.to_float
    pixels = convert(images)
    assert pixels.dtype == jnp.float32
    np.testing.assert_allclose(pixels, images / 255.0, rtol=1e-7)
    assert pixels.max() == 1
    assert data.to_float(images, dtype=jnp.bfloat16).max() == 1


def test_to_float_refuses_what_is_float_already() -> None:
    with pytest.raises(ValueError, match="images has dtype float32"):
        data.to_float(np.zeros((1, 2, 2, 1), np.float32))


def test_importing_loads_neither_readers_nor_the_image_decoder() -> None:
    code = (
        "import sys, opnorm.data;"
        "heavy = ('PIL', 'grain', 'tensorflow_datasets');"
        "print([m for m in heavy if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
