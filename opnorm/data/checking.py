"""Checks of whole splits before a run, which would fail or mislead later."""

import concurrent.futures
import functools
from collections.abc import Callable

from opnorm.data import decoding, folder
from opnorm.data.dataset import Dataset
from opnorm.data.streaming import Stream, num_cores

# Images between two reports of progress.
_BLOCK = 1024


def check_images(
    source: Dataset | Stream, *, on_progress: Callable[[int], None] | None = None
) -> None:
    """Decodes every image of a streamed split once.

    Args:
      source: the split. Images in memory have been decoded already.
      on_progress: called with the number of images that have been decoded.

    Raises:
      ValueError: naming the images that cannot be decoded, with their number.
    """
    if isinstance(source, Dataset):
        return
    problem = functools.partial(_problem, source)
    found: list[str] = []
    with concurrent.futures.ThreadPoolExecutor(num_cores()) as pool:
        for first in range(0, len(source), _BLOCK):
            block = range(first, min(first + _BLOCK, len(source)))
            found += [text for text in pool.map(problem, block) if text is not None]
            if on_progress is not None:
                on_progress(block.stop)
    folder.check_readable(found, len(source))


def check_splits(
    train_set: Dataset | Stream, test_set: Dataset | Stream, split: str = "test"
) -> None:
    """Checks that two splits are of one data set: same classes, images of one shape.

    Args:
      train_set: the split that a network is trained on.
      test_set: the split that it is measured on.
      split: the name of that split in an error.

    Raises:
      ValueError: naming the first class that differs, or the two shapes.
    """
    classes, tested = train_set.class_names, test_set.class_names
    if classes != tested:
        differing = sorted(set(classes) ^ set(tested)) or ["their order"]
        raise ValueError(
            f"the train split of {train_set.name!r} has {len(classes)} classes and the "
            f"{split} split of {test_set.name!r} has {len(tested)}; they differ in "
            f"{differing[0]}."
        )
    if isinstance(train_set, Dataset) and isinstance(test_set, Dataset):
        shapes = train_set.image_shape, test_set.image_shape
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"images of {train_set.name!r} have the shape {shapes[0]} in the train "
                f"split and {shapes[1]} in the {split} split; they must be alike."
            )


def _problem(stream: Stream, number: int) -> str | None:
    place = number if stream.kept is None else int(stream.kept[number])
    try:
        image = stream.encoded[place]
        decoding.decode(image.content, image.name)
    except ValueError as error:
        return str(error)
    return None
