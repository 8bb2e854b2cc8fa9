"""Arrays of any shape are read from a file as examples, and others are refused."""

import numpy as np
import pytest

from opnorm import data, training

X = np.random.default_rng(0).uniform(size=(6, 4))
Y = np.array([0, 0, 2, 1, 2, 0])


def save(path, **arrays):
    np.savez(path / "table.npz", **arrays)
    return f"npz:{path / 'table.npz'}"


def test_splits_are_read_in_turn_of_classes(tmp_path):
    name = save(
        tmp_path, x=X, y=Y, x_train=X[:3], y_train=np.array([1, 3, 3], np.uint8)
    )
    test = data.load(name, split="test")
    assert test.class_names == ("0", "1", "2", "3")
    order = [0, 3, 2, 1, 4, 5]
    np.testing.assert_array_equal(test.images, X[order].astype(np.float32))
    np.testing.assert_array_equal(test.labels, Y[order])
    assert test.labels.dtype == np.int32
    assert len(data.load(name, split="train")) == 3
    assert data.load(name, split="test", limit=3).labels.tolist() == [0, 1, 2]
    parts = [
        data.load(name, split=split, validation_fraction=0.5)
        for split in ("train", "validation")
    ]
    assert sum(map(len, parts)) == 3


def test_images_of_bytes_stay_bytes(tmp_path):
    images = np.arange(48, dtype=np.uint8).reshape(2, 2, 4, 3)
    names = np.array(["cat", "dog"])
    found = data.load(
        save(tmp_path, x=images, y=Y[:2], class_names=names), split="test", image_size=2
    )
    np.testing.assert_array_equal(found.images, images[:, :, 1:3])
    assert found.class_names == ("cat", "dog")


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": X}, "has no array y for the split 'test'; it has x"),
        ({"x": X * 2, "y": Y}, r"from 0.0\d+ to 1.\d+; floating examples must be in"),
        ({"x": np.full((6, 4), np.nan), "y": Y}, "from nan to nan; floating"),
        ({"x": X, "y": Y[:5]}, r"labels is int64 of shape \(5,\)"),
        ({"x": X, "y": np.eye(6)}, r"y of .* is float64 of shape \(6, 6\)"),
        ({"x": X > 0.5, "y": Y}, "images is bool .* or float32 of shape"),
        ({"x": X, "y": Y - 1}, "labels of .* are no class, such as -1"),
        ({"x": X, "y": Y, "class_names": np.arange(3)}, "must be .K,. strings"),
        ({"x": np.array([{}] * 6), "y": Y}, r"no \.npz file of plain arrays"),
    ],
)
def test_arrays_that_are_no_examples_are_named(arrays, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        data.load(save(tmp_path, **arrays), split="test")


def test_other_files_and_uses_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        data.load(f"npz:{tmp_path}/absent.npz", split="test")
    np.save(tmp_path / "x.npy", X)
    with pytest.raises(ValueError, match=r"no \.npz file of plain arrays"):
        data.load(f"npz:{tmp_path}/x.npy", split="test")
    twice = {"x_train": np.tile(X, (2, 1)), "y_train": np.tile(Y, 2)}
    name = save(tmp_path, x=X, y=Y, **twice)
    with pytest.raises(ValueError, match=r"image_size is 2; examples of .* leave it"):
        data.load(name, split="test", image_size=2)
    config = training.Config(dataset=name, batch_size=8, model="mlp1", width=2)
    with pytest.raises(ValueError, match=r"float32 examples of shape \(4,\); networks"):
        training.train(config, show_progress=False)
