"""experiments: the part of the benchmark that is about spectra."""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np

from experiments.common import timing
from opnorm import attacks, linalg, operators, training

_LANCZOS_STEPS = 10
_COUNTED_IMAGES = 64
_MOST_POWER_STEPS = 100
_MOST_LANCZOS_STEPS = 20
# Products with an explicit matrix are cheap: the process itself shows in the time.
_MATRIX_SIZE = 1500
_MATRIX_STEPS = 30
# Rounds of what takes milliseconds, as a multiple of those of the rest.
_SHORT_ROUNDS = 10


def measure(
    compilations: timing.Compilations,
    net: training.Modes,
    params: Any,
    batch_stats: Any,
    x: jax.Array,
    y: jax.Array,
    *,
    width: int,
    num_rounds: int,
) -> tuple[dict[str, float], dict[str, float]]:
    """Measures norms of features and logits, and Lanczos on parameters and a matrix.

    Args:
      compilations: counts what is traced.
      net: CNN7 of the given width.
      params: its parameters.
      batch_stats: its BatchNorm statistics.
      x: ``(B, 32, 32, 3)`` float, pixels in [0, 1].
      y: ``(B,)`` int.
      width: of CNN7.
      num_rounds: of timing.

    Returns:
      Seconds of each function; ratios and counts of passes.
    """
    variables = {"params": params, "batch_stats": batch_stats}
    ratios = _passes_to_the_norm(compilations, variables, x, width)

    def loss(params: Any, batch: Any) -> jax.Array:
        images, labels = batch
        logits = net.infer(params, batch_stats, images)
        return jnp.mean(attacks.cross_entropy(logits, labels))

    batches = (x[None], y[None])
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    start = jax.random.normal(jax.random.key(2), flat.shape)

    def product(params: Any, v: jax.Array) -> jax.Array:
        return operators.parameter_hessian(loss, params, batches).map.matvec(v[None])

    def lanczos(params: Any, v: jax.Array) -> Any:
        hessian = operators.parameter_hessian(loss, params, batches).map
        process = linalg.lanczos(hessian, _LANCZOS_STEPS, init=v[None])
        return linalg.ritz_pairs(process).values

    def exact_sum(params: Any) -> jax.Array:
        f = functools.partial(net.infer, params, batch_stats)
        return operators.jacobian_norm(f, x, p=2.0, q=1.0).value

    def spectral(params: Any) -> jax.Array:
        f = functools.partial(net.infer, params, batch_stats)
        return operators.jacobian_norm(f, x, method="dense").value

    drawn = np.random.default_rng(3).standard_normal((_MATRIX_SIZE,) * 2)
    matrix = jnp.asarray(drawn + drawn.T, jnp.float32)
    unit = jax.random.normal(jax.random.key(4), (_MATRIX_SIZE,))

    def lanczos_on_matrix(matrix: jax.Array, v: jax.Array) -> jax.Array:
        linear_map = linalg.from_matrix(matrix)
        return linalg.lanczos(linear_map, _MATRIX_STEPS, init=v[None]).diagonal

    named: dict[str, Any] = {
        "parameter Hessian product": (product, params, start),
        "Lanczos on parameters": (lanczos, params, start),
        "Lanczos on a matrix": (lanczos_on_matrix, matrix, unit),
        "exact (2, 1) norm": (exact_sum, params),
        "exact (2, 2) norm": (spectral, params),
    }
    if importlib.util.find_spec("matfree"):
        from matfree import decomp

        tridiagonalize = decomp.tridiag_sym(_LANCZOS_STEPS)

        # As its users write a product with a Hessian.
        def matfree(params: Any, v: jax.Array) -> Any:
            gradient = jax.grad(lambda flat: loss(unravel(flat), (x, y)))
            flat, _ = jax.flatten_util.ravel_pytree(params)
            found = tridiagonalize(lambda v: jax.jvp(gradient, (flat,), (v,))[1], v)
            return jnp.linalg.eigvalsh(found.J_small)

        named["matfree's Lanczos on parameters"] = (matfree, params, start)

        many_steps = decomp.tridiag_sym(_MATRIX_STEPS)

        def on_matrix(matrix: jax.Array, v: jax.Array) -> jax.Array:
            found = many_steps(lambda v: jnp.matmul(matrix, v, precision="highest"), v)
            return jnp.diagonal(found.J_small)

        named["matfree's Lanczos on a matrix"] = (on_matrix, matrix, unit)
    functions = {
        name: functools.partial(jax.jit(compilations.wrap(name, fun)), *args)
        for name, (fun, *args) in named.items()
    }
    # Milliseconds long, so that a few rounds would measure what else the machine does.
    short = {name: fun for name, fun in functions.items() if name.endswith("a matrix")}
    rest = {name: fun for name, fun in functions.items() if name not in short}
    rounds = timing.take_turns(rest, num_rounds)
    rounds |= timing.take_turns(short, _SHORT_ROUNDS * num_rounds)
    step = [t / _LANCZOS_STEPS for t in rounds["Lanczos on parameters"]]
    rounds["Lanczos step on parameters"] = step
    ratios["Lanczos step on parameters / one product"] = timing.ratio(
        rounds, "Lanczos step on parameters", "parameter Hessian product"
    )
    ratios["exact (2, 1) norm / exact (2, 2) norm"] = timing.ratio(
        rounds, "exact (2, 1) norm", "exact (2, 2) norm"
    )
    if "matfree's Lanczos on parameters" in rounds:
        ratios["Lanczos on parameters / matfree's"] = timing.ratio(
            rounds, "Lanczos on parameters", "matfree's Lanczos on parameters"
        )
        ratios["Lanczos on a matrix / matfree's"] = timing.ratio(
            rounds, "Lanczos on a matrix", "matfree's Lanczos on a matrix"
        )
    return timing.medians(rounds), ratios


def _passes_to_the_norm(
    compilations: timing.Compilations, variables: Any, x: jax.Array, width: int
) -> dict[str, float]:
    """Passes through the network until the features' norm is right to 1e-3."""
    module = training.build_model(training.Config(width=width), 10)

    def features(x: jax.Array) -> jax.Array:
        found: Any = module.apply(variables, x, outputs="all")
        return found.features

    # The same matrices for both, so that what is counted is the method's doing.
    x = x[:_COUNTED_IMAGES]
    jacobians = jax.jit(compilations.wrap("features", _dense(features)))(x)
    spectrum = np.linalg.svd(np.asarray(jacobians, np.float64), compute_uv=False)
    exact = spectrum[:, 0]
    linear_map = linalg.from_matrix(jacobians)

    def power(v: jax.Array) -> Any:
        found = linalg.operator_norm(linear_map, num_steps=1, init=v)
        return found.value, found.right

    step = jax.jit(compilations.wrap("power step", power))
    v = jax.random.normal(jax.random.key(5), (len(x), jacobians.shape[2]))
    start = jnp.einsum("bdn,bn->bd", jacobians, v)
    errors = []
    for _ in range(_MOST_POWER_STEPS):
        value, v = step(v)
        errors.append(np.abs(np.asarray(value) - exact) / exact)
    # Step k has made k products with J^T and, for the value, k + 1 with J.
    power_passes = _first(errors, lambda k: 2 * k + 1)
    errors, outside = [], 0
    for k in range(1, min(_MOST_LANCZOS_STEPS, *jacobians.shape[1:]) + 1):

        def triplets(start: jax.Array, k: int = k) -> Any:
            return linalg.golub_kahan(linear_map, num_steps=k, init=start)

        found = jax.jit(compilations.wrap(f"Golub-Kahan {k}", triplets))(start)
        off = np.abs(np.asarray(found.values) - exact[:, None])
        distance = np.abs(spectrum - np.asarray(found.values)).min(axis=1)
        outside += int(np.sum(distance > np.asarray(found.residual)[:, 0]))
        errors.append(off[:, 0] / exact)
    # Step k makes k products with J and k + 1 with J^T, the last for the error bar,
    # and the start that both share was made by one with J.
    lanczos_passes = _first(errors, lambda k: 2 * k + 2)
    return {
        "features to 1e-3: power passes": float(np.median(power_passes)),
        "features to 1e-3: Golub-Kahan passes": float(np.median(lanczos_passes)),
        "features to 1e-3: Golub-Kahan passes / power passes": float(
            np.median(lanczos_passes / power_passes)
        ),
        "outside their error bars": float(outside),
    }


def _dense(f: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    def compute(x: jax.Array) -> jax.Array:
        found = operators.dense_jacobian(f, x, max_bytes=2**33)
        return found.reshape(*found.shape[:2], -1)

    return compute


def _first(errors: list[np.ndarray], passes: Callable[[int], int]) -> np.ndarray:
    """Passes of each image until its error is 1e-3, or all of them and one step."""
    good = np.array(errors) <= 1e-3
    steps = np.where(good.any(axis=0), good.argmax(axis=0) + 1, len(errors) + 1)
    return np.array([passes(int(k)) for k in steps])
