"""The validation split against its definition, whatever order and limit there are."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from opnorm import data
from opnorm.data import holding_out

FRACTION = 0.3


def rows(dataset):
    """The different images of a data set, as a set of byte strings."""
    return {image.tobytes() for image in dataset.images}


def _number(identity):
    """The definition of the split: an image is held out below the fraction."""
    digest = hashlib.sha256(b"opnorm validation split\n" + identity).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


@pytest.fixture(scope="module")
def whole():
    """60 different images of 3 classes, and 40 copies of some under other labels."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (60, 4, 4, 3), dtype=np.uint8)
    labels = np.arange(60, dtype=np.int32) % 3
    copied = generator.integers(60, size=40)
    return data.Dataset(
        np.concatenate([images, images[copied]]),
        np.concatenate([labels, (labels[copied] + 1) % 3]),
        ("a", "b", "c"),
        "x",
        "x",
    )


def test_copies_stay_together_and_every_example_is_on_one_side(whole):
    train, validation = data.split_validation(whole, FRACTION)
    assert len(train) + len(validation) == len(whole)
    assert not rows(train) & rows(validation)
    assert rows(train) | rows(validation) == rows(whole)
    for part in (train, validation):
        found = sorted(zip(map(bytes, part.images), part.labels, strict=True))
        kept = [bytes(image) in rows(part) for image in whole.images]
        expected = zip(map(bytes, whole.images[kept]), whole.labels[kept], strict=True)
        assert found == sorted(expected)
        # One example of each class in turn, as long as there is one of each.
        least = np.bincount(part.labels).min()
        np.testing.assert_array_equal(part.labels[: 3 * least], [0, 1, 2] * least)


def test_the_choice_is_the_hash_of_each_image_alone(whole):
    def number(image):
        return _number(np.array([4, 4, 3], "<i8").tobytes() + image.tobytes())

    _, validation = data.split_validation(whole, FRACTION)
    expected = {i.tobytes() for i in whole.images if number(i) < FRACTION}
    assert rows(validation) == expected
    # Another order and other examples beside them move none.
    turned = data.Dataset(
        whole.images[::-1], whole.labels[::-1], ("a", "b", "c"), "", ""
    )
    assert rows(data.split_validation(turned, FRACTION)[1]) == expected
    few = whole.slice(0, 30)
    assert rows(data.split_validation(few, FRACTION)[1]) == expected & rows(few)
    # A larger fraction holds out the same images and more.
    assert expected < rows(data.split_validation(whole, 2 * FRACTION)[1])


def test_the_fraction_is_that_of_many_images():
    names = (str(number).encode() for number in range(20_000))
    found = holding_out.choose(names, 20_000, 0.1).mean()
    # Four standard deviations of a binomial fraction.
    assert abs(found - 0.1) < 4 * np.sqrt(0.1 * 0.9 / 20_000)


def test_the_embedded_images_are_split_before_the_limit_and_the_crop():
    options = {"split": "validation", "validation_fraction": 0.1}
    validation = data.load("cifar10_mini", **options)
    assert 700 < len(validation) < 1000
    train = data.load("cifar10_mini", split="train", validation_fraction=0.1, limit=500)
    assert len(train) == 500
    assert not rows(train) & rows(validation)
    np.testing.assert_array_equal(np.bincount(train.labels), [50] * 10)
    cropped = data.load("cifar10_mini", **options, image_size=20)
    np.testing.assert_array_equal(cropped.images, validation.images[:, 6:26, 6:26])
    few = data.load("cifar10_mini", **options, limit=30)
    assert rows(few) < rows(validation)
    assert not rows(validation) & rows(data.load("cifar10_mini", split="test"))


@pytest.mark.parametrize(
    ("kind", "hashed"),
    [
        ("folder", False),
        ("folder", True),
        ("image_folder", False),
        ("image_folder", True),
        ("tiny_imagenet", False),
    ],
)
def test_folders_are_split_by_name_or_content(kind, hashed, tmp_path: Path):
    if kind == "tiny_imagenet":
        (tmp_path / "wnids.txt").write_text("a\nb\n")
    root = tmp_path if hashed else tmp_path / "train"
    for number in range(60):
        folder = root / "ab"[number % 2] / ("images" if kind == "tiny_imagenet" else "")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.full((8, 8, 3), number, np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    name = f"{kind}:{tmp_path}"
    size = {} if kind == "folder" else {"image_size": 8, "resize": 8}

    def values(split, fraction=FRACTION):
        found = data.load(name, split=split, validation_fraction=fraction, **size)
        return set(found.images[:, 0, 0, 0].tolist()), found

    train, train_set = values("train")
    validation, validation_set = values("validation")
    everything, _ = values("train", 0.0)
    assert not train & validation
    assert train | validation == everything
    assert 6 < len(validation) < 30
    assert set(train_set.labels[:2]) == set(validation_set.labels[:2]) == {0, 1}
    if hashed:
        assert not values("test")[0] & everything
        assert values("test")[0] == values("test", 0.0)[0]
    if kind == "folder":
        return
    expected = {
        int(file.stem)
        for file in root.rglob("*.png")
        if _number(bytes(file.relative_to(tmp_path))) < FRACTION
    }
    assert validation == expected & everything
    # A limit is drawn among those that are left, and the rest stays out.
    stream = data.open_stream(
        name, split="train", validation_fraction=FRACTION, limit=10
    )
    images = stream.centre_crops(np.arange(10), image_size=8, resize=8).images
    assert set(images[:, 0, 0, 0].tolist()) < train


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"split": "validation"},
            r"validation_fraction is 0\.0; the split 'validation'",
        ),
        (
            {"split": "train", "validation_fraction": 1.0},
            r"validation_fraction is 1\.0",
        ),
        ({"split": "train", "validation_fraction": -0.1}, r"must be in \[0, 1\)"),
        ({"split": "valid"}, "split is 'valid'; it may be train, validation, test"),
        ({"split": "train", "validation_fraction": 1e-9}, "holds out 0 of 8500"),
        ({"split": "train", "validation_fraction": 1 - 1e-9}, "holds out 8500 of 8500"),
    ],
)
def test_bad_splits_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        data.load("cifar10_mini", **options)
    if "holds" not in message:
        with pytest.raises(ValueError, match=message):
            data.open_stream("image_folder:/nowhere", **options)


def test_a_training_set_with_held_out_images_is_noticed(whole):
    train, validation = data.split_validation(whole, FRACTION)
    holding_out.check_disjoint(train, validation)
    with pytest.raises(ValueError, match=f"{len(validation)} of {len(validation)} ima"):
        holding_out.check_disjoint(whole, validation)
