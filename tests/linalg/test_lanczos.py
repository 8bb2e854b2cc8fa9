"""Lanczos eigenpairs against dense eigendecompositions and SciPy."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse.linalg
from matfree import decomp, eig

from opnorm import linalg
from tests.support.matrices import with_spectrum

SIZE = 24


@functools.cache
def compiled(k=1, **options):
    """Eigenpairs of dense matrices as one program for each set of options."""

    def found(matrix, key):
        return linalg.eigenpairs(linalg.from_matrix(matrix), k, key=key, **options)

    return jax.jit(found)


def spectra():
    """Spectra of all kinds on which a Lanczos process has failed."""
    numbers = st.floats(-10, 10, allow_nan=False).map(lambda v: round(v, 3))
    return st.one_of(
        st.lists(numbers, min_size=SIZE, max_size=SIZE),
        # Degenerate spectra with a few distinct values.
        st.lists(st.sampled_from([-3.0, 0.0, 1.0, 2.0]), min_size=SIZE, max_size=SIZE),
        # Spectra that are clustered around one.
        st.lists(st.floats(0.999, 1.001), min_size=SIZE, max_size=SIZE),
        # Spectra of low rank.
        st.integers(0, 3).map(lambda r: [5.0, -4.0, 3.0][:r] + [0.0] * (SIZE - r)),
        # Spectra with a huge condition number.
        st.floats(0.3, 1.2).map(lambda d: [10.0 ** (-d * i) for i in range(SIZE)]),
    )


@jax.jit
def all_extremes(matrix, key):
    process = linalg.lanczos(linalg.from_matrix(matrix), SIZE, key=key)
    return {
        which: linalg.ritz_pairs(process, 3, which=which)
        for which in ("largest", "smallest", "magnitude")
    }


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(values=spectra(), seed=st.integers(0, 100))
def test_all_steps_give_the_extremes_of_any_spectrum(values, seed):
    exact = np.sort(values)[::-1]
    size = np.abs(exact).max()
    with jax.enable_x64(True):
        a = with_spectrum(values, seed)
        process = all_extremes(a, jax.random.key(seed))
        for which, wanted in {
            "largest": exact[:3],
            "smallest": exact[::-1][:3],
            "magnitude": exact[np.argsort(-np.abs(exact), kind="stable")][:3],
        }.items():
            found = process[which]
            got, want = np.asarray(found.values), np.asarray([wanted, wanted])
            if which == "magnitude":
                got, want = np.abs(got), np.abs(want)
            np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-10 * size)
            gram = np.einsum("bkn,bln->bkl", found.vectors, found.vectors)
            np.testing.assert_allclose(gram, [np.eye(3)] * 2, atol=1e-9)
            images = np.einsum("bmn,bkn->bkm", a, found.vectors)
            error = images - np.asarray(found.values)[..., None] * found.vectors
            assert np.all(np.linalg.norm(error, axis=-1) <= found.residual + 1e-300)
    found = all_extremes(a.astype(np.float32), jax.random.key(seed))["largest"]
    np.testing.assert_allclose(
        found.values, [exact[:3]] * 2, rtol=1e-5, atol=1e-5 * size
    )


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(seed=st.integers(0, 1000), steps=st.sampled_from([3, 10]))
def test_an_eigenvalue_lies_within_each_error_bar(seed, steps):
    with jax.enable_x64(True):
        values = np.random.default_rng(seed).normal(size=SIZE)
        a = with_spectrum(values, seed)
        found = compiled(2, num_steps=steps)(a, jax.random.key(seed))
        distance = np.abs(np.asarray(found.values)[..., None] - values).min(-1)
        assert np.all(distance <= found.residual)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_error_bars_hold_for_maps_of_few_digits(dtype):
    matrix = jnp.asarray(with_spectrum(np.linspace(-3, 4, SIZE)), dtype)
    wide = np.asarray(matrix, np.float64)

    # The product is rounded inside; the dtype of the map does not tell.
    def multiply(x):
        return jnp.einsum("bij,bj->bi", matrix, x.astype(dtype)).astype(jnp.float32)

    hidden = linalg.LinearMap(multiply, multiply, 2, (SIZE,), (SIZE,), jnp.float32)
    for linear_map in (linalg.from_matrix(matrix), hidden):
        found = linalg.eigenpairs(linear_map, 2, num_steps=SIZE, key=jax.random.key(0))
        vectors = np.asarray(found.vectors, np.float64)
        values = np.asarray(found.values, np.float64)
        images = np.einsum("bij,bkj->bki", wide, vectors)
        error = np.linalg.norm(images - values[..., None] * vectors, axis=-1)
        assert np.all(error > 1e-4)
        assert np.all(error <= found.residual)


def test_a_map_that_is_not_symmetric_has_wide_error_bars():
    matrix = np.random.default_rng(0).normal(size=(2, SIZE, SIZE))
    found = compiled(3, num_steps=SIZE)(jnp.asarray(matrix), jax.random.key(0))
    images = np.einsum("bij,bkj->bki", matrix, found.vectors)
    error = np.linalg.norm(images - found.values[..., None] * found.vectors, axis=-1)
    assert np.all(error > 1)
    assert np.all(error <= found.residual)


def test_extremes_are_scipys():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(200, 200))
    a = (a + a.T).astype(np.float32)
    for which, name in {"largest": "LA", "smallest": "SA", "magnitude": "LM"}.items():
        found = compiled(2, which=which, num_steps=60)(a, jax.random.key(0))
        expected = scipy.sparse.linalg.eigsh(
            a.astype(np.float64), 2, which=name, return_eigenvectors=False
        )
        order = np.argsort(-np.abs(expected))
        np.testing.assert_allclose(found.values[0], expected[order], rtol=1e-5)


def test_the_process_is_matfrees():
    with jax.enable_x64(True):
        a = jnp.asarray(with_spectrum(np.linspace(-3, 7, SIZE))[0])
        start = jax.random.normal(jax.random.key(0), (SIZE,))
        ours = jax.jit(
            lambda a, start: linalg.lanczos(
                linalg.from_matrix(a), 8, init=start[None], reorthogonalize=True
            )
        )(a, start)
        tridiagonal = decomp.tridiag_sym(8)
        theirs = jax.jit(lambda start, a: tridiagonal(lambda v, a: a @ v, start, a))(
            start, a
        )
        np.testing.assert_allclose(
            jnp.diagonal(theirs.J_small), ours.diagonal[0], rtol=1e-10
        )
        beside = jnp.diagonal(theirs.J_small, 1)
        np.testing.assert_allclose(beside, ours.off_diagonal[0, :-1], rtol=1e-10)
        square = jnp.asarray(np.random.default_rng(0).normal(size=(12, 12)))
        found = jax.jit(
            lambda a: linalg.golub_kahan(
                linalg.from_matrix(a), 12, num_steps=12, key=jax.random.key(1)
            )
        )(square)
        partial = eig.svd_partial(decomp.bidiag(12))
        _, values, _ = jax.jit(lambda a: partial(lambda v, a: a @ v, jnp.ones(12), a))(
            square
        )
        np.testing.assert_allclose(found.values[0], np.sort(values)[::-1], rtol=1e-10)


def test_one_process_gives_both_ends():
    with jax.enable_x64(True):
        values = np.linspace(-3, 7, SIZE)
        found = all_extremes(with_spectrum(values), jax.random.key(0))
        for which, expected in {"largest": 7.0, "smallest": -3.0}.items():
            np.testing.assert_allclose(
                found[which].values[:, 0], [expected] * 2, rtol=1e-10
            )


def test_tolerance_stops_early_with_the_error_it_allows():
    with jax.enable_x64(True):
        values = np.concatenate([np.linspace(0, 1, SIZE - 1), [3.0]])
        a = with_spectrum(values)
        found = compiled(num_steps=SIZE, tolerance=1e-4)(a, jax.random.key(0))
        assert 1 < found.num_steps < SIZE
        assert np.all(found.residual <= 1e-4 * 3.0001)
        np.testing.assert_allclose(found.values, 3.0, rtol=1e-4)
        start = found.vectors[:, 0]
        again = jax.jit(
            lambda a, start: linalg.eigenpairs(
                linalg.from_matrix(a), num_steps=SIZE, tolerance=1e-3, init=start
            )
        )(a, start)
        assert again.num_steps == 1


def test_repeated_values_are_found_on_a_tolerance():
    rest = np.linspace(0, 0.1, SIZE - 4)
    tops = [[10, 10, 5, 1], [10, 10, 10, 10], [4, 3, 2, 1], [3, 2, 2, 2], [7, 6, 0, 0]]
    a = np.concatenate([with_spectrum([*top, *rest], batch=1) for top in tops])
    run = compiled(3, which="largest", num_steps=4 * SIZE, tolerance=1e-3)
    with pytest.raises(ValueError, match="num_steps is 96"):
        run(a, jax.random.key(0))
    run = compiled(3, which="largest", num_steps=SIZE, tolerance=1e-3)
    found = run(a.astype(np.float32), jax.random.key(0))
    expected = [[10, 10, 5], [10, 10, 10], [4, 3, 2], [3, 2, 2], [7, 6, 0.1]]
    np.testing.assert_allclose(found.values, expected, rtol=1e-3)
    gram = np.einsum("bkn,bln->bkl", found.vectors, found.vectors)
    np.testing.assert_allclose(gram, [np.eye(3)] * 5, atol=1e-5)
    images = np.einsum("bmn,bkn->bkm", a, found.vectors)
    error = images - np.asarray(found.values)[..., None] * found.vectors
    assert np.all(np.linalg.norm(error, axis=-1) <= found.residual)


def test_no_random_vector_is_drawn_without_a_breakdown():
    def run(a, key):
        return linalg.lanczos(linalg.from_matrix(a), 3, init=jnp.ones((1, 4))).diagonal

    jaxpr = jax.make_jaxpr(run)(jnp.eye(4), jax.random.key(0))
    (loop,) = (e for e in jaxpr.eqns if e.primitive.name in ("scan", "while"))
    body = loop.params.get("jaxpr", loop.params.get("body_jaxpr"))
    names = [equation.primitive.name for equation in body.jaxpr.eqns]
    assert "cond" in names
    assert "random_bits" not in names


def test_a_map_of_nan_spoils_no_other():
    a = with_spectrum(np.arange(SIZE) * 1.0, batch=3).astype(np.float32)
    spoilt = a.copy()
    spoilt[1, 2, 3] = np.nan
    run = compiled(2, num_steps=SIZE)
    clean, found = run(a, jax.random.key(0)), run(spoilt, jax.random.key(0))
    assert np.all(np.isnan(found.values[1]))
    np.testing.assert_allclose(found.values[::2], clean.values[::2], rtol=1e-6)


def test_without_orthogonalisation_extremes_hold_and_copies_appear():
    with jax.enable_x64(True):
        values = np.concatenate([np.linspace(0, 1, 199), [10.0]])
        a = with_spectrum(values, batch=1)

        def run(a, key):
            linear_map = linalg.from_matrix(a)
            return linalg.lanczos(linear_map, 80, key=key, reorthogonalize=False)

        process = jax.jit(run)(a, jax.random.key(0))
        assert process.basis is None
        t = np.diag(process.diagonal[0])
        beside = np.asarray(process.off_diagonal[0, :-1])
        t += np.diag(beside, 1) + np.diag(beside, -1)
        found = np.linalg.eigvalsh(t)
        np.testing.assert_allclose(found[-1], 10.0, rtol=1e-10)
        assert np.sum(np.abs(found - 10) < 1e-6) > 1
        with pytest.raises(ValueError, match="basis"):
            linalg.ritz_pairs(process)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k is 0"),
        ({"k": 5, "num_steps": 4}, "k is 5"),
        ({"which": "middle"}, "which is 'middle'.*largest"),
        ({"num_steps": 30}, "num_steps is 30.*24"),
        ({"tolerance": 0.0}, "tolerance is 0"),
        ({"key": None}, "init and key"),
        ({"init": jnp.ones((2, 3))}, "init has shape"),
    ],
)
def test_bad_options_are_refused(options, message):
    a = linalg.from_matrix(jnp.eye(SIZE)[None])
    with pytest.raises(ValueError, match=message):
        linalg.eigenpairs(a, **{"key": jax.random.key(0), **options})
    with pytest.raises(ValueError, match="symmetric"):
        linalg.lanczos(linalg.from_matrix(jnp.ones((2, 3))), 1, key=jax.random.key(0))
