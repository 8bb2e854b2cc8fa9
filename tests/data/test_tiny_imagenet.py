"""Made-up images in the layout of Tiny-ImageNet's archive."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from opnorm import data

# Not sorted, as in the archive.
CLASSES = ("n02124075", "n01443537", "n04067472")
VALIDATION = (
    ("val_0.JPEG", 2),
    ("val_10.JPEG", 0),
    ("val_2.JPEG", 1),
    ("val_1.JPEG", 0),
)


def _save(file: Path, seed: int, mode: str = "RGB") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(file, "JPEG")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "tiny-imagenet-200"
    for label, name in enumerate(CLASSES):
        for number in range(2):
            file = root / "train" / name / "images" / f"{name}_{number}.JPEG"
            _save(file, 10 * label + number, "L" if number else "RGB")
        boxes = root / "train" / name / f"{name}_boxes.txt"
        boxes.write_text(f"{name}_0.JPEG\t0\t10\t63\t58\n")
    for number, (file_name, _) in enumerate(VALIDATION):
        _save(root / "val" / "images" / file_name, 100 + number)
    _save(root / "test" / "images" / "test_0.JPEG", 200)
    (root / "wnids.txt").write_text("\n".join(CLASSES) + "\n")
    (root / "words.txt").write_text("n00001740\tentity\n")
    lines = [f"{name}\t{CLASSES[label]}\t0\t32\t44\t62" for name, label in VALIDATION]
    (root / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def copy(archive: Path, tmp_path: Path) -> Path:
    root = tmp_path / archive.name
    shutil.copytree(archive, root)
    return root


def _expected(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))[4:60, 4:60]


@pytest.mark.parametrize("split", ["train", "test"])
def test_labels_are_those_of_folders_and_of_the_annotations(
    archive: Path, split: str
) -> None:
    name = f"tiny_imagenet:{archive}"
    loaded = data.load(name, split=split, image_size=56)
    assert loaded.class_names == tuple(sorted(CLASSES))
    assert loaded.description == "Tiny-ImageNet"
    if split == "train":
        files = {
            archive / "train" / wnid / "images" / f"{wnid}_{number}.JPEG": wnid
            for wnid in CLASSES
            for number in range(2)
        }
    else:
        files = {
            archive / "val" / "images" / file: CLASSES[label]
            for file, label in VALIDATION
        }
    expected = {_expected(file).tobytes(): wnid for file, wnid in files.items()}
    found = {
        image.tobytes(): loaded.class_names[label]
        for image, label in zip(loaded.images, loaded.labels, strict=True)
    }
    # The single crop of the paper, without a change of size.
    assert found == expected
    # One of each class in turn.
    assert loaded.labels[:3].tolist() == [0, 1, 2]


def test_it_is_streamed_and_known_wherever_it_lies(archive: Path, copy: Path) -> None:
    name = f"tiny_imagenet:{archive}"
    data.check_name(name)
    assert data.is_streamed(name)
    stream = data.open_stream(name, split="train")
    ((images, labels),) = stream.batches([(0, np.arange(6))], image_size=56)
    assert images.shape == (6, 56, 56, 3)
    assert sorted(labels) == [0, 0, 1, 1, 2, 2]
    few = data.open_stream(name, split="train", limit=3)
    assert sorted(few.centre_crops(np.arange(3), image_size=8).labels) == [0, 1, 2]
    there = data.open_stream(f"tiny_imagenet:{copy}", split="train")
    assert data.fingerprint(there) == data.fingerprint(stream)
    with pytest.raises(ValueError, match=r"'tiny_imagenet' is unknown.*net:/path"):
        data.check_name("tiny_imagenet")


TABLE = "val/val_annotations.txt"
VAL = "val/images/val_1.JPEG"


@pytest.mark.parametrize(
    ("split", "lost", "message"),
    [
        ("train", "wnids.txt", r"has no wnids.txt\. It must be the unpacked"),
        ("train", f"train/{CLASSES[1]}", "n01443537/images is missing; unpack"),
        ("train", "train", "train is missing; unpack"),
        ("test", "val", "val_annotations.txt is missing"),
        ("test", TABLE, "is missing.*moved to folders of classes.*image_folder:/path"),
        ("test", VAL, r"val_1.JPEG is missing; .*val_annotations.txt, line 4, names"),
    ],
)
def test_what_is_missing_is_named(
    copy: Path, split: str, lost: str, message: str
) -> None:
    place = copy / lost
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    with pytest.raises(FileNotFoundError, match=message):
        data.open_stream(f"tiny_imagenet:{copy}", split=split)
    # The other split does not need it, unless it is the list of classes.
    if lost != "wnids.txt":
        other = "test" if split == "train" else "train"
        data.open_stream(f"tiny_imagenet:{copy}", split=other)


def test_the_folder_around_the_archive_is_told_from_it(copy: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no wnids.txt; .*-200 has one"):
        data.open_stream(f"tiny_imagenet:{copy.parent}", split="train")
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        data.open_stream(f"tiny_imagenet:{copy}/nowhere", split="train")


@pytest.mark.parametrize(
    ("split", "file", "text", "message"),
    [
        ("train", "wnids.txt", "", "has 0 classes"),
        ("train", "wnids.txt", "n1\nn1\n", "has 2 classes, 1 of them different"),
        ("train", "wnids.txt", CLASSES[0], "n01443537 is a class that wnids.txt lacks"),
        (
            "test",
            TABLE,
            f"{VAL[11:]}\tn1\t0",
            "line 1, is .*a class that wnids.txt has",
        ),
        ("test", TABLE, f"{VAL[11:]} {CLASSES[0]}", "line 1, is .*a tab"),
        (
            "test",
            TABLE,
            f"{VAL[11:]}\t{CLASSES[0]}\n" * 2,
            "line 2, names val_1.JPEG a",
        ),
        (
            "test",
            TABLE,
            f"{VAL[11:]}\t{CLASSES[0]}\n",
            "for 1 images, .* 3 others, such",
        ),
        ("test", TABLE, "\n", "for 0 images"),
        ("train", f"train/{CLASSES[0]}/images", None, "images has no images"),
    ],
)
def test_what_does_not_fit_is_named(
    copy: Path, split: str, file: str, text: str | None, message: str
) -> None:
    if text is None:
        for image in (copy / file).iterdir():
            image.unlink()
    else:
        (copy / file).write_text(text)
    with pytest.raises(ValueError, match=message):
        data.open_stream(f"tiny_imagenet:{copy}", split=split)
