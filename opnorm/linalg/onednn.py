"""Convolutions by oneDNN, a library that jaxlib holds for x86-64 processors.

XLA computes convolutions on a CPU with another library (Eigen), at half the rate of
oneDNN or less. jaxlib also runs a custom call to oneDNN, although JAX never makes one
for a convolution. This module makes that call.

JAX promises nothing about the call, and a configuration that oneDNN refuses ends the
process. So :func:`supports` allows the call only where it is known to work:

* jax and jaxlib are of one of :data:`RELEASES`, with which the tests have run;
* the system is Linux on an x86-64 processor, and JAX sees one CPU device (XLA cannot
  split a custom call, so several devices would each convolve the whole batch);
* the arrays and the window are of the kinds that :func:`probe` covers;
* a child process has made the calls of :func:`probe` and found the right values. Its
  answer is kept in ``~/.cache/opnorm`` (or below ``XDG_CACHE_HOME``), in one file for
  each installation of jaxlib and kind of processor.

``OPNORM_ONEDNN=off`` in the environment turns the call off. The choice is made when a
function is traced: a function that is compiled already stays as it is.

The call is a primitive of JAX: derivatives of every order, ``vmap`` and
``linear_transpose`` work. A program that is exported (``jax.export``) or lowered for
another platform has XLA's convolution in its place. XLA cannot store a compiled program
that holds the call: JAX's compilation cache does without it, and every process compiles
the program again. Do not give it to ``jax.experimental.serialize_executable``.

Values differ from XLA's by rounding. Zeros of the padding are not multiplied, so an
infinity in the kernel makes no NaN at the border.

The child process runs this file alone, so the file imports nothing of this project.
"""

import functools
import hashlib
import json
import math
import multiprocessing
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jaxlib.version
import numpy as np
from jax import lax
from jax.extend import core as jex_core
from jax.interpreters import ad, batching, mlir

# The releases of jax and jaxlib with which the tests have run.
RELEASES = ("0.10.2", "0.12.0.1")

_TARGET = "__onednn$convolution"
_LAYOUT = ("NHWC", "HWIO", "NHWC")

# The kinds of windows that the probe covers. For larger kernels, such as that of the
# gradient of a kernel, oneDNN has no fast code and may take seconds.
_LARGEST_KERNEL = 11
_LARGEST_STRIDE = 4
_LARGEST_DILATION = 4
# Some kernels of oneDNN count bytes in 32 bits.
_MOST_NUMBERS = 2**29
# A call costs 0.03 ms more than XLA's convolution. With fewer places in the output,
# that is more than it saves. XLA's grouped convolutions are slow at every size.
_FEWEST_PLACES = 768

# The probe takes 3 s on one busy core.
_CHILD_SECONDS = 60.0
# The exit status of a child that found a wrong value.
_WRONG = 3
# These ends of a child are due to the call: a refusal, or code of another processor.
_CRASHES = tuple(
    -getattr(signal, name)
    for name in ("SIGABRT", "SIGSEGV", "SIGILL", "SIGBUS", "SIGFPE")
    if hasattr(signal, name)
)


class Window(NamedTuple):
    """How a convolution moves its kernel over images of two spatial axes.

    Attributes:
      strides: of the kernel, for each axis, at least 1.
      padding: places of zeros before and after, for each axis, at least 0.
      dilation: distance between the taps of the kernel, for each axis, at least 1.
      groups: groups of channels; they divide the channels of images and outputs.
    """

    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int = 1

    def sizes(self, images: Sequence[int], kernel: Sequence[int]) -> list[int]:
        """Returns the spatial sizes of the output.

        Args:
          images: shape (B, ..., C).
          kernel: shape (..., C / groups, D).
        """
        return [
            (size + low + high - (taps - 1) * spread - 1) // stride + 1
            for size, taps, stride, (low, high), spread in zip(
                images[1:-1],
                kernel[:-2],
                self.strides,
                self.padding,
                self.dilation,
                strict=True,
            )
        ]


def convolve(images: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """Convolves a batch of images by oneDNN.

    Args:
      images: (B, H, W, C), float32.
      kernel: (h, w, C / groups, D), float32.
      window: one that :func:`supports` allows for these arrays; other windows may end
        the process.

    Returns:
      (B, H', W', D), float32.
    """
    return _primitive()(images, kernel, window=window)


def supports(images: jax.Array, kernel: jax.Array, window: Window) -> bool:
    """Whether :func:`convolve` takes these arguments on this machine, and is fast.

    The first call that needs the answer of the child process may take some seconds.

    Args:
      images: (B, ..., C).
      kernel: (..., C / groups, D).
      window: one entry for each spatial axis.

    Raises:
      ValueError: if ``OPNORM_ONEDNN`` is neither "auto" nor "off".
    """
    return (
        _covers(images, kernel, window)
        and _is_fast(images.shape, kernel.shape, window)
        # A custom call has no rule of sharding.
        and jax.sharding.get_abstract_mesh().empty
        and uses_onednn()
    )


def uses_onednn() -> bool:
    """Whether this process may make the call; the module says when.

    Raises:
      ValueError: if ``OPNORM_ONEDNN`` is neither "auto" nor "off".
    """
    mode = os.environ.get("OPNORM_ONEDNN", "auto")
    if mode not in ("auto", "off"):
        raise ValueError(f"OPNORM_ONEDNN is {mode!r}; it may be 'auto' or 'off'.")
    if mode == "off" or jax.default_backend() != "cpu" or jax.device_count() > 1:
        return False
    return _works_here()


@functools.cache
def _keeps_out_of_cache() -> bool:
    """Keeps programs that hold the call out of JAX's compilation cache.

    XLA takes the call for one of another class when it stores a program: it reads
    memory at random, and most often raises a MemoryError.

    Returns:
      False if this release of JAX gives no way to do so.
    """
    try:
        from jax._src import compilation_cache

        store = compilation_cache.put_executable_and_time
    except (ImportError, AttributeError):
        return False

    @functools.wraps(store)
    def store_others(*args: Any) -> None:
        _, _, executable, *_ = args
        if not any(_TARGET in part.to_string() for part in executable.hlo_modules()):
            store(*args)

    vars(compilation_cache)["put_executable_and_time"] = store_others
    return True


def _covers(images: jax.Array, kernel: jax.Array, window: Window) -> bool:
    """Whether the probe covers this kind of convolution."""
    shapes = (images.shape, kernel.shape)
    # Sizes may be symbols while a program is exported.
    if not all(isinstance(size, int) for shape in shapes for size in shape):
        return False
    if images.ndim != 4 or images.dtype != jnp.float32 or kernel.dtype != jnp.float32:
        return False
    if min(*images.shape, *kernel.shape) < 1 or min(map(min, window.padding)) < 0:
        return False
    if (
        max(kernel.shape[:2]) > _LARGEST_KERNEL
        or max(window.strides) > _LARGEST_STRIDE
        or max(window.dilation) > _LARGEST_DILATION
    ):
        return False
    sizes = window.sizes(*shapes)
    outputs = images.shape[0] * math.prod(sizes) * kernel.shape[-1]
    return min(sizes) >= 1 and max(images.size, kernel.size, outputs) <= _MOST_NUMBERS


def _is_fast(images: Sequence[int], kernel: Sequence[int], window: Window) -> bool:
    """Whether oneDNN is the fastest way for these shapes."""
    if window.groups > 1:
        return True
    # One matrix product is faster where the images have one place, or the output has
    # one channel.
    if math.prod(images[1:-1]) == 1 or kernel[-1] == 1:
        return False
    return images[0] * math.prod(window.sizes(images, kernel)) >= _FEWEST_PLACES


@functools.cache
def _works_here() -> bool:
    releases = {jax.__version__, jaxlib.version.__version__}
    if not releases <= set(RELEASES) or sys.platform != "linux":
        return False
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    file = _answer_file()
    works = None if file is None else _read(file)
    if works is None:
        works = _ask_child()
        if works is not None and file is not None:
            _write(file, json.dumps({"works": works}))
    return bool(works)


def _answer_file() -> Path | None:
    """Where the answer is kept; None if there is no place for it."""
    try:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return (
            Path(cache)
            / "opnorm"
            / f"onednn-{jaxlib.version.__version__}-{_machine()}.json"
        )
    except (OSError, RuntimeError):
        return None


def _machine() -> str:
    """A name for all that the answer depends on: processor, jaxlib, probe, settings."""
    installed = Path(jaxlib.version.__file__)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    kinds = ("vendor_id", "cpu family", "model", "model name", "stepping", "flags")
    settings = {
        name: value
        for name, value in os.environ.items()
        if name == "XLA_FLAGS" or name.startswith(("ONEDNN_", "DNNL_"))
    }
    facts = [
        *sorted({line for line in lines if line.partition(":")[0].strip() in kinds}),
        platform.platform(),
        installed,
        installed.stat().st_mtime_ns,
        Path(__file__).read_text(),
        sorted(settings.items()),
    ]
    text = "\n".join(map(str, facts))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read(file: Path) -> bool | None:
    """The answer that a file holds; None if there is none that can be read."""
    try:
        works = json.loads(file.read_text())["works"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return works if isinstance(works, bool) else None


def _write(file: Path, text: str) -> None:
    """Writes a file whole; a folder that cannot be written into is no error."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:
            written = Path(folder, file.name)
            written.write_text(text)
            written.replace(file)
    except OSError:
        return


def _ask_child() -> bool | None:
    """Whether the calls of :func:`probe` work; None if no child process could say."""
    # A worker process, or a program that holds Python, may run something else as its
    # executable.
    is_python = "python" in Path(sys.executable or "").name.lower()
    if not is_python or multiprocessing.parent_process() is not None:
        return None
    # JAX's settings of this process, such as one that stops at NaN, are its own.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    environment["JAX_PLATFORMS"] = "cpu"
    try:
        ended = subprocess.run(
            [sys.executable, "-P", __file__],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_CHILD_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    except (OSError, subprocess.SubprocessError):
        return None
    if ended.returncode in (_WRONG, *_CRASHES):
        return False
    return True if ended.returncode == 0 else None


# Windows of the probe: (kernel, strides, padding, dilation) for images of 13x11 places.
_SAME = ((1, 1), (1, 1))
_NONE = ((0, 0), (0, 0))
_WINDOWS = (
    ((3, 3), (1, 1), _SAME, (1, 1)),
    ((3, 3), (2, 2), _SAME, (1, 1)),
    ((3, 2), (2, 1), ((0, 1), (3, 0)), (1, 1)),
    ((3, 3), (1, 1), ((2, 2), (2, 2)), (2, 2)),
    ((2, 3), (4, 3), ((4, 1), (0, 4)), (4, 3)),
    ((1, 1), (1, 1), _NONE, (1, 1)),
    ((1, 1), (2, 2), ((1, 1), (0, 3)), (1, 1)),
    ((5, 5), (1, 1), ((2, 2), (2, 2)), (1, 1)),
    ((7, 7), (2, 2), ((3, 3), (3, 3)), (1, 1)),
    ((11, 11), (4, 4), ((2, 2), (2, 2)), (1, 1)),
    ((11, 11), (1, 1), _NONE, (1, 1)),
    ((9, 8), (1, 1), ((8, 8), (7, 7)), (1, 1)),
)
# Channels of the images, channels of the output, and groups.
_CHANNELS = (
    (1, 16, 1),
    (3, 8, 1),
    (16, 2, 1),
    (17, 5, 1),
    (32, 64, 1),
    (4, 6, 2),
    (16, 32, 4),
    (24, 24, 24),
)
_BATCHES = (1, 2, 5)


def probe() -> None:
    """Makes calls of every kind that :func:`supports` allows and checks their values.

    Raises:
      RuntimeError: if a value is wrong. The process ends if oneDNN refuses a call.
    """
    rng = np.random.default_rng(0)
    cases: list[tuple[np.ndarray, np.ndarray, Window]] = []
    for taps, strides, padding, dilation in _WINDOWS:
        for channels, outputs, groups in _CHANNELS:
            batch = _BATCHES[len(cases) % len(_BATCHES)]
            images = rng.standard_normal((batch, 13, 11, channels))
            kernel = rng.standard_normal((*taps, channels // groups, outputs))
            window = Window(strides, padding, dilation, groups)
            case = images.astype(np.float32), kernel.astype(np.float32), window
            cases.append(case)

    @jax.jit
    def convolve_all(arrays: list[tuple[jax.Array, jax.Array]]) -> list[jax.Array]:
        return [
            convolve(images, kernel, window)
            for (images, kernel), (_, _, window) in zip(arrays, cases, strict=True)
        ]

    found = convolve_all([(images, kernel) for images, kernel, _ in cases])
    for out, (images, kernel, window) in zip(found, cases, strict=True):
        right = _reference(images, kernel, window)
        error = np.abs(np.asarray(out) - right).max()
        # A sum of n products is rounded at most n times.
        terms = math.prod(kernel.shape[:-1])
        if not error <= 1e-6 * terms * (1 + np.abs(right).max()):
            raise RuntimeError(f"oneDNN errs by {error} for {kernel.shape}, {window}.")


def _reference(images: np.ndarray, kernel: np.ndarray, window: Window) -> np.ndarray:
    """The convolution in NumPy in float64, one tap after another."""
    sizes = window.sizes(images.shape, kernel.shape)
    padded = np.pad(np.float64(images), ((0, 0), *window.padding, (0, 0)))
    groups = window.groups
    taps = kernel.reshape(*kernel.shape[:3], groups, -1)
    total = np.zeros((len(images), *sizes, groups, taps.shape[-1]))
    for place in np.ndindex(*kernel.shape[:2]):
        rows, columns = (
            slice(tap * spread, tap * spread + stride * (size - 1) + 1, stride)
            for tap, spread, stride, size in zip(
                place, window.dilation, window.strides, sizes, strict=True
            )
        )
        seen = padded[:, rows, columns].reshape(*total.shape[:-1], -1)
        total += np.einsum("bhwgc,cgd->bhwgd", seen, taps[place])
    return total.reshape(*total.shape[:3], -1)


@functools.cache
def _primitive() -> Callable[..., jax.Array]:
    """The call as a primitive: made on first use, since only some releases make it."""
    # JAX gives no types to the functions that make a primitive.
    new: Callable[..., Any] = jex_core.Primitive
    bilinear: Callable[..., None] = ad.defbilinear
    convolution = new("onednn_convolution")
    compiled = jax.jit(convolution.bind, static_argnames="window")

    def evaluate(images: jax.Array, kernel: jax.Array, *, window: Window) -> jax.Array:
        with jax.disable_jit(False):
            out: jax.Array = compiled(images, kernel, window=window)
        return out

    convolution.def_impl(evaluate)
    convolution.def_abstract_eval(_abstract)
    bilinear(convolution, _pull_to_images, _pull_to_kernel)
    batching.primitive_batchers[convolution] = _batch
    by_xla = mlir.lower_fun(_by_xla, multiple_results=False)
    mlir.register_lowering(convolution, by_xla)
    mlir.register_lowering(convolution, _lower, platform="cpu")
    call: Callable[..., jax.Array] = convolution.bind
    return call


def _abstract(images: Any, kernel: Any, *, window: Window) -> jax.core.ShapedArray:
    sizes = window.sizes(images.shape, kernel.shape)
    return jax.core.ShapedArray(
        (images.shape[0], *sizes, kernel.shape[-1]),
        images.dtype,
        weak_type=images.weak_type and kernel.weak_type,
    )


def _by_xla(images: jax.Array, kernel: jax.Array, *, window: Window) -> jax.Array:
    return lax.conv_general_dilated(
        images,
        kernel,
        window.strides,
        window.padding,
        rhs_dilation=window.dilation,
        dimension_numbers=_LAYOUT,
        feature_group_count=window.groups,
    )


def _pull_to_images(
    cotangent: jax.Array, images: Any, kernel: jax.Array, *, window: Window
) -> jax.Array:
    def linear(images: jax.Array) -> jax.Array:
        return _by_xla(images, kernel, window=window)

    pulled: jax.Array = jax.linear_transpose(linear, images.aval)(cotangent)[0]
    return pulled


def _pull_to_kernel(
    cotangent: jax.Array, images: jax.Array, kernel: Any, *, window: Window
) -> jax.Array:
    def linear(kernel: jax.Array) -> jax.Array:
        return _by_xla(images, kernel, window=window)

    pulled: jax.Array = jax.linear_transpose(linear, kernel.aval)(cotangent)[0]
    return pulled


def _batch(
    args: Sequence[jax.Array], axes: Sequence[int | None], *, window: Window
) -> tuple[jax.Array, int]:
    """``vmap`` over images is one longer batch; XLA convolves for mapped kernels."""
    images, kernel = args
    of_images, of_kernel = axes
    if of_images is not None and of_kernel is None:
        images = jnp.moveaxis(images, of_images, 0)
        count, batch, *rest = images.shape
        merged = images.reshape(count * batch, *rest)
        either = convolve if _covers(merged, kernel, window) else _by_xla
        out = either(merged, kernel, window=window)
        return out.reshape(count, batch, *out.shape[1:]), 0
    mapped = jax.vmap(functools.partial(_by_xla, window=window), in_axes=tuple(axes))
    return mapped(images, kernel), 0


def _lower(ctx: Any, images: Any, kernel: Any, *, window: Window) -> Any:
    """Lowers the primitive to the custom call, but not in a program to be exported."""
    parameters = ctx.module_context.lowering_parameters
    if parameters.for_export or not _keeps_out_of_cache():
        by_xla = mlir.lower_fun(_by_xla, multiple_results=False)
        return by_xla(ctx, images, kernel, window=window)
    taps = ctx.avals_in[1].shape[:2]
    lower = jax.ffi.ffi_lowering(
        _TARGET, api_version=2, backend_config=_configuration(taps, window)
    )
    return lower(ctx, images, kernel)


def _configuration(taps: Sequence[int], window: Window) -> str:
    """The call's configuration: XLA's ``OneDnnConvolutionConfig`` as JSON."""

    def numbers(values: Sequence[int]) -> list[str]:
        return [str(value) for value in values]

    data = {"batch_dim": "0", "feature_dim": "3", "spatial_dims": ["1", "2"]}
    images = {"dims": "4", "data": data}
    kernel = {
        "input_feature_dim": "2",
        "output_feature_dim": "3",
        "spatial_dims": ["0", "1"],
    }
    moved = {
        "size": numbers(taps),
        "pad_left": numbers([low for low, _ in window.padding]),
        "pad_right": numbers([high for _, high in window.padding]),
        "strides": numbers(window.strides),
        "window_dilations": numbers(window.dilation),
    }
    return json.dumps(
        {
            "onednn_conv_config": {
                "dims": "4",
                "input": images,
                "kernel": {"dims": "4", "filter": kernel},
                "output": images,
                "window": moved,
                "feature_groups": str(window.groups),
            }
        }
    )


if __name__ == "__main__":
    try:
        probe()
    except Exception:
        sys.exit(_WRONG)
