r"""Measures what opnorm's kernels and train steps cost, as ratios within one run.

  python -m experiments.benchmark                      # CPU: CNN7 at width 16
  python -m experiments.benchmark --width=128 --batch_size=512   # a GPU, < 10 minutes

Absolute times differ between machines and hours; ratios of interleaved runs hold. Every
number is a median over rounds, every ratio the median of the rounds' own ratios. Writes
benchmark.json and table.md into --run.
"""

import functools
import importlib.util
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax import lax

from experiments import cli
from opnorm import attacks, data, linalg, operators, training
from opnorm.training import methods, network, optimizers
from opnorm.training.step import init_state

_RUN = flags.DEFINE_string("run", "runs/benchmark", "directory to write to")
_WIDTH = flags.DEFINE_integer("width", 16, "width of CNN7")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "examples per step")
_ROUNDS = flags.DEFINE_integer("rounds", 7, "interleaved rounds, at least 3")
_ALL_PARTS = ("attack", "power", "train", "spectrum")
_PARTS = flags.DEFINE_list(
    "parts", list(_ALL_PARTS), f"what to measure, out of {', '.join(_ALL_PARTS)}"
)
_STEPS = flags.DEFINE_list("steps", ["10", "100"], "attack steps K to measure")

# Slower functions are timed once, not in every round.
_LONG = 5.0
_LANCZOS_STEPS = 10
_COUNTED_IMAGES = 64
_MOST_POWER_STEPS = 100
_MOST_LANCZOS_STEPS = 20

# The most that each ratio may be; what the project promises.
LIMITS = {
    "10 power steps / 20 linear passes": 1.2,
    "SNR, 10 power steps / adversarial step": 1.1,
    "SNR, exact dense / adversarial step": 0.85,
    "SNR, amortized / standard step": 2.0,
    "SNR, amortized / adversarial step": 1 / 3,
    "gradient regularisation / standard step": 2.2,
    "features to 1e-3: Golub-Kahan passes / power passes": 0.5,
    "outside their error bars": 0.0,
    "Lanczos step on parameters / one product": 1.1,
    "Lanczos on parameters / matfree's": 1.0,
}
PGA_LIMIT = 1.2
# On CPU alone, where a convolution in a plain loop is slow.
AT_LEAST = {"naive power loop / 10 power steps": 4.0}


class Compilations:
    """Counts compilations of each function that is compiled while it is active."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def wrap(self, name: str, fun: Callable[..., Any]) -> Callable[..., Any]:
        """Returns ``fun``, counting how often it is traced under ``name``."""

        def counted(*args: Any) -> Any:
            self.counts[name] = self.counts.get(name, 0) + 1
            return fun(*args)

        return counted


def main() -> None:
    """Measures the parts asked for and reports them."""
    steps = cli.parse_integers("steps", _STEPS.value)
    for flag, smallest in ((_WIDTH, 1), (_BATCH_SIZE, 1), (_ROUNDS, 3)):
        if flag.value < smallest:
            raise ValueError(f"{flag.name} is {flag.value}; at least {smallest}.")
    known = {"attack": _attack_part, "power": _power_part, "train": _train_part}
    known["spectrum"] = _spectrum_part
    for part in _PARTS.value:
        if part not in known:
            raise ValueError(f"parts has {part!r}; it may have {', '.join(known)}.")
    compilations = Compilations()
    times: dict[str, float] = {}
    ratios: dict[str, float] = {}
    for part in _PARTS.value:
        print(f"measuring: {part}", flush=True)
        found_times, found_ratios = known[part](compilations, steps)
        times |= found_times
        ratios |= found_ratios
    twice = {name: n for name, n in compilations.counts.items() if n != 1}
    if twice:
        raise ValueError(f"functions were traced more than once: {twice}")
    limits = LIMITS | {_attack_ratio(k): PGA_LIMIT for k in steps}
    rows = [_row(name, ratio, limits) for name, ratio in ratios.items()]
    table = cli.table(rows)
    seconds = cli.table(
        [{"what": name, "median ms": f"{1e3 * t:.1f}"} for name, t in times.items()]
    )
    run = training.RunDirectory(_RUN.value)
    run.write_json(
        "benchmark.json",
        {
            "environment": training.environment(),
            "git_revision": training.git_revision(),
            "width": _WIDTH.value,
            "batch_size": _BATCH_SIZE.value,
            "rounds": _ROUNDS.value,
            "ratios": ratios,
            "seconds": times,
            "traces": compilations.counts,
        },
    )
    (Path(run.path) / "table.md").write_text(f"{table}\n\n{seconds}\n")
    print(f"{table}\n\n{seconds}")


def _row(name: str, ratio: float, limits: Mapping[str, float]) -> dict[str, str]:
    promised, holds = "", ""
    if name in limits:
        promised, holds = f"<= {limits[name]:.3g}", _yes(ratio <= limits[name])
    elif name in AT_LEAST and jax.default_backend() == "cpu":
        promised, holds = f">= {AT_LEAST[name]:g}", _yes(ratio >= AT_LEAST[name])
    row = {"ratio": name, "measured": f"{ratio:.3f}"}
    return row | {"promised": promised, "holds": holds}


def _yes(holds: bool) -> str:
    return "yes" if holds else "NO"


def _attack_ratio(k: int) -> str:
    return f"PGA-{k} / {k} x (forward + input gradient)"


def _setup() -> tuple[network.Network, Any, Any, jax.Array, jax.Array]:
    module = training.build_model(training.Config(width=_WIDTH.value), 10)
    params, batch_stats = network.init(module, jax.random.key(0), (32, 32, 3))
    test_set = data.load("cifar10_mini", split="train", limit=_BATCH_SIZE.value)
    copies = -(-_BATCH_SIZE.value // len(test_set))
    images = np.tile(test_set.images, (copies, 1, 1, 1))[: _BATCH_SIZE.value]
    labels = np.tile(test_set.labels, copies)[: _BATCH_SIZE.value]
    x, y = jax.device_put((np.float32(images) / 255, labels))
    return network.bind(module), params, batch_stats, x, y


def _attack_part(
    compilations: Compilations, steps: tuple[int, ...]
) -> tuple[dict[str, float], dict[str, float]]:
    net, params, batch_stats, x, y = _setup()
    key = jax.random.key(1)

    def forward(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return net.infer(params, batch_stats, x)

    def gradient(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        def total(x: jax.Array) -> jax.Array:
            logits = net.infer(params, batch_stats, x)
            return jnp.sum(attacks.cross_entropy(logits, y))

        return jax.grad(total)(x)

    def pga(k: int) -> Callable[..., jax.Array]:
        attack = attacks.pga(p=2.0, epsilon=0.5, num_steps=k)

        def run(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
            return attack(lambda z: net.infer(params, batch_stats, z), x, y, key)

        return run

    functions: dict[str, Callable[[], Any]] = {}
    named = {"forward": forward, "input gradient": gradient}
    named |= {f"PGA-{k}": pga(k) for k in steps}
    for name, fun in named.items():
        compiled = jax.jit(compilations.wrap(name, fun))
        functions[name] = _bind(compiled, params, x, y)
    rounds = _time(functions)
    single = [f + g for f, g in zip(*_pick(rounds, "forward", "input gradient"))]  # noqa: B905
    ratios = {
        _attack_ratio(k): statistics.median(
            t / (k * s) for t, s in zip(rounds[f"PGA-{k}"], single, strict=True)
        )
        for k in steps
    }
    return _medians(rounds), ratios


def _power_part(
    compilations: Compilations, steps: tuple[int, ...]
) -> tuple[dict[str, float], dict[str, float]]:
    del steps
    net, params, batch_stats, x, _ = _setup()
    start = jax.random.normal(jax.random.key(2), x.shape)
    rows = jax.random.normal(jax.random.key(3), (10, len(x), 10))
    tangents = jax.random.normal(jax.random.key(4), (10, *x.shape))

    # Value and direction, which a penalty uses; the residual would be a pass more.
    def power(params: Any) -> Any:
        return operators.jacobian_norm(
            lambda z: net.infer(params, batch_stats, z),
            x,
            method="iterative",
            num_steps=10,
            init=start,
        )[:2]

    def passes(params: Any) -> Any:
        logits, push = jax.linearize(lambda z: net.infer(params, batch_stats, z), x)
        pull = jax.linear_transpose(push, x)
        forward = [push(tangent) for tangent in tangents]
        backward = [pull(row)[0] for row in rows]
        return sum(forward[1:], forward[0]), sum(backward[1:], backward[0])

    def naive(params: Any) -> jax.Array:
        def f(z: jax.Array) -> jax.Array:
            return net.infer(params, batch_stats, z)

        def body(_: Any, v: jax.Array) -> jax.Array:
            _, u = jax.jvp(f, (x,), (v,))
            u = u / jnp.linalg.norm(u, axis=-1, keepdims=True)
            _, pull = jax.vjp(f, x)
            v = pull(u)[0]
            length = jnp.linalg.norm(v.reshape(len(v), -1), axis=-1)
            return v / length[:, None, None, None]

        return lax.fori_loop(0, 10, body, start)

    def dense(params: Any) -> Any:
        return operators.jacobian_norm(
            lambda z: net.infer(params, batch_stats, z), x, method="dense"
        )

    named = {
        "10 power steps": power,
        "20 linear passes": passes,
        "naive power loop": naive,
        "exact dense sigma": dense,
    }
    functions = {
        name: _bind(jax.jit(compilations.wrap(name, fun)), params)
        for name, fun in named.items()
    }
    rounds = _time(functions)
    return _medians(rounds), {
        "10 power steps / 20 linear passes": _ratio(
            rounds, "10 power steps", "20 linear passes"
        ),
        "naive power loop / 10 power steps": _ratio(
            rounds, "naive power loop", "10 power steps"
        ),
        "exact dense sigma / 10 power steps": _ratio(
            rounds, "exact dense sigma", "10 power steps"
        ),
    }


def _train_part(
    compilations: Compilations, steps: tuple[int, ...]
) -> tuple[dict[str, float], dict[str, float]]:
    del steps
    snr = {"method": "data_dependent_snr", "num_steps": 10}
    whole = {"penalty_fraction": 1.0}
    configs: dict[str, dict[str, Any]] = {
        "standard step": {"method": "standard"},
        "adversarial step": {"method": "adversarial", "num_steps": 10},
        "adversarial-only step": {"method": "adversarial_only", "num_steps": 10},
        "SNR, 10 power steps": {**snr, **whole, "search": "iterative"},
        "SNR, exact dense": {**snr, **whole, "search": "dense"},
        "SNR, amortized": {**snr},
        "SNR, amortized, whole batch": {**snr, **whole},
        "SNR, amortized, derivative": {**snr, "variant": "derivative"},
        "global SNR step": {"method": "global_snr", "num_steps": 1},
        "gradient regularisation": {"method": "gradient_regularization"},
        "gradient regularisation, whole batch": {
            "method": "gradient_regularization",
            **whole,
        },
    }
    functions = {
        name: _train_step(compilations, name, options)
        for name, options in configs.items()
    }
    rounds = _time(functions)
    adversarial, standard = "adversarial step", "standard step"
    ratios = {"adversarial step / standard step": _ratio(rounds, adversarial, standard)}
    for name in ("SNR, 10 power steps", "SNR, exact dense", "SNR, amortized"):
        ratios[f"{name} / {adversarial}"] = _ratio(rounds, name, adversarial)
    for name in (
        "SNR, amortized",
        "SNR, amortized, whole batch",
        "SNR, amortized, derivative",
        "global SNR step",
        "gradient regularisation",
        "gradient regularisation, whole batch",
    ):
        ratios[f"{name} / {standard}"] = _ratio(rounds, name, standard)
    return _medians(rounds), ratios


def _spectrum_part(
    compilations: Compilations, steps: tuple[int, ...]
) -> tuple[dict[str, float], dict[str, float]]:
    del steps
    ratios = _passes_to_the_norm(compilations)
    net, params, batch_stats, x, y = _setup()

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

    named: dict[str, Any] = {
        "parameter Hessian product": (product, params, start),
        "Lanczos on parameters": (lanczos, params, start),
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
    functions = {
        name: _bind(jax.jit(compilations.wrap(name, fun)), *args)
        for name, (fun, *args) in named.items()
    }
    rounds = _time(functions)
    step = [t / _LANCZOS_STEPS for t in rounds["Lanczos on parameters"]]
    rounds["Lanczos step on parameters"] = step
    ratios["Lanczos step on parameters / one product"] = _ratio(
        rounds, "Lanczos step on parameters", "parameter Hessian product"
    )
    ratios["exact (2, 1) norm / exact (2, 2) norm"] = _ratio(
        rounds, "exact (2, 1) norm", "exact (2, 2) norm"
    )
    if "matfree's Lanczos on parameters" in rounds:
        ratios["Lanczos on parameters / matfree's"] = _ratio(
            rounds, "Lanczos on parameters", "matfree's Lanczos on parameters"
        )
    return _medians(rounds), ratios


def _passes_to_the_norm(compilations: Compilations) -> dict[str, float]:
    """Passes through the network until the features' norm is right to 1e-3."""
    module = training.build_model(training.Config(width=_WIDTH.value), 10)
    _, params, batch_stats, x, _ = _setup()
    variables = {"params": params, "batch_stats": batch_stats}

    def features(x: jax.Array) -> jax.Array:
        found: Any = module.apply(variables, x, outputs="all")
        return found.features

    # The same matrices for both, so that what is counted is the method's doing.
    x = x[:_COUNTED_IMAGES]
    jacobians = jax.jit(compilations.wrap("features", _dense(features)))(x)
    exact = np.linalg.svd(np.asarray(jacobians, np.float64), compute_uv=False)[:, 0]
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
        nearest = np.linalg.svd(np.asarray(jacobians, np.float64), compute_uv=False)
        distance = np.abs(nearest - np.asarray(found.values)).min(axis=1)
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


def _train_step(
    compilations: Compilations, name: str, options: Mapping[str, Any]
) -> Callable[[], Any]:
    net, params, batch_stats, x, y = _setup()
    config = training.Config(width=_WIDTH.value, **options)
    method = methods.create(config, net)
    counted = method._replace(loss=compilations.wrap(name, method.loss))
    optimizer = optimizers.create(config, 1000)
    mesh = training.data_mesh(jax.devices()[:1])
    state = init_state(
        params,
        batch_stats,
        method,
        optimizer,
        jax.random.key(0),
        mesh,
        num_examples=len(x),
        num_classes=10,
    )
    step = training.make_step(counted, optimizer, mesh, augment=True)
    images = jax.device_put(np.uint8(np.asarray(x) * 255), training.sharded(mesh))
    indices = jnp.arange(len(x), dtype=jnp.int32)
    holder = [state]

    def run() -> Any:
        holder[0], metrics = step(holder[0], images, y, indices)
        return metrics

    return run


def _bind(fun: Callable[..., Any], *args: Any) -> Callable[[], Any]:
    return lambda: fun(*args)


def _time(functions: Mapping[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Seconds of each function in each of the interleaved rounds, after a warm-up.

    One that takes longer than ``_LONG`` is timed once and counts in every round.
    """
    for run in functions.values():
        jax.block_until_ready(run())
    rounds: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(_ROUNDS.value):
        for name, run in functions.items():
            if number and rounds[name][0] > _LONG:
                rounds[name].append(rounds[name][0])
                continue
            start = time.perf_counter()
            jax.block_until_ready(run())
            rounds[name].append(time.perf_counter() - start)
    return rounds


def _pick(rounds: Mapping[str, list[float]], *names: str) -> list[list[float]]:
    return [rounds[name] for name in names]


def _ratio(rounds: Mapping[str, list[float]], above: str, below: str) -> float:
    pairs = zip(rounds[above], rounds[below], strict=True)
    return statistics.median(a / b for a, b in pairs)


def _medians(rounds: Mapping[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(times) for name, times in rounds.items()}


if __name__ == "__main__":
    cli.run(main)
