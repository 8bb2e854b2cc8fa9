"""TensorFlow Datasets, prepared on disk by its own writer; no network."""

import importlib.util
import io
import json
import runpy
import shutil
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absl import flags
from array_record.python import array_record_module
from PIL import Image

from opnorm import data

COUNTS = {"train": 6, "test": 3}


def _images(split: str) -> np.ndarray:
    rng = np.random.default_rng(COUNTS[split])
    return rng.integers(0, 256, (COUNTS[split], 8, 8, 3), dtype=np.uint8)


def _builder(data_dir: Path, name: str = "cifar10") -> Any:
    import tensorflow_datasets as tfds

    # A registered builder would collide with that of the first call.
    class Cifar10(  # type: ignore[call-arg]
        tfds.core.GeneratorBasedBuilder, skip_registration=True
    ):
        VERSION = tfds.core.Version("3.0.2")

        def _info(self) -> Any:
            features = {
                "id": tfds.features.Text(),
                "image": tfds.features.Image(shape=(8, 8, 3)),
                "label": tfds.features.ClassLabel(names=["cat", "dog"]),
            }
            if name == "cifar100":
                coarse = tfds.features.ClassLabel(names=["sea", "land", "air"])
                features["coarse_label"] = coarse
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager: Any) -> Any:
            return {split: self._generate_examples(split) for split in COUNTS}

        def _generate_examples(self, split: str) -> Any:
            for index, pixels in enumerate(_images(split)):
                file = io.BytesIO()
                Image.fromarray(pixels).save(file, "PNG")
                file.seek(0)
                example = {"id": str(index), "image": file, "label": index % 2}
                if name == "cifar100":
                    example["coarse_label"] = 2
                yield index, example

    Cifar10.name = name
    return Cifar10(data_dir=str(data_dir), file_format="array_record")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data_dir = tmp_path_factory.mktemp("tfds")
    _builder(data_dir).download_and_prepare()
    return data_dir


@pytest.fixture
def as_tfrecord(prepared: Path, tmp_path: Path) -> Path:
    """The same data in the other file format of TensorFlow Datasets."""
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "cifar10" / "3.0.2"
    for file in folder.glob("*.array_record-*"):
        records = array_record_module.ArrayRecordReader(str(file)).read_all()
        frames = (
            struct.pack("<QI", len(record), 0) + record + bytes(4) for record in records
        )
        name = file.name.replace("array_record", "tfrecord")
        (folder / name).write_bytes(b"".join(frames))
        file.unlink()
    info = json.loads((folder / "dataset_info.json").read_text())
    info["fileFormat"] = "tfrecord"
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return tmp_path


def _check(dataset: data.Dataset, split: str, description: str = "CIFAR-10") -> None:
    assert dataset.class_names == ("cat", "dog")
    assert dataset.description == description
    labels = {p.tobytes(): i % 2 for i, p in enumerate(_images(split))}
    found = {
        image.tobytes(): label
        for image, label in zip(dataset.images, dataset.labels, strict=True)
    }
    assert found == labels


@pytest.mark.parametrize("split", ["train", "test"])
def test_reads_array_records_without_tensorflow(prepared: Path, split: str) -> None:
    dataset = data.load("cifar10", split=split, data_dir=str(prepared))
    _check(dataset, split)
    assert "tensorflow" not in sys.modules


def test_images_are_held_out_by_their_pixels(prepared: Path, as_tfrecord: Path) -> None:
    options = {"data_dir": str(prepared), "validation_fraction": 0.5}
    parts = [
        data.load("cifar10", split=split, **options)
        for split in ("train", "validation")
    ]
    found = [{image.tobytes() for image in part.images} for part in parts]
    assert not found[0] & found[1]
    assert found[0] | found[1] == {image.tobytes() for image in _images("train")}
    # The other file format has another order.
    options["data_dir"] = str(as_tfrecord)
    again = data.load("cifar10", split="validation", **options)
    assert {image.tobytes() for image in again.images} == found[1]


def test_reads_tfrecords_without_tensorflow(as_tfrecord: Path) -> None:
    _check(data.load("cifar10", split="train", data_dir=str(as_tfrecord)), "train")
    assert "tensorflow" not in sys.modules


def test_cifar100_has_its_fine_labels(tmp_path: Path) -> None:
    _builder(tmp_path, "cifar100").download_and_prepare()
    assert (tmp_path / "cifar100" / "3.0.2").is_dir()
    for split in COUNTS:
        dataset = data.load("cifar100", split=split, data_dir=str(tmp_path))
        _check(dataset, split, "CIFAR-100")
    assert "tensorflow" not in sys.modules


def test_notices_tfrecords_that_end_early(as_tfrecord: Path) -> None:
    (file,) = as_tfrecord.glob("cifar10/3.0.2/*train.tfrecord-*")
    content = file.read_bytes()
    file.write_bytes(content[:-10])
    with pytest.raises(ValueError, match="ends inside a record"):
        data.load("cifar10", split="train", data_dir=str(as_tfrecord))
    (length,) = struct.unpack("<Q", content[:8])
    file.write_bytes(content[: length + 16])
    with pytest.raises(ValueError, match=r"1 examples where .* says 6"):
        data.load("cifar10", split="train", data_dir=str(as_tfrecord))


@pytest.mark.parametrize("form", ["today", "snake", "legacy", "nested", "missing"])
def test_a_received_folder_runs_no_code(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    (tmp_path / "payload.py").write_text("raise SystemExit('code of the data ran')")
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "cifar10" / "3.0.2" / "features.json"
    content = json.loads(file.read_text())
    image = content["featuresDict"]["features"]["image"]
    if form == "today":
        content = {"pythonClassName": "payload.Feature"}
    if form == "snake":
        image["python_class_name"] = image.pop("pythonClassName")
        image["python_class_name"] = "payload.Feature"
    if form == "legacy":
        content = {"type": content["pythonClassName"], "content": {"type": image}}
        content["content"]["id"] = {"type": "payload.Feature", "content": {}}
    if form == "nested":
        inner = json.dumps({"x": {"type": "payload.Feature", "content": {}}})
        content = {
            "pythonClassName": content["pythonClassName"],
            "jsonFeature": {"json": inner},
        }
    file.unlink()
    if form == "missing":
        with pytest.raises(FileNotFoundError, match=r"features.json is missing"):
            data.load("cifar10", split="train", data_dir=str(tmp_path))
        return
    file.write_text(json.dumps(content))
    words = r"features.json names the class 'payload.Feature'"
    with pytest.raises(ValueError, match=words):
        data.load("cifar10", split="train", data_dir=str(tmp_path))
    # An incomplete data set would be prepared.
    (file.parent / "dataset_info.json").unlink()
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: True if name == "tensorflow" else find_spec(name, *rest),
    )
    with pytest.raises(ValueError, match=words):
        data.load("cifar10", split="train", data_dir=str(tmp_path), download=True)
    assert "payload" not in sys.modules


def test_features_that_no_reader_expects_are_refused(
    prepared: Path, tmp_path: Path
) -> None:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "cifar10" / "3.0.2" / "features.json"
    content = json.loads(file.read_text())
    for text, words in (
        ("[" * 100_000, "cannot be read: maximum recursion"),
        ("not JSON", "cannot be read"),
        ("{}", "names no class"),
        ('{"pythonClassName": 3}', "names the class '3'"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=words):
            data.load("cifar10", split="train", data_dir=str(tmp_path))
    del content["featuresDict"]["features"]["label"]
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="has the features id, image; images of one"):
        data.load("cifar10", split="train", data_dir=str(tmp_path))


def test_finds_data_where_the_environment_says(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    _check(data.load("cifar10", split="test"), "test")


def test_refuses_images_that_are_no_bytes(prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "cifar10" / "3.0.2" / "features.json"
    text = file.read_text()
    assert text.count('"uint8"') == 1
    file.write_text(text.replace('"uint8"', '"uint16"'))
    with pytest.raises(ValueError, match="images of dtype uint16; it must be uint8"):
        data.load("cifar10", split="test", data_dir=str(tmp_path))


def test_missing_data_end_at_once_with_the_ways_to_get_some(tmp_path: Path) -> None:
    (tmp_path / "mnist" / "3.0.1.incompleteABC").mkdir(parents=True)
    (tmp_path / "mnist/3.0.1.incompleteABC/dataset_info.json").write_text("{}")
    start = time.monotonic()
    with pytest.raises(FileNotFoundError) as caught:
        data.load("mnist", split="train", data_dir=str(tmp_path))
    assert time.monotonic() - start < 1
    for way in ("--download", "tensorflow", "folder:/path", "cifar10_mini"):
        assert way in str(caught.value)


def test_download_needs_tensorflow_and_says_so_before_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install tensorflow"):
        data.load("mnist", split="train", data_dir=str(tmp_path), download=True)


def test_download_prepares_missing_data_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorflow_datasets as tfds

    calls = []

    def builder(name: str, *, data_dir: str, file_format: str) -> Any:
        calls.append((name, file_format))
        return _builder(Path(data_dir))

    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: True if name == "tensorflow" else find_spec(name, *rest),
    )
    monkeypatch.setattr(tfds, "builder", builder)
    for _ in range(2):
        dataset = data.load(
            "cifar10", split="test", data_dir=str(tmp_path), download=True
        )
        _check(dataset, "test")
    assert calls == [("cifar10", "array_record")]


@pytest.fixture
def make_folder(prepared: Path) -> Iterator[Any]:
    """``(*arguments)``: runs the script that writes a folder of images."""
    before = set(flags.FLAGS)
    script = Path(__file__).parents[2] / "scripts" / "make_image_folder.py"
    main = runpy.run_path(str(script))["main"]
    own = set(flags.FLAGS) - before

    def make(*arguments: str) -> None:
        flags.FLAGS(["make_image_folder", f"--data_dir={prepared}", *arguments])
        main(["make_image_folder"])

    yield make
    for name in own:
        delattr(flags.FLAGS, name)


def _same_images(one: data.Dataset, other: data.Dataset) -> bool:
    found, expected = (
        sorted(
            (d.class_names[label], image.tobytes())
            for image, label in zip(d.images, d.labels, strict=True)
        )
        for d in (one, other)
    )
    return found == expected


def test_a_folder_of_images_holds_the_prepared_pixels(
    make_folder: Any,
    prepared: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "folder"
    make_folder(f"--output={folder}")
    for split in COUNTS:
        of_folder = data.load(f"folder:{folder}", split=split)
        of_tfds = data.load("cifar10", split=split, data_dir=str(prepared))
        assert len(of_folder) == COUNTS[split]
        assert _same_images(of_folder, of_tfds)
    # A second call completes a folder that an interruption left.
    first = sorted(folder.glob("train/*/*.png"))[0]
    content = first.read_bytes()
    first.unlink()
    capsys.readouterr()
    make_folder(f"--output={folder}")
    assert "6 images, 1 written now" in capsys.readouterr().out
    assert first.read_bytes() == content
    first.write_bytes(b"another image")
    with pytest.raises(SystemExit):
        make_folder(f"--output={folder}")
    assert f"{first} is no file of this data set" in capsys.readouterr().err
    # Lossy files are told from these by their names.
    with pytest.raises(SystemExit):
        make_folder(f"--output={folder}", "--jpeg_quality=75")
    lossy = tmp_path / "jpeg"
    make_folder(f"--output={lossy}", "--jpeg_quality=75")
    assert len(sorted(lossy.glob("train/*/*.jpg"))) == COUNTS["train"]
