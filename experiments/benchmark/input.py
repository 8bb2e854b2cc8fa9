"""experiments: how fast pictures are read and decoded, for the benchmark.

And whether train steps of ResNet-50 wait for them: steps on streamed pictures are
timed beside as many on a batch that is on the device already.
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.common import timing, train_steps
from opnorm import data, training

# About what ImageNet's pictures have.
_HEIGHT, _WIDTH, _QUALITY = 375, 500, 90
_STEPS = 20
RATIO = "ResNet-50 steps, streamed / batch there"


def measure(
    compilations: timing.Compilations,
    *,
    full_size: bool,
    compute_dtype: str,
    num_pictures: int = 256,
    image_size: int = 224,
    num_rounds: int = 3,
) -> tuple[dict[str, float], dict[str, float]]:
    """Times training views of JPEG files: decoded, cropped at random, resized.

    Args:
      compilations: counts what is compiled.
      full_size: of ResNet-50, as in the papers, or reduced.
      compute_dtype: what ResNet-50 computes in.
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
        size = train_steps.size_of("resnet50", full_size)
        step = train_steps.train_step(
            compilations,
            "resnet50",
            size,
            "streamed",
            compute_dtype,
            method_name="standard",
        )
        streamed, there = _beside(stream, step, size, num_rounds)
    name = f"{_STEPS} ResNet-50 steps"
    seconds |= {f"{name}, streamed": streamed, f"{name}, batch there": there}
    rates[RATIO] = streamed / there
    return seconds, rates


def _beside(
    stream: data.Stream,
    step: train_steps.TrainStep,
    size: train_steps.Size,
    num_rounds: int,
) -> tuple[float, float]:
    """Median seconds of ``_STEPS`` steps on streamed pictures, and on one batch."""
    numbers = np.arange(_STEPS * size.batch_size) % len(stream)
    tasks = [(i, part) for i, part in enumerate(np.split(numbers, _STEPS))]
    split = training.sharded(training.data_mesh(jax.devices()[:1]))
    indices = np.arange(size.batch_size, dtype=np.int32)

    def put(host: tuple[np.ndarray, np.ndarray]) -> Any:
        return jax.device_put((*host, indices), split)

    def streamed() -> None:
        batches = stream.batches(tasks, image_size=size.image_size)
        for batch in data.prefetch(batches, put):
            metrics = step.run(batch)
        jax.block_until_ready(metrics)

    def there() -> None:
        for _ in range(_STEPS):
            metrics = step.run()
        jax.block_until_ready(metrics)

    rounds = timing.take_turns({"streamed": streamed, "there": there}, num_rounds)
    found = timing.medians(rounds)
    return found["streamed"], found["there"]


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
