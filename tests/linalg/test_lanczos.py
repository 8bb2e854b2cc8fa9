"""Lanczos eigenpairs and quadrature against dense eigendecompositions and SciPy."""

import functools
import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse.linalg
from matfree import decomp, eig

from opnorm import linalg

SIZE = 24


@functools.cache
def compiled(k=1, **options):
    """Eigenpairs of dense matrices as one program for each set of options."""

    def found(matrix, key):
        return linalg.eigenpairs(linalg.from_matrix(matrix), k, key=key, **options)

    return jax.jit(found)


def with_spectrum(values, seed=0, batch=2):
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(batch):
        basis, _ = np.linalg.qr(rng.normal(size=(len(values), len(values))))
        matrix = basis * np.asarray(values) @ basis.T
        found.append((matrix + matrix.T) / 2)
    return np.array(found)


def spectra():
    """Spectra of every kind that has made a Lanczos process fail."""
    numbers = st.floats(-10, 10, allow_nan=False).map(lambda v: round(v, 3))
    return st.one_of(
        st.lists(numbers, min_size=SIZE, max_size=SIZE),
        # Degenerate, with a few distinct values.
        st.lists(st.sampled_from([-3.0, 0.0, 1.0, 2.0]), min_size=SIZE, max_size=SIZE),
        # Clustered around one.
        st.lists(st.floats(0.999, 1.001), min_size=SIZE, max_size=SIZE),
        # Of low rank.
        st.integers(0, 3).map(lambda r: [5.0, -4.0, 3.0][:r] + [0.0] * (SIZE - r)),
        # Of huge condition.
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

    # Rounds inside, and says nothing of it in its dtype.
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


@pytest.mark.parametrize("reorthogonalize", [True, False])
def test_quadrature_gives_the_moments_and_the_density(reorthogonalize):
    with jax.enable_x64(True):
        values = np.concatenate([np.linspace(-1, 1, 18), [4.0] * 6])
        a = with_spectrum(values)

        def run(a, key):
            return linalg.spectral_density(
                linalg.from_matrix(a),
                num_steps=12,
                num_probes=400,
                key=key,
                reorthogonalize=reorthogonalize,
            )

        density = jax.jit(run)(a, jax.random.key(0))
        np.testing.assert_allclose(density.weights.sum(-1), 1, rtol=1e-10)
        for power in (1, 2, 5):
            mean, error = density.moment(power)
            exact = np.mean(values**power)
            assert np.all(np.abs(mean - exact) < 4 * error), power
            assert np.all(error < 0.1 * np.mean(np.abs(values) ** power))
        with pytest.raises(ValueError, match="power is -1; it must be an int of 0"):
            density.moment(-1)
        with pytest.raises(ValueError, match=r"power is 0.5"):
            density.moment(0.5)
        grid = jnp.linspace(-4, 7, 400)
        found = density.at(grid, 0.3)
        bells = np.exp(-0.5 * ((grid[:, None] - values) / 0.3) ** 2)
        exact = np.mean(bells, axis=1) / (0.3 * np.sqrt(2 * np.pi))
        assert np.abs(found.mean - exact).max() < 0.05 * exact.max()
        area = np.sum(found.mean, axis=1) * (grid[1] - grid[0])
        np.testing.assert_allclose(area, 1, atol=1e-3)


def test_error_bars_of_a_density_contain_the_error_of_the_quadrature():
    values = np.stack([np.linspace(0, 1, SIZE), np.r_[[5.0] * 4, np.zeros(SIZE - 4)]])

    @jax.jit
    def run(values, widths, grid):
        maps = linalg.from_matrix(jax.vmap(jnp.diag)(values))
        key = jax.random.key(0)
        density = linalg.spectral_density(maps, num_steps=5, num_probes=3, key=key)
        return [density.at(grid, width) for width in widths]

    grid, widths = np.linspace(-1, 6, 57), np.array([0.01, 0.1, 0.5])
    found = run(values, widths, grid)
    for width, (mean, error) in zip(widths, found, strict=True):
        away = (grid[:, None] - values[:, None]) / width
        exact = np.exp(-0.5 * away**2).mean(-1) / (width * math.sqrt(2 * math.pi))
        # The probes see a diagonal map exactly, so the bound alone must hold.
        assert np.all(np.abs(mean - exact) <= np.asarray(error) + 1e-4 * exact.max())
        assert np.any(np.abs(mean[0] - exact[0]) > 0.3 * exact[0].max()) == (
            width == 0.01
        )
    # The more steps in a width, the smaller the bound; it is no more than all of it.
    relative = [np.max(error[0]) / np.max(mean[0]) for mean, error in found]
    assert relative[2] < relative[1] < relative[0] < 3


def test_trace_and_frobenius_norm_are_unbiased_with_their_errors():
    with jax.enable_x64(True):
        a = np.random.default_rng(0).normal(size=(2, 6, 6))
        matrices = (a, a[:, :2], a[:, :, :2])
        diagonal = linalg.from_matrix(jnp.diag(jnp.arange(5.0))[None])
        key = jax.random.key(0)

        @jax.jit
        def estimates(matrices, key):
            maps = [linalg.from_matrix(matrix) for matrix in matrices]
            options = {"num_probes": 1000, "key": key}
            return (
                linalg.trace(maps[0], **options),
                linalg.trace(diagonal, key=key).mean,
                [linalg.squared_frobenius_norm(m, **options) for m in maps],
            )

        (mean, error), exactly, squared = estimates(matrices, key)
        assert np.all(np.abs(mean - np.trace(a, axis1=1, axis2=2)) < 4 * error)
        for matrix, (mean, error) in zip(matrices, squared, strict=True):
            exact = np.sum(matrix**2, axis=(1, 2))
            assert np.all(np.abs(mean - exact) <= 4 * error + 1e-9)
        np.testing.assert_allclose(exactly, 10)
        with pytest.raises(ValueError, match="num_probes is 0"):
            linalg.trace(diagonal, num_probes=0, key=key)
        with pytest.raises(ValueError, match="square"):
            linalg.trace(linalg.from_matrix(jnp.asarray(a[:, :2])), key=key)
