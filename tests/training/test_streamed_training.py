"""Training on images that stay on disk: paper O's ImageNet recipe, tiny."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

from opnorm import data, runs, training
from opnorm.training import feed, plan, presets


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of 2 x 12 images of several sizes."""
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 2)):
        for label in range(2):
            place = folder / split / f"class{label}"
            place.mkdir(parents=True)
            for number in range(count):
                size = (40 + 4 * number, 60 - 2 * number, 3)
                pixels = generator.integers(0, 128, size, np.uint8) + 100 * label
                Image.fromarray(pixels).save(place / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def recipe(images):
    """The preset with sizes and data of a test.

    And with a network that compiles fast and takes both sizes; ResNet-50 alone would
    take a minute here.
    """
    return dataclasses.replace(
        presets.get_preset("finlay_imagenet_l2_0.1").config,
        dataset=f"image_folder:{images}",
        phases="0:24:8:0.08,1:32:16:0.5",
        learning_rates="0:0.1,1:0.1,1:0.01,2:0",
        epochs=2,
        model="cnn7",
        width=2,
    )


def one_device():
    return training.data_mesh(jax.devices()[:1])


def test_the_imagenet_recipe_runs_with_progressive_sizes_and_resumes(recipe, tmp_path):
    assert recipe.method == "gradient_regularization"
    stream = training.load_train_set(recipe)
    options = {"mesh": one_device(), "show_progress": False, "log_every": 1}
    result = training.train(
        recipe, directory=tmp_path, train_set=stream, checkpoint_every=3, **options
    )
    # An epoch of 3 batches of 8, and one of 1 batch of 16.
    assert result.step == 4
    lines = runs.read_metrics(tmp_path)
    assert [line["epoch"] for line in lines] == pytest.approx([1 / 3, 2 / 3, 1, 2])
    assert all(np.isfinite(line["penalty"]) for line in lines)
    again = training.train(recipe, directory=tmp_path, train_set=stream, **options)
    assert again.step == 4
    assert training.image_size(recipe) == 32
    shown = data.load(recipe.dataset, split="test", image_size=32)
    assert shown.images.shape == (4, 32, 32, 3)


def test_held_out_images_are_read_in_the_size_of_the_last_phase(recipe):
    config = dataclasses.replace(recipe, validation_fraction=0.3)
    held_out = training.load_validation_set(config)
    stream = training.load_train_set(config)
    assert held_out.image_shape == (32, 32, 3)
    assert len(held_out) + len(stream) == 24
    kept = stream.centre_crops(np.arange(len(stream)), image_size=32).images
    whole = data.load(recipe.dataset, split="train", image_size=32).images
    found = sorted(bytes(image) for part in (kept, held_out.images) for image in part)
    assert found == sorted(bytes(image) for image in whole)
    assert len(training.load_validation_set(config, limit=2)) == 2


def test_batches_are_those_of_the_plan_wherever_they_begin(recipe):
    stream = training.load_train_set(recipe)
    made = plan.make(recipe, len(stream))
    sharding = training.sharded(training.data_mesh())

    def read(first):
        batches = feed.batches(stream, made, 7, first, sharding, augment=True)
        return [jax.tree.map(np.asarray, batch) for batch in batches]

    whole = read(0)
    shapes = [images.shape for images, _, _ in whole]
    assert shapes == [(8, 24, 24, 3)] * 3 + [(16, 32, 32, 3)]
    for step, (_, labels, indices) in enumerate(whole):
        np.testing.assert_array_equal(indices, made.indices(7, step))
        expected = stream.centre_crops(indices, image_size=8).labels
        np.testing.assert_array_equal(labels, expected)
    for batch, same in zip(read(2), whole[2:], strict=True):
        for a, b in zip(batch, same, strict=True):
            np.testing.assert_array_equal(a, b)


def test_without_augmentation_images_are_cropped_at_the_middle(recipe):
    stream = training.load_train_set(recipe)
    made = plan.make(recipe, len(stream))
    sharding = training.sharded(one_device())
    images, _, indices = next(feed.batches(stream, made, 7, 0, sharding, augment=False))
    expected = stream.centre_crops(np.asarray(indices), image_size=24)
    np.testing.assert_array_equal(images, expected.images)
