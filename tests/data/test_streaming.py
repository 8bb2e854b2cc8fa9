"""Images that stay on disk, against NumPy slices and the specification."""

import collections
import itertools
import threading
import time
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from PIL import Image

from opnorm import data
from opnorm.data import streaming, views

SIZES = ((40, 30), (64, 48), (33, 57), (90, 20))


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _gradient(width: int, height: int) -> np.ndarray:
    """An image whose red and green give the column and the row of each pixel."""
    rows, columns = np.indices((height, width))
    return np.stack([columns, rows, columns + rows], -1).astype(np.uint8)


def _noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of several sizes, formats and modes: 8 of each class, 2 to test."""
    path = tmp_path_factory.mktemp("images")
    for number, name in itertools.product(range(8), ("ant", "bee", "cat")):
        width, height = SIZES[number % len(SIZES)]
        suffix = (".png", ".jpg", ".JPEG")[number % 3]
        shape = (height, width) if number == 3 else (height, width, 3)
        file = path / "train" / name / f"{number}{suffix}"
        _save(file, _noise(100 * ord(name[0]) + number, *shape))
    for number, name in itertools.product(range(2), ("ant", "bee", "cat")):
        _save(path / "val" / name / f"{number}.png", _noise(number, 24, 32, 3))
    # ImageNet's own test split is a folder without labels.
    _save(path / "test" / "0.png", _noise(0, 8, 8, 3))
    return path


@pytest.fixture(scope="module")
def stream(root: Path) -> data.Stream:
    return data.open_stream(f"image_folder:{root}", split="train")


def _tasks(count: int, size: int) -> list[tuple[int, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [(7 * step, rng.integers(0, 24, size)) for step in range(count)]


def test_lists_examples_with_one_of_each_class_in_turn(
    root: Path, stream: data.Stream
) -> None:
    assert len(stream) == 24
    assert stream.class_names == ("ant", "bee", "cat")
    assert stream.num_classes == 3
    assert root.name in stream.description
    labels = stream.centre_crops(np.arange(24), image_size=4).labels
    np.testing.assert_array_equal(labels, np.tile([0, 1, 2], 8))


def test_batches_are_bytes_of_one_size_with_their_labels(stream: data.Stream) -> None:
    tasks = [(0, np.arange(7)), (1, np.arange(7)), (1, np.array([23]))]
    batches = list(stream.batches(tasks, image_size=16))
    assert [len(labels) for _, labels in batches] == [7, 7, 1]
    for (_, numbers), (images, labels) in zip(tasks, batches, strict=True):
        assert images.shape == (len(numbers), 16, 16, 3)
        assert images.dtype == np.uint8
        assert labels.dtype == np.int32
        np.testing.assert_array_equal(labels, numbers % 3)
    assert list(stream.batches([], image_size=16)) == []


def test_views_depend_on_seed_and_example_alone(stream: data.Stream) -> None:
    tasks = _tasks(4, 8)
    whole = list(stream.batches(tasks, image_size=16, num_threads=1))
    threaded = list(stream.batches(tasks, image_size=16, num_threads=5))
    later = list(stream.batches(tasks[2:], image_size=16))
    halves = [
        list(stream.batches([(s, n[half]) for s, n in tasks], image_size=16))
        for half in (slice(0, 4), slice(4, 8))
    ]
    for step, (images, labels) in enumerate(whole):
        np.testing.assert_array_equal(images, threaded[step][0])
        np.testing.assert_array_equal(labels, threaded[step][1])
        np.testing.assert_array_equal(
            images, np.concatenate([half[step][0] for half in halves])
        )
        if step >= 2:
            np.testing.assert_array_equal(images, later[step - 2][0])
    numbers = np.arange(24)
    (first, _), (second, _) = stream.batches(
        [(0, numbers), (1, numbers)], image_size=16
    )
    assert (first != second).any((1, 2, 3)).all()


def test_a_view_shows_the_box_that_was_drawn(tmp_path: Path) -> None:
    """Interpolation keeps linear colours, which give the origin of each pixel."""
    image = _gradient(120, 90)
    _save(tmp_path / "train" / "a" / "0.png", image)
    stream = data.open_stream(f"image_folder:{tmp_path}", split="train")
    seeds = range(200)
    batches = stream.batches([(s, np.array([0])) for s in seeds], image_size=32)
    mirrored = 0
    for seed, (images, _) in zip(seeds, batches, strict=True):
        draws = views._uniform(seed, 0, 41)[1:].reshape(10, 4)
        left, top, width, height = map(
            int, views.random_box(draws, 120, 90, least_area=0.08)
        )
        view = images[0]
        if view[0, 0, 0] > view[0, -1, 0]:
            view, mirrored = view[:, ::-1], mirrored + 1
        centres = (np.arange(32) + 0.5) / 32
        # Filters are cut off at the border of the image.
        inner = slice(3, -3)
        columns = np.broadcast_to(left + centres * width - 0.5, (32, 32))
        rows = np.broadcast_to((top + centres * height - 0.5)[:, None], (32, 32))
        np.testing.assert_allclose(view[inner, inner, 0], columns[inner, inner], atol=1)
        np.testing.assert_allclose(view[inner, inner, 1], rows[inner, inner], atol=1)
    assert 70 < mirrored < 130


def test_a_box_of_the_views_size_is_cut_out_exactly(tmp_path: Path) -> None:
    image = _noise(0, 36, 50, 3)
    _save(tmp_path / "0.png", image)
    encoded = (tmp_path / "0.png").read_bytes()
    exact = collections.Counter()
    for seed in range(600):
        draws = views._uniform(seed, 5, 41)
        left, top, width, height = map(
            int, views.random_box(draws[1:].reshape(10, 4), 50, 36, 0.3)
        )
        if (width, height) != (24, 24):
            continue
        crop = image[top : top + 24, left : left + 24]
        for flip in (False, True):
            view = views.training_view(
                encoded,
                "0.png",
                seed=seed,
                index=5,
                image_size=24,
                least_area=0.3,
                flip=flip,
            )
            mirrored = flip and draws[0] < 0.5
            exact[mirrored] += 1
            np.testing.assert_array_equal(view, crop[:, ::-1] if mirrored else crop)
    assert exact[False]
    assert exact[True]


def test_flips_come_half_of_the_time_and_only_if_asked(tmp_path: Path) -> None:
    _save(tmp_path / "train" / "a" / "0.png", _gradient(40, 40))
    stream = data.open_stream(f"image_folder:{tmp_path}", split="train")
    tasks = [(seed, np.zeros(1, int)) for seed in range(400)]
    for flip in (True, False):
        views_ = np.concatenate(
            [x for x, _ in stream.batches(tasks, image_size=8, flip=flip)]
        )
        mirrored = (views_[:, 0, 0, 0] > views_[:, 0, -1, 0]).mean()
        assert abs(mirrored - 0.5) < 0.08 if flip else mirrored == 0


def test_a_large_jpeg_is_decoded_smaller_and_shows_the_same(tmp_path: Path) -> None:
    image = np.asarray(Image.fromarray(_gradient(100, 80)).resize((801, 643)))
    for suffix in ("jpg", "png"):
        _save(tmp_path / suffix / "train" / "a" / f"0.{suffix}", image)
    results = []
    for suffix in ("jpg", "png"):
        stream = data.open_stream(f"image_folder:{tmp_path / suffix}", split="train")
        results.append(
            [
                images[0].astype(int)
                for images, _ in stream.batches(
                    [(seed, np.array([0])) for seed in range(20)], image_size=32
                )
            ]
        )
    with Image.open(tmp_path / "jpg" / "train" / "a" / "0.jpg") as image:
        assert views._reduce(image, 9) == 8
        assert image.size == (101, 81)
    for reduced, full in zip(*results, strict=True):
        assert np.abs(reduced - full).max() <= 8
        assert np.abs(reduced - full).mean() < 1.5


@pytest.mark.parametrize("size", [(32, 24), (24, 33), (28, 28)])
def test_evaluation_takes_the_middle_of_the_resized_image(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    image = _noise(1, size[1], size[0], 3)
    _save(tmp_path / "val" / "a" / "0.png", image)
    _save(tmp_path / "train" / "a" / "0.png", image)
    stream = data.open_stream(f"image_folder:{tmp_path}", split="test")
    crop = stream.centre_crops(np.array([0]), image_size=20, resize=min(size))
    left, top = (size[0] - 20) // 2, (size[1] - 20) // 2
    np.testing.assert_array_equal(
        crop.images[0], image[top : top + 20, left : left + 20]
    )
    # Resizing by the usual 256 / 224, then cropping.
    factor = 24 / min(size)
    whole = Image.fromarray(image).resize(
        (round(size[0] * factor), round(size[1] * factor)), Image.Resampling.BILINEAR
    )
    left, top = (whole.size[0] - 21) // 2, (whole.size[1] - 21) // 2
    expected = np.asarray(whole).astype(int)[top : top + 21, left : left + 21]
    found = stream.centre_crops(np.array([0]), image_size=21).images[0]
    assert np.abs(found - expected).max() <= 1


def test_evaluation_batches_go_through_all_in_order(stream: data.Stream) -> None:
    batches = list(stream.evaluation_batches(10, image_size=12, resize=12))
    assert [len(labels) for _, labels in batches] == [10, 10, 4]
    crops = stream.centre_crops(np.arange(24), image_size=12, resize=12)
    np.testing.assert_array_equal(
        np.concatenate([images for images, _ in batches]), crops.images
    )
    some = stream.centre_crops(np.array([20, 3]), image_size=12, resize=12)
    np.testing.assert_array_equal(some.images, crops.images[[20, 3]])
    np.testing.assert_array_equal(some.labels, crops.labels[[20, 3]])


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK"])
def test_every_kind_of_image_becomes_rgb(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(_gradient(24, 24)).convert(mode)
    file = tmp_path / "train" / "a" / ("0.jpg" if mode == "CMYK" else "0.png")
    file.parent.mkdir(parents=True)
    image.save(file)
    stream = data.open_stream(f"image_folder:{tmp_path}", split="train")
    crops = stream.centre_crops(np.array([0]), image_size=24, resize=24)
    with Image.open(file) as saved:
        np.testing.assert_array_equal(crops.images[0], saved.convert("RGB"))


def test_limit_keeps_what_it_keeps_of_datasets_in_memory(tmp_path: Path) -> None:
    for label, name in enumerate("abc"):
        for number in range(3 + 3 * label):
            pixels = np.full((6, 6, 3), 50 * label + number, np.uint8)
            _save(tmp_path / "train" / name / f"{number}.png", pixels)
    for limit, seed in ((7, 0), (11, 3), (17, 1)):
        memory, disk = (
            data.load(name, split="train", limit=limit, seed=seed, **options)
            for name, options in (
                (f"folder:{tmp_path}", {}),
                (f"image_folder:{tmp_path}", {"image_size": 6, "resize": 6}),
            )
        )
        np.testing.assert_array_equal(memory.images, disk.images)
        np.testing.assert_array_equal(memory.labels, disk.labels)
    limited = data.open_stream(f"image_folder:{tmp_path}", split="train", limit=6)
    assert len(limited) == 6
    ((_, labels),) = limited.batches([(0, np.arange(6))], image_size=4)
    np.testing.assert_array_equal(labels, [0, 1, 2, 0, 1, 2])
    everything = data.open_stream(f"image_folder:{tmp_path}", split="train", limit=99)
    assert len(everything) == 18


def test_labels_are_read_only_until_every_class_has_its_share() -> None:
    class Counted:
        class_names = tuple("abcd")
        description = "made up"
        read = 0

        def __len__(self) -> int:
            return 100_000

        def __getitem__(self, index: int) -> NoReturn:
            raise NotImplementedError

        def labels(self, indices: np.ndarray) -> np.ndarray:
            self.read += len(indices)
            return (indices % 4).astype(np.int32)

    order = np.random.default_rng(2).permutation(100_000)
    expected = np.stack([order[order % 4 == label][:75] for label in range(4)], 1)
    for limit in range(201, 300):
        images = Counted()
        np.testing.assert_array_equal(
            streaming._draw(images, limit, 2), expected.ravel()[:limit]
        )
        assert images.read < 1000


def test_load_gives_the_crops_of_a_split(root: Path) -> None:
    name = f"image_folder:{root}"
    dataset = data.load(name, split="test", limit=4, image_size=10)
    assert dataset.images.shape == (4, 10, 10, 3)
    assert dataset.name == name
    np.testing.assert_array_equal(dataset.labels, [0, 1, 2, 0])
    with pytest.raises(ValueError, match=r"image_size is None.*different sizes"):
        data.load(name, split="test")
    with pytest.raises(ValueError, match=r"resize is 8.*one size"):
        data.load("cifar10_mini", split="test", resize=8)


def test_names_tell_what_is_streamed() -> None:
    for name in ("imagenet2012", "image_folder:/path"):
        assert data.is_streamed(name)
        data.check_name(name)
    for name in ("cifar10", "folder:/path", "image_folder:", "imagenet"):
        assert not data.is_streamed(name)
    for name in ("image_folder:", "image_folder", "imagenet"):
        with pytest.raises(ValueError, match=r"is unknown.*image_folder:/path"):
            data.check_name(name)
    with pytest.raises(ValueError, match="'cifar10' is not read from disk"):
        data.open_stream("cifar10", split="train")


def test_a_damaged_image_is_named_and_ends_the_threads(tmp_path: Path) -> None:
    for number in range(6):
        _save(tmp_path / "train" / "a" / f"{number}.png", _noise(number, 20, 20, 3))
    file = tmp_path / "train" / "a" / "4.png"
    file.write_bytes(file.read_bytes()[:300])
    stream = data.open_stream(f"image_folder:{tmp_path}", split="train")
    batches = stream.batches([(0, np.arange(3)), (0, np.arange(3, 6))], image_size=8)
    next(batches)
    with pytest.raises(ValueError, match=r"a/4\.png cannot be read as an image"):
        next(batches)
    _wait_for_threads()
    with pytest.raises(ValueError, match=r"a/4\.png cannot be read"):
        stream.centre_crops(np.arange(6), image_size=8)


def _wait_for_threads() -> None:
    deadline = time.monotonic() + 5
    while any(t.name.startswith("grain") for t in threading.enumerate()):
        assert time.monotonic() < deadline, threading.enumerate()
        time.sleep(0.01)


def test_closing_early_ends_the_threads(stream: data.Stream) -> None:
    batches = data.prefetch(
        stream.batches(_tasks(50, 8), image_size=16, num_threads=4), lambda b: b[0]
    )
    assert next(batches).shape == (8, 16, 16, 3)
    assert any(t.name.startswith("grain") for t in threading.enumerate())
    batches.close()
    _wait_for_threads()


def test_prefetch_puts_ahead_keeps_order_and_closes() -> None:
    events: list = []

    def produce():
        try:
            yield from range(6)
        finally:
            events.append("closed")

    def put(item: int) -> int:
        events.append(item)
        return 10 * item

    # The reference keeps the garbage collector from closing the iterator.
    produced = produce()
    ahead = data.prefetch(produced, put, size=2)
    assert events == []
    assert next(ahead) == 0
    assert events == [0, 1, 2]
    assert [next(ahead), next(ahead)] == [10, 20]
    ahead.close()
    assert events == [0, 1, 2, 3, 4, "closed"]
    assert list(data.prefetch([1, 2, 3], lambda x: -x, size=5)) == [-1, -2, -3]
    with pytest.raises(ValueError, match="size is 0"):
        data.prefetch([], put, size=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, "image_size is 0"),
        ({"least_area": 0.0}, "least_area is 0.0"),
        ({"least_area": 1.5}, "least_area is 1.5"),
        ({"num_threads": 0}, "num_threads is 0"),
    ],
)
def test_bad_options_are_refused_at_once(
    stream: data.Stream, options: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        stream.batches(_tasks(1, 2), **({"image_size": 8} | options))


def test_bad_evaluation_and_tasks_are_refused(stream: data.Stream) -> None:
    with pytest.raises(ValueError, match="resize is 7; it must be at least 8"):
        stream.evaluation_batches(4, image_size=8, resize=7)
    with pytest.raises(ValueError, match="batch_size is 0"):
        stream.evaluation_batches(0, image_size=8)
    with pytest.raises(ValueError, match="indices is empty"):
        stream.centre_crops(np.array([], int), image_size=8)
    for numbers in ([-1], [24]):
        with pytest.raises(ValueError, match=r"must be in \[0, 24\)"):
            stream.centre_crops(np.array(numbers), image_size=8)
    uneven = [(0, np.arange(3)), (0, np.arange(2)), (0, np.arange(3))]
    with pytest.raises(ValueError, match=r"tasks\[1\] has 2 examples"):
        list(stream.batches(uneven, image_size=8))
    with pytest.raises(ValueError, match=r"the seed of tasks\[0\] is -1"):
        next(stream.batches([(-1, np.arange(3))], image_size=8))
    with pytest.raises(ValueError, match="split is 'dev'"):
        data.open_stream(stream.name, split="dev")
    with pytest.raises(ValueError, match="limit is 0"):
        data.open_stream(stream.name, split="train", limit=0)


def test_missing_folders_are_described(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        data.open_stream(f"image_folder:{tmp_path / 'nowhere'}", split="train")
    (tmp_path / "train" / "a").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"expected .*<class>/<image>"):
        data.open_stream(f"image_folder:{tmp_path}", split="train")
