"""tests: folders of class folders of pictures."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from opnorm import data


def _write(path: Path, seed: int, size: tuple[int, ...] = (5, 7, 3)) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def test_reads_split_folders_with_labels_in_sorted_order(tmp_path: Path) -> None:
    pictures = {
        (split, name, index): _write(
            tmp_path / split / name / f"{index}.png", seed=10 * label + index
        )
        for split in ("train", "test")
        for label, name in enumerate(("zebra", "ant"))
        for index in range(2)
    }
    (tmp_path / "train" / "ant" / "notes.txt").write_text("not a picture")
    (tmp_path / "train" / ".cache").mkdir()
    train = data.load(f"folder:{tmp_path}", split="train")
    assert train.class_names == ("ant", "zebra")
    np.testing.assert_array_equal(train.labels, [0, 1, 0, 1])
    assert train.images.shape == (4, 5, 7, 3)
    np.testing.assert_array_equal(train.images[0], pictures["train", "ant", 0])
    np.testing.assert_array_equal(train.images[3], pictures["train", "zebra", 1])
    test = data.load(f"folder:{tmp_path}", split="test")
    np.testing.assert_array_equal(test.images[1], pictures["test", "zebra", 0])
    assert tmp_path.name in test.description


def test_val_serves_as_test_and_keeps_the_labels_of_train(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        _write(tmp_path / "train" / name / "0.png", seed=0)
    _write(tmp_path / "val" / "c" / "0.png", seed=1)
    test = data.load(f"folder:{tmp_path}", split="test")
    assert test.class_names == ("a", "b", "c")
    np.testing.assert_array_equal(test.labels, [2])


def test_a_folder_without_splits_is_split_by_name(tmp_path: Path) -> None:
    def split(name: str) -> set[bytes]:
        dataset = data.load(f"folder:{tmp_path}", split=name)
        return {image.tobytes() for image in dataset.images}

    for index in range(60):
        _write(tmp_path / "ab"[index % 2] / f"{index}.png", seed=index, size=(2, 2, 3))
    train, test = split("train"), split("test")
    assert not train & test
    assert len(train | test) == 60
    assert 4 <= len(test) <= 22
    for index in range(60, 80):
        _write(tmp_path / "ab"[index % 2] / f"{index}.png", seed=index, size=(2, 2, 3))
    assert split("train") > train
    assert split("test") >= test


def test_grey_pictures_have_one_channel_unless_others_have_three(
    tmp_path: Path,
) -> None:
    grey = _write(tmp_path / "train" / "a" / "0.png", seed=0, size=(4, 4))
    dataset = data.load(f"folder:{tmp_path}", split="train")
    np.testing.assert_array_equal(dataset.images, grey[None, :, :, None])

    colour = _write(tmp_path / "train" / "b" / "0.png", seed=1, size=(4, 4, 3))
    dataset = data.load(f"folder:{tmp_path}", split="train")
    np.testing.assert_array_equal(dataset.images[0], np.stack([grey] * 3, -1))
    np.testing.assert_array_equal(dataset.images[1], colour)


def test_names_a_picture_that_is_damaged(tmp_path: Path) -> None:
    _write(tmp_path / "train" / "a" / "0.png", seed=0)
    whole = (tmp_path / "train" / "a" / "0.png").read_bytes()
    for content in (b"", b"no picture", whole[: len(whole) // 2]):
        (tmp_path / "train" / "a" / "1.png").write_bytes(content)
        with pytest.raises(ValueError, match=r"a/1\.png cannot be read") as error:
            data.load(f"folder:{tmp_path}", split="train")
        assert ("it is empty" in str(error.value)) == (content == b"")


@pytest.mark.parametrize("split", ["train", "test"])
def test_names_a_class_without_pictures(tmp_path: Path, split: str) -> None:
    for index in range(20):
        _write(tmp_path / "all" / "b" / f"{index}.png", seed=index)
        _write(tmp_path / "divided" / split / "b" / f"{index}.png", seed=index)
    (tmp_path / "divided" / split / "a").mkdir()
    (tmp_path / "all" / "a").mkdir()
    (tmp_path / "all" / "a" / "0.gif").write_bytes(b"not one of the formats")
    with pytest.raises(ValueError, match=r"all/a is a class without pictures; .*\.png"):
        data.load(f"folder:{tmp_path / 'all'}", split=split)
    if split == "train":
        with pytest.raises(ValueError, match="divided/train/a is a class without"):
            data.load(f"folder:{tmp_path / 'divided'}", split=split)
        with pytest.raises(ValueError, match="divided/train/a is a class without"):
            data.open_stream(f"image_folder:{tmp_path / 'divided'}", split=split)
    else:
        # Test pictures may lack a class.
        found = data.load(f"folder:{tmp_path / 'divided'}", split=split)
        assert found.class_names == ("a", "b") and set(found.labels) == {1}


def test_names_a_picture_of_another_size_or_depth(tmp_path: Path) -> None:
    _write(tmp_path / "train" / "a" / "0.png", seed=0)
    _write(tmp_path / "train" / "a" / "1.png", seed=0, size=(7, 5, 3))
    with pytest.raises(ValueError, match=r"a/1\.png has height and width \(7, 5\)"):
        data.load(f"folder:{tmp_path}", split="train")
    Image.fromarray(np.zeros((5, 7), np.uint16)).save(tmp_path / "train/a/1.png")
    with pytest.raises(ValueError, match=r"a/1\.png .* more than 8 bits"):
        data.load(f"folder:{tmp_path}", split="train")


def test_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        data.load(f"folder:{tmp_path / 'nowhere'}", split="train")
    with pytest.raises(FileNotFoundError, match="no pictures for split 'train'"):
        data.load(f"folder:{tmp_path}", split="train")
    _write(tmp_path / "train" / "a" / "0.png", seed=0)
    with pytest.raises(FileNotFoundError, match="no folder test or val"):
        data.load(f"folder:{tmp_path}", split="test")
    _write(tmp_path / "test" / "b" / "0.png", seed=0)
    with pytest.raises(ValueError, match="test/b is a class that train lacks"):
        data.load(f"folder:{tmp_path}", split="test")
