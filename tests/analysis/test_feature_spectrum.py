"""Spectra and alignments within a limit of memory, and averages of them."""

import math

import jax
import numpy as np
import pytest

from opnorm import analysis

Partial = jax.tree_util.Partial
RNG = np.random.default_rng(3)
IMAGES = RNG.uniform(0.2, 0.8, (5, 3, 2))
WIDE = RNG.normal(size=(6, 4))
# W has more outputs than inputs, and rank 3.
TALL = RNG.normal(size=(6, 3)) @ RNG.normal(size=(3, 9))
PERTURBATIONS = RNG.normal(size=(2, 5, 3, 2))
# Bytes for the Jacobians of two examples in float64 and their decomposition.
TWO_EXAMPLES = 2 * 4 * 6 * 4 * 8


def quadratic(weight, x):
    """The Jacobian at x is ``weight.T diag(x)``, different for every example."""
    return (x.reshape(len(x), -1) ** 2 / 2) @ weight


def jacobians(weight):
    return [weight.T * x.reshape(-1) for x in IMAGES]


@pytest.mark.parametrize("weight", [WIDE, TALL], ids=["wide", "tall"])
@pytest.mark.parametrize("max_bytes", [2**20, 2 * TWO_EXAMPLES], ids=["all", "few"])
def test_singular_values_are_those_of_numpy(weight, max_bytes) -> None:
    progress: list[float] = []
    with jax.enable_x64(True):
        found = analysis.singular_values(
            Partial(quadratic, weight),
            IMAGES,
            max_bytes=max_bytes,
            on_progress=progress.append,
        )
    expected = [np.linalg.svd(matrix, compute_uv=False) for matrix in jacobians(weight)]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    calls = 1 if max_bytes == 2**20 else (2 if weight is WIDE else 5)
    np.testing.assert_allclose(progress, np.arange(1, calls + 1) / calls)


def test_alignment_is_that_with_every_vector_of_numpy() -> None:
    with jax.enable_x64(True):
        found = analysis.alignment_by_rank(
            Partial(quadratic, WIDE),
            IMAGES,
            list(PERTURBATIONS),
            max_bytes=TWO_EXAMPLES,
        )
    assert found.cosine.shape == found.pearson.shape == (5, 2, 4)
    assert found.defined.all()
    for i, matrix in enumerate(jacobians(WIDE)):
        _, values, right = np.linalg.svd(matrix, full_matrices=False)
        np.testing.assert_allclose(found.values[i], values, rtol=1e-12)
        for p, z in enumerate(PERTURBATIONS[:, i].reshape(2, -1)):
            cosine = abs(right @ z) / np.linalg.norm(z)
            np.testing.assert_allclose(found.cosine[i, p], cosine, atol=1e-10)
            pearson = [abs(np.corrcoef(z, v)[0, 1]) for v in right]
            np.testing.assert_allclose(found.pearson[i, p], pearson, atol=1e-10)


def test_vectors_of_singular_values_that_are_zero_are_not_counted() -> None:
    with jax.enable_x64(True):
        found = analysis.alignment_by_rank(Partial(quadratic, TALL), IMAGES, [IMAGES])
    assert found.values.shape == (5, 6)
    np.testing.assert_array_equal(found.defined, [[True] * 3 + [False] * 3] * 5)
    assert np.all(found.cosine[:, 0, :3] > 0)
    np.testing.assert_array_equal(found.cosine[:, 0, 3:], 0)
    np.testing.assert_array_equal(found.pearson[:, 0, 3:], 0)


def test_bad_arguments_of_spectra_are_refused_by_name() -> None:
    images = IMAGES.astype(np.float32)
    f = Partial(quadratic, WIDE.astype(np.float32))
    with pytest.raises(ValueError, match=r"max_bytes is 100.*need 384"):
        analysis.singular_values(f, images, max_bytes=100)
    with pytest.raises(ValueError, match="batch_size"):
        analysis.singular_values(f, images, batch_size=0)
    with pytest.raises(ValueError, match="perturbations is empty"):
        analysis.alignment_by_rank(f, images, [])
    with pytest.raises(ValueError, match=r"perturbations has shape \(4, 3, 2\)"):
        analysis.alignment_by_rank(f, images, [images[1:]])


def test_an_average_has_the_standard_error_of_what_counts() -> None:
    values = RNG.normal(3.0, 2.0, size=(50, 3))
    found = analysis.average(values)
    np.testing.assert_allclose(found.mean, values.mean(axis=0))
    error = values.std(axis=0, ddof=1) / math.sqrt(50)
    np.testing.assert_allclose(found.standard_error, error)
    where = np.ones((50, 3), bool)
    where[10:, 1], where[1:, 2] = False, False
    values[~where] = np.nan
    some = analysis.average(values, where)
    np.testing.assert_array_equal(some.counted, [50, 10, 1])
    assert some.mean[1] == pytest.approx(values[:10, 1].mean())
    few = values[:10, 1].std(ddof=1) / math.sqrt(10)
    assert some.standard_error[1] == pytest.approx(few)
    assert some.mean[2] == values[0, 2]
    assert np.isnan(some.standard_error[2])
    assert np.isnan(analysis.average(np.ones(3), False).mean)
    assert np.isnan(analysis.average(values).mean[1])
    with pytest.raises(ValueError, match="values"):
        analysis.average(np.ones((0, 3)))
