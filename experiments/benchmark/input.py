"""The speed of reading and decoding images, and whether train steps wait for them.

Train steps of ResNet-50 on streamed images are timed beside as many steps on a batch
that is on the device already.
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.benchmark.setting import Found, Setting
from experiments.benchmark.steps import TrainStep
from experiments.common import timing, train_steps
from opnorm import data, training

# About the size of ImageNet's images.
_HEIGHT, _WIDTH, _QUALITY = 375, 500, 90
_IMAGES = 256
_VIEW_SIZE = 224
_STEPS = 20
RATIO = "ResNet-50 steps, streamed / batch there"


def measure(setting: Setting) -> Found:
    """Times training views of JPEG files: decoded, cropped at random, resized.

    Among the ratios are images per second.
    """
    seconds: dict[str, float] = {}
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        _write_images(Path(folder))
        stream = data.open_stream(f"image_folder:{folder}", split="train")
        for count, threads in ((1, "1 thread"), (2, "2 threads")):
            median = _seconds_of_views(stream, count, setting.num_rounds)
            name = f"{_IMAGES} views of {_WIDTH}x{_HEIGHT} JPEGs, {threads}"
            seconds[name] = median
            ratios[f"views per second, {threads}"] = _IMAGES / median
        streamed, there = _seconds_of_steps(setting, stream)
    name = f"{_STEPS} ResNet-50 steps"
    seconds |= {f"{name}, streamed": streamed, f"{name}, batch there": there}
    return Found(seconds, ratios | {RATIO: streamed / there})


def _seconds_of_views(stream: data.Stream, num_threads: int, num_rounds: int) -> float:
    tasks = [(0, part) for part in np.split(np.arange(_IMAGES), 8)]
    times = []
    for _ in range(num_rounds + 1):
        start = time.perf_counter()
        for _ in stream.batches(tasks, image_size=_VIEW_SIZE, num_threads=num_threads):
            pass
        times.append(time.perf_counter() - start)
    # The first round warms up.
    return statistics.median(times[1:])


def _seconds_of_steps(setting: Setting, stream: data.Stream) -> tuple[float, float]:
    """Median seconds of ``_STEPS`` steps on streamed images, and on one batch."""
    name, dtype = "resnet50", setting.compute_dtype
    size = setting.size_of(name)
    program = train_steps.make_program(
        name, size, dtype, jax.devices()[0], method="standard"
    )
    step = TrainStep(setting, f"{name}, streamed, {dtype}", program)
    numbers = np.arange(_STEPS * size.batch_size) % len(stream)
    tasks = list(enumerate(np.split(numbers, _STEPS)))
    split = training.sharded(program.mesh)
    indices = np.arange(size.batch_size, dtype=np.int32)

    def put(host: tuple[np.ndarray, np.ndarray]) -> Any:
        return jax.device_put((*host, indices), split)

    def streamed() -> None:
        batches = stream.batches(tasks, image_size=size.image_size)
        for batch in data.prefetch(batches, put):
            metrics = step(batch)
        timing.wait(metrics)

    def there() -> None:
        for _ in range(_STEPS):
            metrics = step()
        timing.wait(metrics)

    rounds = setting.take_turns({"streamed": streamed, "there": there})
    found = timing.medians(rounds)
    return found["streamed"], found["there"]


def _write_images(folder: Path) -> None:
    """Writes smooth random images with some noise, in two classes of both splits."""
    from PIL import Image

    generator = np.random.default_rng(0)
    # Ten images are enough, because a file is decoded each time.
    images = []
    for _ in range(10):
        coarse = generator.integers(0, 256, (12, 16, 3), np.uint8)
        smooth = Image.fromarray(coarse).resize(
            (_WIDTH, _HEIGHT), Image.Resampling.BICUBIC
        )
        noise = generator.normal(0, 8, (_HEIGHT, _WIDTH, 3))
        pixels = np.clip(np.asarray(smooth) + noise, 0, 255).astype(np.uint8)
        images.append(Image.fromarray(pixels))
    for split, number in (("train", _IMAGES), ("val", 2)):
        for index in range(number):
            place = folder / split / str(index % 2)
            place.mkdir(parents=True, exist_ok=True)
            images[index % 10].save(place / f"{index}.jpg", quality=_QUALITY)
