"""The embedded dataset and the tool that packs it."""

import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from opnorm import data
from opnorm.data import cifar10_mini

ROOT = Path(__file__).parents[2]
ARCHIVE = Path(cifar10_mini.__file__).parent / cifar10_mini.ARCHIVE


@pytest.mark.parametrize(("split", "per_class"), [("train", 850), ("test", 100)])
def test_is_balanced_and_every_prefix_is(split: str, per_class: int) -> None:
    dataset = data.load("cifar10_mini", split=split)
    assert dataset.images.shape == (10 * per_class, 32, 32, 3)
    assert dataset.images.dtype == np.uint8
    assert dataset.labels.dtype == np.int32
    assert len(dataset) == 10 * per_class
    assert dataset.image_shape == (32, 32, 3)
    np.testing.assert_array_equal(np.bincount(dataset.labels), per_class)
    np.testing.assert_array_equal(np.sort(dataset.labels[:10]), np.arange(10))
    assert dataset.class_names[0] == "airplane"
    assert dataset.class_names[9] == "truck"
    assert dataset.num_classes == 10
    assert "JPEG-75" in dataset.description


def test_holds_real_images_and_none_twice() -> None:
    train = data.load("cifar10_mini", split="train")
    test = data.load("cifar10_mini", split="test")
    # Published channel means and deviations of CIFAR-10's training set.
    pixels = train.images.reshape(-1, 3)
    np.testing.assert_allclose(pixels.mean(0), [125.3, 123.0, 113.9], atol=3)
    np.testing.assert_allclose(pixels.std(0), [63.0, 62.1, 66.7], atol=3)
    everything = np.concatenate([train.images, test.images]).reshape(9500, -1)
    assert len({image.tobytes() for image in everything}) >= 9495


def test_decodes_the_archived_bytes_under_their_class() -> None:
    dataset = data.load("cifar10_mini", split="test")
    with tarfile.open(ARCHIVE) as tar:
        names = [name for name in tar.getnames() if name.startswith("test/horse/")]
        file = tar.extractfile(sorted(names)[3])
        assert file is not None
        image = np.asarray(Image.open(file))
    label = dataset.class_names.index("horse")
    np.testing.assert_array_equal(dataset.images[dataset.labels == label][3], image)


def test_is_decoded_once_and_cannot_be_written_to() -> None:
    dataset = data.load("cifar10_mini", split="test")
    assert data.load("cifar10_mini", split="test").images is dataset.images
    with pytest.raises(ValueError, match="read-only"):
        dataset.images[0] = 0


def test_archive_is_small_anonymous_and_documented() -> None:
    assert ARCHIVE.stat().st_size <= 3_000_000
    with tarfile.open(ARCHIVE) as tar:
        members = tar.getmembers()
    assert all(member.mtime == member.uid == 0 for member in members)
    readme = (ARCHIVE.parent / "README.md").read_text()
    for subject in ("Krizhevsky", "licence", "quality 75", "@techreport"):
        assert subject in readme


def test_tool_packs_the_same_images_into_the_same_bytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            folder = tmp_path / "source" / split / name
            folder.mkdir(parents=True)
            for index in range(3):
                pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.jpg")

    def pack(output: str, *options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "scripts/make_cifar10_mini.py"]
        command += [f"--source={tmp_path / 'source'}", f"--output={tmp_path / output}"]
        command += ["--train_per_class=2", "--test_per_class=1", *options]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    assert pack("a.tar.xz").returncode == 0
    assert pack("b.tar.xz").returncode == 0
    assert (tmp_path / "a.tar.xz").read_bytes() == (tmp_path / "b.tar.xz").read_bytes()
    with tarfile.open(tmp_path / "a.tar.xz") as tar:
        names = tar.getnames()
        first = tar.extractfile("train/dog/0.jpg")
        assert first is not None
        original = tmp_path / "source" / "train" / "dog" / "0.jpg"
        assert first.read() == original.read_bytes()
    assert names == ["test/cat/0.jpg", "test/dog/0.jpg"] + [
        f"train/{name}/{index}.jpg" for name in ("cat", "dog") for index in (0, 1)
    ]

    refused = pack("c.tar.xz", "--max_bytes=100")
    assert refused.returncode != 0
    assert "--max_bytes" in refused.stderr + refused.stdout
    assert not (tmp_path / "c.tar.xz").exists()
