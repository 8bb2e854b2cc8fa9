"""The cost of norms of features and logits, and of Lanczos beside matfree's."""

import dataclasses
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np

from experiments.benchmark.setting import Found, Setting, Subject, subject
from experiments.common import timing
from opnorm import attacks, linalg, models, operators
from opnorm.linalg import Params

_LANCZOS_STEPS = 10
_COUNTED_IMAGES = 64
_MOST_POWER_STEPS = 100
_MOST_LANCZOS_STEPS = 20
# Products with an explicit matrix are cheap, so the time is that of the process itself.
_MATRIX_SIZE = 1500
_MATRIX_STEPS = 30
# Rounds of functions that take milliseconds, as a multiple of those of the others.
_SHORT_ROUNDS = 10
_PRODUCT = "parameter Hessian product"
_LANCZOS = "Lanczos on parameters"
_LANCZOS_STEP = "Lanczos step on parameters"
_ON_MATRIX = "Lanczos on a matrix"


class Timed(NamedTuple):
    """A function to time, and its arguments."""

    fun: Callable[..., Any]
    args: tuple[Any, ...]


def measure(setting: Setting) -> Found:
    """Measures norms of features and logits, and Lanczos on parameters and a matrix.

    Among the ratios are numbers of passes through the network.
    """
    given = subject(setting)
    ratios = _passes_to_the_norm(setting, given)
    timed = {**_on_parameters(given), **_exact_norms(given)}
    # These take milliseconds, and a few rounds would measure other processes.
    short = {_ON_MATRIX: lanczos_on_matrix()}
    if importlib.util.find_spec("matfree"):
        timed[f"matfree's {_LANCZOS}"] = _matfree_on_parameters(given)
        short[f"matfree's {_ON_MATRIX}"] = matfree_on_matrix()
    rounds: dict[str, list[float]] = {}
    for functions, times in ((timed, 1), (short, _SHORT_ROUNDS)):
        compiled = {
            name: setting.compiled(name, fun, *args)
            for name, (fun, args) in functions.items()
        }
        rounds |= timing.take_turns(compiled, times * setting.num_rounds)
    rounds[_LANCZOS_STEP] = [t / _LANCZOS_STEPS for t in rounds[_LANCZOS]]
    ratios[f"{_LANCZOS_STEP} / one product"] = timing.ratio(
        rounds, _LANCZOS_STEP, _PRODUCT
    )
    ratios |= timing.ratios(rounds, ("exact (2, 1) norm", "exact (2, 2) norm"))
    for name in (_LANCZOS, _ON_MATRIX):
        if f"matfree's {name}" in rounds:
            ratios[f"{name} / matfree's"] = timing.ratio(
                rounds, name, f"matfree's {name}"
            )
    return Found(timing.medians(rounds), ratios)


def _exact_norms(given: Subject) -> dict[str, Timed]:
    def exact_sum(f: models.Network) -> jax.Array:
        return operators.jacobian_norm(f, given.x, p=2.0, q=1.0).value

    def spectral(f: models.Network) -> jax.Array:
        return operators.jacobian_norm(f, given.x, method="dense").value

    return {
        "exact (2, 1) norm": Timed(exact_sum, (given.network,)),
        "exact (2, 2) norm": Timed(spectral, (given.network,)),
    }


def _loss(given: Subject) -> Callable[[Params, Any], jax.Array]:
    """The mean loss of a batch as a function of the parameters."""
    variables = given.network.variables

    def loss(params: Params, batch: Any) -> jax.Array:
        images, labels = batch
        changed = {**variables, "params": params}
        f = dataclasses.replace(given.network, variables=changed)
        return jnp.mean(attacks.cross_entropy(f(images), labels))

    return loss


def _on_parameters(given: Subject) -> dict[str, Timed]:
    loss, batches = _loss(given), (given.x[None], given.y[None])

    def product(params: Params, v: jax.Array) -> jax.Array:
        return operators.parameter_hessian(loss, params, batches).map.matvec(v[None])

    def lanczos(params: Params, v: jax.Array) -> jax.Array:
        hessian = operators.parameter_hessian(loss, params, batches).map
        process = linalg.lanczos(hessian, _LANCZOS_STEPS, init=v[None])
        return linalg.ritz_pairs(process).values

    args = (given.network.params, _start(given))
    return {_PRODUCT: Timed(product, args), _LANCZOS: Timed(lanczos, args)}


def _start(given: Subject) -> jax.Array:
    flat, _ = jax.flatten_util.ravel_pytree(given.network.params)
    return jax.random.normal(jax.random.key(2), flat.shape)


def _matfree_on_parameters(given: Subject) -> Timed:
    from matfree import decomp

    tridiagonalize = decomp.tridiag_sym(_LANCZOS_STEPS)
    loss, batch = _loss(given), (given.x, given.y)
    _, unravel = jax.flatten_util.ravel_pytree(given.network.params)

    # The users of matfree write a product with a Hessian so.
    def lanczos(params: Params, v: jax.Array) -> Any:
        gradient = jax.grad(lambda flat: loss(unravel(flat), batch))
        flat, _ = jax.flatten_util.ravel_pytree(params)
        found = tridiagonalize(lambda v: jax.jvp(gradient, (flat,), (v,))[1], v)
        return jnp.linalg.eigvalsh(found.J_small)

    return Timed(lanczos, (given.network.params, _start(given)))


def _matrix() -> tuple[jax.Array, jax.Array]:
    """A symmetric matrix, and the vector that both processes start from."""
    drawn = np.random.default_rng(3).standard_normal((_MATRIX_SIZE,) * 2)
    matrix = jnp.asarray(drawn + drawn.T, jnp.float32)
    return matrix, jax.random.normal(jax.random.key(4), (_MATRIX_SIZE,))


def lanczos_on_matrix() -> Timed:
    """Returns Lanczos on an explicit matrix, and its arguments."""

    def lanczos(matrix: jax.Array, v: jax.Array) -> jax.Array:
        linear_map = linalg.from_matrix(matrix)
        return linalg.lanczos(linear_map, _MATRIX_STEPS, init=v[None]).diagonal

    return Timed(lanczos, _matrix())


def matfree_on_matrix() -> Timed:
    """Returns matfree's Lanczos on the same matrix, and its arguments."""
    from matfree import decomp

    tridiagonalize = decomp.tridiag_sym(_MATRIX_STEPS)

    def lanczos(matrix: jax.Array, v: jax.Array) -> Any:
        found = tridiagonalize(lambda v: jnp.matmul(matrix, v, precision="highest"), v)
        return jnp.diagonal(found.J_small)

    return Timed(lanczos, _matrix())


def _passes_to_the_norm(setting: Setting, given: Subject) -> dict[str, float]:
    """Counts passes through the network until the features' norm is right to 1e-3."""
    # Both methods get the same matrices, so the counts differ by the method alone.
    x = given.x[:_COUNTED_IMAGES]
    features = given.network.features
    jacobians = setting.compiled("features", _dense_jacobians, features, x)()
    spectrum = np.linalg.svd(np.asarray(jacobians, np.float64), compute_uv=False)
    v = jax.random.normal(jax.random.key(5), (len(x), jacobians.shape[2]))
    power_passes = _power_passes(setting, jacobians, v, spectrum[:, 0])
    start = jnp.einsum("bdn,bn->bd", jacobians, v)
    lanczos_passes, outside = _lanczos_passes(setting, jacobians, start, spectrum)
    ratio = lanczos_passes / power_passes
    name = "features to 1e-3:"
    return {
        f"{name} power passes": float(np.median(power_passes)),
        f"{name} Golub-Kahan passes": float(np.median(lanczos_passes)),
        f"{name} Golub-Kahan passes / power passes": float(np.median(ratio)),
        "outside their error bars": float(outside),
    }


def _power_passes(
    setting: Setting, jacobians: jax.Array, v: jax.Array, exact: np.ndarray
) -> np.ndarray:
    linear_map = linalg.from_matrix(jacobians)

    def power(v: jax.Array) -> tuple[jax.Array, jax.Array]:
        found = linalg.operator_norm(linear_map, num_steps=1, init=v)
        return found.value, found.right

    step = jax.jit(setting.compilations.wrap("power step", power))
    errors = []
    for _ in range(_MOST_POWER_STEPS):
        value, v = step(v)
        errors.append(np.abs(np.asarray(value) - exact) / exact)
    # Step k has made k products with J^T and, for the value, k + 1 with J.
    return _first(errors, lambda k: 2 * k + 1)


def _lanczos_passes(
    setting: Setting, jacobians: jax.Array, start: jax.Array, spectrum: np.ndarray
) -> tuple[np.ndarray, int]:
    """The passes of Golub-Kahan, and how many values are outside their error bars."""
    linear_map, exact = linalg.from_matrix(jacobians), spectrum[:, 0]
    errors, outside = [], 0
    for k in range(1, min(_MOST_LANCZOS_STEPS, *jacobians.shape[1:]) + 1):

        def triplets(start: jax.Array, k: int = k) -> linalg.SingularTriplets:
            return linalg.golub_kahan(linear_map, num_steps=k, init=start)

        found = setting.compiled(f"Golub-Kahan {k}", triplets, start)()
        off = np.abs(np.asarray(found.values) - exact[:, None])
        distance = np.abs(spectrum - np.asarray(found.values)).min(axis=1)
        outside += int(np.sum(distance > np.asarray(found.residual)[:, 0]))
        errors.append(off[:, 0] / exact)
    # Step k makes k products with J and k + 1 with J^T, the last for the error bar. The
    # start, which both methods share, was made by one product with J.
    return _first(errors, lambda k: 2 * k + 2), outside


def _dense_jacobians(f: models.Network, x: jax.Array) -> jax.Array:
    found = operators.dense_jacobian(f, x, max_bytes=2**33)
    return found.reshape(*found.shape[:2], -1)


def _first(errors: list[np.ndarray], passes: Callable[[int], int]) -> np.ndarray:
    """Passes of each image until its error is 1e-3, or all of them and one step."""
    good = np.array(errors) <= 1e-3
    steps = np.where(good.any(axis=0), good.argmax(axis=0) + 1, len(errors) + 1)
    return np.array([passes(int(k)) for k in steps])
