"""experiments: how fast pictures are read and decoded, for the benchmark."""

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from opnorm import data

# About what ImageNet's pictures have.
_HEIGHT, _WIDTH, _QUALITY = 375, 500, 90


def measure(
    *, num_pictures: int = 256, image_size: int = 224, num_rounds: int = 3
) -> tuple[dict[str, float], dict[str, float]]:
    """Times training views of JPEG files: decoded, cropped at random, resized.

    Args:
      num_pictures: how many are read in a round.
      image_size: of the views.
      num_rounds: of which the median is taken.

    Returns:
      (seconds by name, pictures per second by name).
    """
    with tempfile.TemporaryDirectory() as folder:
        _write_pictures(Path(folder), num_pictures)
        stream = data.open_stream(f"image_folder:{folder}", split="train")
        tasks = [(0, part) for part in np.split(np.arange(num_pictures), 8)]
        seconds, rates = {}, {}
        for threads in (1, 2):
            times = []
            for _ in range(num_rounds + 1):
                start = time.perf_counter()
                for _ in stream.batches(
                    tasks, image_size=image_size, num_threads=threads
                ):
                    pass
                times.append(time.perf_counter() - start)
            # The first one warms up.
            median = statistics.median(times[1:])
            name = f"{num_pictures} views of {_WIDTH}x{_HEIGHT} JPEGs, {threads} thread"
            seconds[f"{name}{'s' if threads > 1 else ''}"] = median
            rates[f"views per second, {threads} thread{'s' if threads > 1 else ''}"] = (
                num_pictures / median
            )
    return seconds, rates


def _write_pictures(folder: Path, count: int) -> None:
    """Smooth random pictures with some noise, in two classes of both splits."""
    from PIL import Image

    generator = np.random.default_rng(0)
    # Ten pictures are enough: a file is decoded anew each time.
    pictures = []
    for _ in range(10):
        coarse = generator.integers(0, 256, (12, 16, 3), np.uint8)
        smooth = Image.fromarray(coarse).resize(
            (_WIDTH, _HEIGHT), Image.Resampling.BICUBIC
        )
        noise = generator.normal(0, 8, (_HEIGHT, _WIDTH, 3))
        pixels = np.clip(np.asarray(smooth) + noise, 0, 255).astype(np.uint8)
        pictures.append(Image.fromarray(pixels))
    for split, number in (("train", count), ("val", 2)):
        for index in range(number):
            place = folder / split / str(index % 2)
            place.mkdir(parents=True, exist_ok=True)
            pictures[index % 10].save(place / f"{index}.jpg", quality=_QUALITY)
