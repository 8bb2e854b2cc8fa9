"""Convolutions by oneDNN, which jaxlib holds for x86-64 processors.

XLA computes convolutions on a CPU with a library (Eigen) that reaches half the rate of
oneDNN or less. The builds of jaxlib for x86-64 hold oneDNN too, and run a custom call
to it, although JAX never makes one for a convolution. This module makes that call.

JAX promises nothing about the call, and a configuration that oneDNN refuses ends the
process. So :func:`supports` allows it only where nothing can go wrong:

* jaxlib is one of :data:`RELEASES`, with which the tests of this project have run;
* the processor is an x86-64, and JAX sees one CPU device. With several devices XLA
  would copy the whole batch to each of them, since it cannot split a custom call;
* the arrays, window and strides are of a kind that the tests cover;
* a child process has made the calls of :func:`probe` and found the right values. Its
  answer is kept in ``~/.cache/opnorm`` (or below ``XDG_CACHE_HOME``), one file for each
  release of jaxlib and processor.

``OPNORM_ONEDNN=off`` in the environment turns the call off.
"""

import functools
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero

# The releases of jaxlib whose call the tests have checked.
RELEASES = ("0.10.2", "0.12.0.1")

_TARGET = "__onednn$convolution"
_LAYOUT = ("NHWC", "HWIO", "NHWC")
_CHILD_SECONDS = 120.0
# The child process must not ask a child of its own.
_CHILD = "from opnorm.linalg import onednn; onednn.probe()"

Padding = Sequence[tuple[int, int]]


def convolve(
    images: jax.Array,
    kernel: jax.Array,
    *,
    strides: Sequence[int],
    padding: Padding,
    dilation: Sequence[int],
) -> jax.Array:
    """Convolves a batch by oneDNN. Derivatives are those of ``lax``'s convolution.

    ``vmap`` over one of the two arguments is one call with a longer batch or more
    channels; over both it is ``lax``'s convolution.

    Args:
      images: (B, H, W, C), float32.
      kernel: (h, w, C, D), float32.
      strides: of the window, two of at least 1.
      padding: places of zeros before and after, for both axes, at least 0.
      dilation: of the kernel, two of at least 1.

    Returns:
      (B, H', W', D), float32.
    """
    window = (tuple(strides), tuple((a, b) for a, b in padding), tuple(dilation))
    return _differentiable(*window)(images, kernel)


def supports(
    images: jax.Array,
    kernel: jax.Array,
    *,
    strides: Sequence[int],
    padding: Padding,
    dilation: Sequence[int],
) -> bool:
    """Whether :func:`convolve` takes these arguments, on this machine, and is fast.

    The first call for which all but the last condition hold asks a child process, which
    takes some seconds; the answer is kept on disk.

    Args:
      images: (B, ..., C).
      kernel: (..., C, D).
      strides: as for :func:`convolve`.
      padding: as for :func:`convolve`.
      dilation: as for :func:`convolve`.
    """
    if images.ndim != 4 or images.dtype != jnp.float32 or kernel.dtype != jnp.float32:
        return False
    if not images.size or not kernel.size or min(np.ravel(padding)) < 0:
        return False
    sizes = output_sizes(images.shape, kernel.shape, strides, padding, dilation)
    # The gradient of a kernel is a convolution whose kernel is as large as the images.
    # oneDNN has no fast code for that.
    if min(sizes) < 1 or kernel.shape[0] > sizes[0] or kernel.shape[1] > sizes[1]:
        return False
    return is_available()


def output_sizes(
    images: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    padding: Padding,
    dilation: Sequence[int],
) -> list[int]:
    """The spatial sizes of a convolution's output.

    Args:
      images: shape (B, ..., C).
      kernel: shape (..., C, D).
      strides: of the window, one for each axis.
      padding: places before and after, for each axis.
      dilation: of the kernel, one for each axis.
    """
    return [
        (size + low + high - (taps - 1) * spread - 1) // stride + 1
        for size, taps, stride, (low, high), spread in zip(
            images[1:-1], kernel[:-2], strides, padding, dilation, strict=True
        )
    ]


def is_available() -> bool:
    """Whether this process may make the call; see the module for the conditions."""
    mode = os.environ.get("OPNORM_ONEDNN", "auto")
    if mode not in ("auto", "off"):
        raise ValueError(f"OPNORM_ONEDNN is {mode!r}; it may be 'auto' or 'off'.")
    if mode == "off" or jax.default_backend() != "cpu":
        return False
    return jax.device_count() == 1 and _works_here()


@functools.cache
def _works_here() -> bool:
    release = jax.lib.__version__
    if release not in RELEASES or platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    answer = _cache_folder() / f"onednn-{release}-{_processor()}.json"
    try:
        return bool(json.loads(answer.read_text())["works"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    works = _ask_child()
    if works is not None:
        _write(answer, json.dumps({"works": works}))
    return bool(works)


def _cache_folder() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "opnorm"


def _processor() -> str:
    """A name for the kind of processor: what oneDNN chooses its code by."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    kinds = ("model name", "flags", "vendor_id", "cpu family", "model")
    kept = sorted({line for line in lines if line.partition(":")[0].strip() in kinds})
    text = "\n".join([platform.platform(), platform.processor(), *kept])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _write(file: Path, text: str) -> None:
    """Writes a file whole; it is no error if the folder cannot be written into."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=file.parent, delete=False
        ) as temporary:
            temporary.write(text)
        os.replace(temporary.name, file)
    except OSError:
        return


def _ask_child() -> bool | None:
    """Whether the calls of :func:`probe` work; None if no child process could say."""
    if not sys.executable:
        return None
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "OPNORM_ONEDNN": "off"}
    # The child finds this package where the parent found it.
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    try:
        ended = subprocess.run(
            [sys.executable, "-c", _CHILD],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_CHILD_SECONDS,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return ended.returncode == 0


def probe() -> None:
    """Makes one call of each kind that :func:`supports` allows and checks its values.

    Raises:
      RuntimeError: if a value is wrong. The process ends if oneDNN refuses a call.
    """
    rng = np.random.default_rng(0)
    for strides in ((1, 1), (2, 2), (2, 1)):
        for padding in (((1, 1), (1, 1)), ((0, 0), (0, 0)), ((0, 1), (2, 1))):
            for dilation in ((1, 1), (2, 2)):
                for taps, channels in (((3, 3), (3, 16)), ((1, 1), (16, 10))):
                    images = rng.standard_normal((2, 9, 8, channels[0]))
                    kernel = rng.standard_normal((*taps, *channels))
                    window = {
                        "strides": strides,
                        "padding": padding,
                        "dilation": dilation,
                    }
                    call = jax.jit(functools.partial(convolve, **window))
                    found = call(images.astype(np.float32), kernel.astype(np.float32))
                    right = _reference(images, kernel, **window)
                    if not np.allclose(found, right, rtol=1e-4, atol=1e-4):
                        raise RuntimeError(f"oneDNN convolves wrongly: {window}.")


def _reference(
    images: np.ndarray,
    kernel: np.ndarray,
    *,
    strides: Sequence[int],
    padding: Padding,
    dilation: Sequence[int],
) -> np.ndarray:
    """The convolution in NumPy, one tap after another."""
    sizes = output_sizes(images.shape, kernel.shape, strides, padding, dilation)
    padded = np.pad(images, ((0, 0), *padding, (0, 0)))
    total = np.zeros((len(images), *sizes, kernel.shape[-1]))
    for row, column in np.ndindex(*kernel.shape[:2]):
        first = (row * dilation[0], column * dilation[1])
        rows, columns = (
            slice(start, start + stride * (size - 1) + 1, stride)
            for start, stride, size in zip(first, strides, sizes, strict=True)
        )
        total += padded[:, rows, columns] @ kernel[row, column]
    return total


@functools.cache
def _differentiable(strides, padding, dilation):
    """The call for one window, with its derivative and its ``vmap``."""
    exact = functools.partial(
        lax.conv_general_dilated,
        window_strides=strides,
        padding=padding,
        rhs_dilation=dilation,
        dimension_numbers=_LAYOUT,
    )

    @jax.custom_batching.custom_vmap
    def call(images, kernel):
        sizes = output_sizes(images.shape, kernel.shape, strides, padding, dilation)
        shape = (images.shape[0], *sizes, kernel.shape[-1])
        return jax.ffi.ffi_call(
            _TARGET,
            jax.ShapeDtypeStruct(shape, images.dtype),
            custom_call_api_version=2,
            legacy_backend_config=_backend_config(
                kernel.shape[:2], strides, padding, dilation
            ),
        )(images, kernel)

    @call.def_vmap
    def batched(size, mapped, images, kernel):
        if all(mapped):
            return jax.vmap(exact)(images, kernel), True
        if mapped[0]:
            merged = call(images.reshape(-1, *images.shape[2:]), kernel)
            return merged.reshape(size, -1, *merged.shape[1:]), True
        wide = jnp.moveaxis(kernel, 0, -2)
        wide = wide.reshape(*wide.shape[:-2], -1)
        out = call(images, wide)
        out = out.reshape(*out.shape[:-1], size, -1)
        return jnp.moveaxis(out, -2, 0), True

    @jax.custom_jvp
    def convolution(images, kernel):
        return call(images, kernel)

    def derivative(primals, tangents):
        images, kernel = primals
        parts = []
        if not isinstance(tangents[0], SymbolicZero):
            parts.append(exact(tangents[0], kernel))
        if not isinstance(tangents[1], SymbolicZero):
            parts.append(exact(images, tangents[1]))
        out = convolution(images, kernel)
        return out, sum(parts) if parts else jnp.zeros_like(out)

    convolution.defjvp(derivative, symbolic_zeros=True)
    return convolution


def _backend_config(taps, strides, padding, dilation):
    """The call's configuration: XLA's ``OneDnnConvolutionConfig`` as JSON."""

    def numbers(values):
        return [str(value) for value in values]

    data = {"batch_dim": "0", "feature_dim": "3", "spatial_dims": ["1", "2"]}
    images = {"dims": "4", "data": data}
    kernel = {
        "input_feature_dim": "2",
        "output_feature_dim": "3",
        "spatial_dims": ["0", "1"],
    }
    window = {
        "size": numbers(taps),
        "pad_left": numbers(low for low, _ in padding),
        "pad_right": numbers(high for _, high in padding),
        "strides": numbers(strides),
        "window_dilations": numbers(dilation),
    }
    return json.dumps(
        {
            "onednn_conv_config": {
                "dims": "4",
                "input": images,
                "kernel": {"dims": "4", "filter": kernel},
                "output": images,
                "window": window,
                "feature_groups": "1",
            }
        }
    )
