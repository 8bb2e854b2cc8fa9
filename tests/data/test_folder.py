"""Folders of class folders of images: what is read, left out and refused."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from opnorm import data
from opnorm.data import decoding


def _write(path: Path, seed: int, size: tuple[int, ...] = (5, 7, 3)) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def test_reads_split_folders_with_labels_in_sorted_order(tmp_path: Path) -> None:
    images = {
        (split, name, index): _write(
            tmp_path / split / name / f"{index}.png", seed=10 * label + index
        )
        for split in ("train", "test")
        for label, name in enumerate(("zebra", "ant"))
        for index in range(2)
    }
    (tmp_path / "train" / "ant" / "notes.txt").write_text("not an image")
    (tmp_path / "train" / ".cache").mkdir()
    train = data.load(f"folder:{tmp_path}", split="train")
    assert train.class_names == ("ant", "zebra")
    np.testing.assert_array_equal(train.labels, [0, 1, 0, 1])
    assert train.images.shape == (4, 5, 7, 3)
    np.testing.assert_array_equal(train.images[0], images["train", "ant", 0])
    np.testing.assert_array_equal(train.images[3], images["train", "zebra", 1])
    test = data.load(f"folder:{tmp_path}", split="test")
    np.testing.assert_array_equal(test.images[1], images["test", "zebra", 0])
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


def test_grey_images_have_one_channel_unless_others_have_three(
    tmp_path: Path,
) -> None:
    grey = _write(tmp_path / "train" / "a" / "0.png", seed=0, size=(4, 4))
    dataset = data.load(f"folder:{tmp_path}", split="train")
    np.testing.assert_array_equal(dataset.images, grey[None, :, :, None])

    colour = _write(tmp_path / "train" / "b" / "0.png", seed=1, size=(4, 4, 3))
    dataset = data.load(f"folder:{tmp_path}", split="train")
    np.testing.assert_array_equal(dataset.images[0], np.stack([grey] * 3, -1))
    np.testing.assert_array_equal(dataset.images[1], colour)


def test_names_an_image_that_is_damaged(tmp_path: Path) -> None:
    _write(tmp_path / "train" / "a" / "0.png", seed=0)
    whole = (tmp_path / "train" / "a" / "0.png").read_bytes()
    for content in (b"", b"no image", whole[: len(whole) // 2]):
        (tmp_path / "train" / "a" / "1.png").write_bytes(content)
        with pytest.raises(ValueError, match=r"a/1\.png cannot be read") as error:
            data.load(f"folder:{tmp_path}", split="train")
        assert ("it is empty" in str(error.value)) == (content == b"")


@pytest.mark.parametrize("split", ["train", "test"])
def test_names_a_class_without_images(tmp_path: Path, split: str) -> None:
    for index in range(20):
        _write(tmp_path / "all" / "b" / f"{index}.png", seed=index)
        _write(tmp_path / "divided" / split / "b" / f"{index}.png", seed=index)
    (tmp_path / "divided" / split / "a").mkdir()
    (tmp_path / "all" / "a").mkdir()
    (tmp_path / "all" / "a" / "0.gif").write_bytes(b"not one of the formats")
    with pytest.raises(ValueError, match=r"all/a is a class without images; .*\.png"):
        data.load(f"folder:{tmp_path / 'all'}", split=split)
    if split == "train":
        with pytest.raises(ValueError, match="divided/train/a is a class without"):
            data.load(f"folder:{tmp_path / 'divided'}", split=split)
        with pytest.raises(ValueError, match="divided/train/a is a class without"):
            data.open_stream(f"image_folder:{tmp_path / 'divided'}", split=split)
    else:
        # Test images may lack a class.
        found = data.load(f"folder:{tmp_path / 'divided'}", split=split)
        assert found.class_names == ("a", "b")
        assert set(found.labels) == {1}


def test_every_damaged_image_is_named(tmp_path: Path) -> None:
    for index in range(9):
        _write(tmp_path / "train" / "ab"[index % 2] / f"{index}.png", seed=index)
    (tmp_path / "train" / "a" / "4.png").write_bytes(b"")
    (tmp_path / "train" / "b" / "5.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="2 of 9 images are damaged") as error:
        data.load(f"folder:{tmp_path}", split="train")
    assert "a/4.png cannot" in str(error.value)
    assert "b/5.png cannot" in str(error.value)
    stream = data.open_stream(f"image_folder:{tmp_path}", split="train")
    counted: list[int] = []
    with pytest.raises(ValueError, match=r"2 of 9 images are damaged: .*4.png .*5.png"):
        data.check_images(stream, on_progress=counted.append)
    assert counted == [9]
    # Only images that are used count; b/3.png is one of the two that are left.
    kept = data.Stream(stream.encoded, np.array([0, 3]), stream.name)
    data.check_images(kept)


def test_a_file_that_cannot_be_read_is_named_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(tmp_path / "train" / "a" / "0.png", seed=0)

    def refuse(*arguments: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(ValueError, match=r"a/0.png cannot be read: Permission denied"):
        data.load(f"folder:{tmp_path}", split="train")
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ValueError, match=r"train cannot be read: Permission denied"):
        data.load(f"folder:{tmp_path}", split="train")


def test_images_in_folders_below_a_class_are_read_in_torchvisions_order(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = ("a/1.png", "a/s/0.png", "a/s/t/0.PNG", "a/s-2/0.png", "b/0.png")
    for index, name in enumerate(names):
        _write(tmp_path / "train" / name, seed=index)
    _write(tmp_path / "train" / "a" / ".hidden" / "0.png", seed=9)
    listing = data.folder.list_images(str(tmp_path), "train")
    # ImageFolder sorts by folder as text ("s-2" before "s/t"), then by name.
    expected = sorted(
        (str(folder), str(file))
        for folder, file in ((Path(n).parent, n) for n in names if n.startswith("a"))
    )
    found = [os.path.relpath(f, tmp_path / "train") for f in listing.files]
    assert [name for name in found if name.startswith("a")] == [f for _, f in expected]
    assert sorted(found) == sorted(names)
    assert [name[0] for name in found] == ["ab"[label] for label in listing.labels]
    assert not caplog.records


def test_a_link_below_a_class_is_followed_unless_it_leads_nowhere(
    tmp_path: Path,
) -> None:
    for name in ("train/a/0.png", "train/b/0.png", "elsewhere/1.png"):
        _write(tmp_path / name, seed=0)
    link = tmp_path / "train" / "a" / "more"
    link.symlink_to(tmp_path / "elsewhere")
    assert len(data.load(f"folder:{tmp_path}", split="train")) == 3
    link.unlink()
    link.symlink_to(tmp_path / "train")
    with pytest.raises(ValueError, match="a/more/a is a link to a folder that contain"):
        data.load(f"folder:{tmp_path}", split="train")
    link.unlink()
    (tmp_path / "train" / "a" / "1.png").symlink_to(tmp_path / "not_fetched.png")
    with pytest.raises(ValueError, match=r"a/1.png is a link to a file that does not"):
        data.load(f"folder:{tmp_path}", split="train")


def test_files_that_are_left_out_are_counted_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("train/a/0.png", "train/b/0.png", "test/a/0.png", "train/0.png"):
        _write(tmp_path / name, seed=0)
    for name in ("a/0.gif", "a/s/1.GIF", "b/README", "b/.DS_Store"):
        (tmp_path / "train" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "train" / name).write_bytes(b"")
    (tmp_path / "validation").mkdir()
    data.load(f"folder:{tmp_path}", split="train")
    left_out, beside = (record.getMessage() for record in caplog.records)
    assert left_out.startswith(f"4 of 6 files in {tmp_path / 'train'} are left out:")
    for part in ("1 .gif", "1 .GIF", "1 without extension", "1 .png", "read are .bmp"):
        assert part in left_out
    assert "1 folders" in beside
    assert "no split: validation" in beside
    caplog.clear()
    data.load(f"folder:{tmp_path}", split="test")
    missing = caplog.records[-1].getMessage()
    assert missing.startswith(f"The test split of {tmp_path} has no images of 1 of 2")
    assert missing.endswith(" classes: b.")


def test_a_class_whose_images_all_fall_to_the_test_split_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = [str(number) for number in range(60)]
    (name, *_) = (n for n in names if data.folder._is_test("rare", f"{n}.png"))
    _write(tmp_path / "rare" / f"{name}.png", seed=0)
    for number in names:
        _write(tmp_path / "usual" / f"{number}.png", seed=0)
    dataset = data.load(f"folder:{tmp_path}", split="train")
    assert set(dataset.labels) == {1}
    assert "The train split of" in caplog.text
    assert "1 of 2 classes: rare" in caplog.text


def test_folders_that_would_be_taken_for_classes_are_refused(tmp_path: Path) -> None:
    for name in ("one/Train/a/0.png", "one/Valid/a/0.png", "two/train/images/a/0.png"):
        _write(tmp_path / name, seed=0)
    for split in ("train", "test"):
        with pytest.raises(ValueError, match="folders Train, Valid, which look like"):
            data.load(f"folder:{tmp_path / 'one'}", split=split)
    with pytest.raises(ValueError, match="one class folder, images, and all images"):
        data.load(f"folder:{tmp_path / 'two'}", split="train")


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_images_stand_upright_in_memory_and_streamed(
    tmp_path: Path, suffix: str
) -> None:
    # The image is smooth, so its JPEG at an eighth of the size shows the same.
    rows, columns = np.indices((128, 192))
    pixels = np.stack([columns, rows, (rows + columns) // 2], -1).astype(np.uint8)
    for orientation in range(1, 10):
        exif = Image.Exif()
        exif[0x0112] = orientation
        file = tmp_path / "turned" / "train" / "a" / f"{orientation}.{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file, exif=exif, quality=95)
        with Image.open(file) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
        assert upright.size == ((128, 192) if 5 <= orientation <= 8 else (192, 128))
        found = decoding.decode(file.read_bytes(), str(file))
        np.testing.assert_array_equal(found, np.asarray(upright))
        file = tmp_path / "upright" / "train" / "a" / f"{orientation}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        upright.save(file)
    numbers = np.arange(9)
    crops, views = [], []
    for name in ("turned", "upright"):
        stream = data.open_stream(f"image_folder:{tmp_path / name}", split="train")
        crops.append(stream.centre_crops(numbers, image_size=16, resize=16).images)
        views += [images for images, _ in stream.batches([(5, numbers)], image_size=16)]
    for turned, upright in (crops, views):
        assert np.abs(turned.astype(int) - upright).max() <= 4


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_data_are_no_damage_to_the_image(tmp_path: Path) -> None:
    file = tmp_path / "train" / "a" / "0.jpg"
    pixels = _write(file, seed=0)
    clean = decoding.decode(file.read_bytes(), "clean")
    Image.fromarray(pixels).save(file, exif=b"Exif\0\0II*\0nothing of the kind")
    np.testing.assert_array_equal(decoding.decode(file.read_bytes(), "odd"), clean)


def test_splits_that_are_not_of_one_data_set_are_refused(tmp_path: Path) -> None:
    def load(name: str, split: str) -> data.Dataset:
        return data.load(f"folder:{tmp_path / name}", split=split)

    for name in ("x/train/a", "x/train/b", "x/test/a", "y/test/a", "z/test/b"):
        _write(tmp_path / name / "0.png", seed=0)
    _write(tmp_path / "z/test/a/0.png", seed=0, size=(5, 7))
    _write(tmp_path / "z/test/b/0.png", seed=0, size=(5, 7))
    train = load("x", "train")
    data.check_splits(train, load("x", "test"))
    with pytest.raises(ValueError, match=r"2 classes .* has 1; they differ in b"):
        data.check_splits(train, load("y", "test"))
    with pytest.raises(ValueError, match=r"\(5, 7, 3\) in .*\(5, 7, 1\)"):
        data.check_splits(train, load("z", "test"))


def test_names_an_image_of_another_size_or_depth(tmp_path: Path) -> None:
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
    with pytest.raises(FileNotFoundError, match="no images for split 'train'"):
        data.load(f"folder:{tmp_path}", split="train")
    _write(tmp_path / "train" / "a" / "0.png", seed=0)
    with pytest.raises(FileNotFoundError, match="no folder test or val"):
        data.load(f"folder:{tmp_path}", split="test")
    _write(tmp_path / "test" / "b" / "0.png", seed=0)
    with pytest.raises(ValueError, match="test/b is a class that train lacks"):
        data.load(f"folder:{tmp_path}", split="test")
