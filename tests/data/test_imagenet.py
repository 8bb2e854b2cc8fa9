"""ImageNet as TensorFlow Datasets prepares it, with made-up images."""

import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from opnorm import data
from opnorm.data import encoded, holding_out

COUNTS = {"train": 9, "validation": 6}
CLASSES = ("n01440764", "n01443537", "n01484850")


def _jpeg(split: str, index: int) -> bytes:
    rng = np.random.default_rng((COUNTS[split], index))
    shape = (20 + index, 28 - index, 3)
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(file, "JPEG")
    return file.getvalue()[:200] if index == 8 else file.getvalue()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import tensorflow_datasets as tfds

    # A registered builder would collide with the real one.
    class Imagenet2012(  # type: ignore[call-arg]
        tfds.core.GeneratorBasedBuilder, skip_registration=True
    ):
        VERSION = tfds.core.Version("5.1.0")

        def _info(self) -> Any:
            features = tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(encoding_format="jpeg"),
                    "label": tfds.features.ClassLabel(names=CLASSES),
                    "file_name": tfds.features.Text(),
                }
            )
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager: Any) -> Any:
            return {split: self._generate_examples(split) for split in COUNTS}

        def _generate_examples(self, split: str) -> Any:
            for index in range(COUNTS[split]):
                yield (
                    index,
                    {
                        "image": io.BytesIO(_jpeg(split, index)),
                        "label": index % 3,
                        "file_name": f"{split}_{index}.JPEG",
                    },
                )

    path = tmp_path_factory.mktemp("imagenet")
    builder = Imagenet2012(data_dir=str(path), file_format="array_record")
    builder.download_and_prepare()
    return path


def test_reads_validation_as_test_without_tensorflow(prepared: Path) -> None:
    stream = data.open_stream("imagenet2012", split="test", data_dir=str(prepared))
    assert len(stream) == 6
    assert stream.class_names == CLASSES
    assert stream.description == "ImageNet (ILSVRC 2012)"
    crops = stream.centre_crops(np.arange(6), image_size=16, resize=16)
    expected = {}
    for index in range(6):
        with Image.open(io.BytesIO(_jpeg("validation", index))) as image:
            scale = 16 / min(image.size)
            size = tuple(round(side * scale) for side in image.size)
            whole = np.asarray(image.resize(size, Image.Resampling.BILINEAR), int)
        top, left = ((side - 16) // 2 for side in whole.shape[:2])
        expected[index] = whole[top : top + 16, left : left + 16]
    # TensorFlow Datasets shuffles examples when it prepares them.
    found = [
        min(expected, key=lambda index: np.abs(expected[index] - crop).sum())
        for crop in crops.images.astype(int)
    ]
    assert sorted(found) == list(range(6))
    for index, label, crop in zip(found, crops.labels, crops.images, strict=True):
        assert label == index % 3
        assert np.abs(expected[index] - crop).max() <= 1
    assert "tensorflow" not in sys.modules


def test_trains_from_records_and_names_a_damaged_one(prepared: Path) -> None:
    stream = data.open_stream("imagenet2012", split="train", data_dir=str(prepared))
    damaged = "imagenet2012 train image train_8.JPEG"
    names = [stream.encoded[index].name for index in range(9)]
    whole = np.array([index for index in range(9) if names[index] != damaged])
    ((images, labels),) = stream.batches([(3, whole)], image_size=12)
    assert images.shape == (8, 12, 12, 3)
    np.testing.assert_array_equal(labels, stream.encoded.labels(whole))
    with pytest.raises(ValueError, match=f"{damaged} cannot be read"):
        list(stream.batches([(3, np.array([names.index(damaged)]))], image_size=12))


def test_records_are_held_out_by_their_numbers(prepared: Path) -> None:
    train, validation = (
        data.open_stream(
            "imagenet2012",
            split=split,
            data_dir=str(prepared),
            validation_fraction=0.4,
        )
        for split in ("train", "validation")
    )
    held_out = holding_out.choose((str(i).encode() for i in range(9)), 9, 0.4)
    np.testing.assert_array_equal(validation.kept, np.flatnonzero(held_out))
    np.testing.assert_array_equal(train.kept, np.flatnonzero(~held_out))


def test_limits_are_balanced(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    dataset = data.load("imagenet2012", split="test", limit=3, image_size=8, seed=1)
    np.testing.assert_array_equal(dataset.labels, [0, 1, 2])


def test_says_how_to_prepare_what_is_missing(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        data.open_stream("imagenet2012", split="train", data_dir=str(tmp_path))
    for hint in ("licence", "tfds build", "array_record", "--data_dir", "image_folder"):
        assert hint in str(caught.value)
    shutil.copytree(prepared / "imagenet2012", tmp_path / "imagenet2012")
    file = tmp_path / "imagenet2012" / "5.1.0" / "dataset_info.json"
    info = json.loads(file.read_text())
    file.write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    with pytest.raises(ValueError, match=r"'tfrecord'.*tfds convert_format"):
        data.open_stream("imagenet2012", split="train", data_dir=str(tmp_path))
    splits = [split for split in info["splits"] if split["name"] == "train"]
    file.write_text(json.dumps(info | {"splits": splits}))
    with pytest.raises(FileNotFoundError, match="no split 'validation'"):
        data.open_stream("imagenet2012", split="test", data_dir=str(tmp_path))


def test_the_limit_on_open_files_is_raised_for_many_shards() -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1300:
        pytest.skip("this process may not open more files")
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (900, hard))
        encoded._allow_open_files(100)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (900, hard)
        encoded._allow_open_files(1000)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (1256, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
