"""Matrices with known spectra, and norms and convolutions by their definitions."""

import itertools
import math

import numpy as np


def with_spectrum(values, seed=0, batch=2):
    """A batch of symmetric matrices with the given eigenvalues."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(batch):
        basis, _ = np.linalg.qr(rng.normal(size=(len(values), len(values))))
        matrix = basis * np.asarray(values) @ basis.T
        found.append((matrix + matrix.T) / 2)
    return np.array(found)


def signs(n):
    """All sign vectors ``(2^n, n)``."""
    return np.array(list(itertools.product((-1.0, 1.0), repeat=n)))


def exact_norm(a, p, q):
    """The (p, q) norm of one matrix in float64, where it needs no iteration."""
    if p == 1:
        return np.linalg.norm(a, q, axis=0).max()
    dual = 1.0 if p == math.inf else p / (p - 1)
    if q == math.inf:
        return np.linalg.norm(a, dual, axis=1).max()
    if p == q == 2:
        return np.linalg.norm(a, 2)
    if p == math.inf:
        return np.linalg.norm(signs(a.shape[1]) @ a.T, q, axis=1).max()
    assert q == 1
    return np.linalg.norm(signs(a.shape[0]) @ a, dual, axis=1).max()


def dense_convolution(kernel, sizes, strides, padding, dilation, groups):
    """The matrix by the definition, window by window and tap by tap."""
    *taps, inputs, outputs = kernel.shape
    extents = [(k - 1) * d + 1 for k, d in zip(taps, dilation, strict=True)]
    if padding == "SAME":
        windows = [-(-n // s) for n, s in zip(sizes, strides, strict=True)]
        missing = np.subtract(np.multiply(np.subtract(windows, 1), strides), sizes)
        missing = np.maximum(missing + extents, 0)
        pads = [(m // 2, m - m // 2) for m in missing]
    elif padding == "CIRCULAR":
        pads = [((e - 1) // 2, e // 2) for e in extents]
    else:
        pads = [(0, 0)] * len(sizes) if padding == "VALID" else padding
    windows = np.add(sizes, np.sum(pads, axis=1)) - extents
    windows = windows // np.array(strides) + 1
    matrix = np.zeros((*windows, outputs, *sizes, inputs * groups))
    part = outputs // groups
    for window in np.ndindex(*windows):
        for tap in np.ndindex(*taps):
            place = np.multiply(window, strides) + np.multiply(tap, dilation)
            place = place - np.array(pads)[:, 0]
            if padding == "CIRCULAR":
                place = place % sizes
            elif np.any(place < 0) or np.any(place >= sizes):
                continue
            for g in range(groups):
                out = slice(g * part, (g + 1) * part)
                into = slice(g * inputs, (g + 1) * inputs)
                matrix[(*window, out, *place, into)] += kernel[
                    (*tap, slice(None), out)
                ].T
    return matrix.reshape(np.prod(windows) * outputs, -1)
