r"""Measures what opnorm's kernels and train steps cost, as ratios within one run.

  python -m experiments.benchmark                      # CPU: CNN7 at width 16
  python -m experiments.benchmark --width=128 --batch_size=512   # a GPU, < 10 minutes
  python -m experiments.benchmark --parts=networks --compute_dtype=bfloat16   # a GPU

Absolute times differ between machines and hours; ratios of interleaved runs hold. Every
number is a median over rounds, every ratio the median of the rounds' own ratios. Writes
benchmark.json and table.md into --run after every part and every network, so that a run
that is ended early has written what it measured.
"""

import functools
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax import lax

from experiments.benchmark import input, spectrum
from experiments.common import cli, options, timing, train_steps
from opnorm import attacks, data, operators, runs, training

_RUN = flags.DEFINE_string("run", "runs/benchmark", "directory to write to")
_WIDTH = flags.DEFINE_integer("width", 16, "width of CNN7")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "examples per step")
_ROUNDS = flags.DEFINE_integer("rounds", 7, "interleaved rounds, at least 3")
_ALL_PARTS = ("attack", "power", "train", "spectrum", "networks", "input")
_PARTS = flags.DEFINE_list(
    "parts", list(_ALL_PARTS[:4]), f"what to measure, out of {', '.join(_ALL_PARTS)}"
)
_STEPS = flags.DEFINE_list("steps", ["10", "100"], "attack steps K to measure")

_NETWORKS = flags.DEFINE_list(
    "networks",
    list(train_steps.FULL),
    "networks of the part networks; at their papers' sizes on an accelerator, reduced "
    "on CPU",
)
_COMPUTE_DTYPE = flags.DEFINE_enum(
    "compute_dtype",
    "float32",
    list(training.COMPUTE_DTYPES),
    "what the networks of that part compute in",
)

# Seconds by name, and ratios by name.
Found = tuple[dict[str, float], dict[str, float]]

# The most that each ratio may be; what the project promises.
LIMITS = {
    "10 power steps / 20 linear passes": 1.2,
    "SNR, 10 power steps / adversarial step": 1.1,
    "SNR, exact dense / adversarial step": 0.85,
    "SNR, amortized / standard step": 2.0,
    "SNR, amortized / adversarial step": 1 / 3,
    "gradient regularisation / standard step": 2.2,
    "wrn28, adversarial-only step / standard step": 8.0,
    "cnn7, adversarial-only step / standard step": 8.0,
    "resnext34, gradient regularisation / standard step": 2.2,
    "resnet50, gradient regularisation / standard step": 2.2,
    "features to 1e-3: Golub-Kahan passes / power passes": 0.5,
    "outside their error bars": 0.0,
    "Lanczos step on parameters / one product": 1.1,
    "Lanczos on parameters / matfree's": 1.0,
    "Lanczos on a matrix / matfree's": 1.0,
}
PGA_LIMIT = 1.2
# On an accelerator in bfloat16, at full size. ResNet-50's is the share of what its
# memory traffic allows (experiments.roofline) that NVIDIA's own training of it reaches
# on an A100: three fifths of a third.
RATES = {
    "wrn28, adversarial-only step, bfloat16: rate / matrix product": 0.45,
    "cnn7, adversarial-only step, bfloat16: rate / matrix product": 0.35,
    "resnet50, standard step, bfloat16: rate / matrix product": 0.20,
}
# On CPU alone, where a convolution in a plain loop is slow.
AT_LEAST = {"naive power loop / 10 power steps": 4.0}


def main() -> None:
    """Measures the parts asked for and reports them."""
    steps = options.parse_integers("steps", _STEPS.value)
    for flag, smallest in ((_WIDTH, 1), (_BATCH_SIZE, 1), (_ROUNDS, 3)):
        if flag.value < smallest:
            raise ValueError(f"{flag.name} is {flag.value}; at least {smallest}.")
    known = {"attack": _attack_part, "power": _power_part, "train": _train_part}
    known["spectrum"], known["input"] = _spectrum_part, _input_part
    train_steps.check_names(_NETWORKS.value)
    for part in _PARTS.value:
        if part not in _ALL_PARTS:
            raise ValueError(
                f"parts has {part!r}; it may have {', '.join(_ALL_PARTS)}."
            )
    # The networks are parts of their own.
    jobs: list[tuple[str, Callable[..., Found]]] = []
    for part in _PARTS.value:
        if part == "networks":
            jobs += [
                (f"networks, {name}", functools.partial(_network_part, name))
                for name in _NETWORKS.value
            ]
        else:
            jobs.append((part, known[part]))
    cli.hold(runs.RunDirectory(_RUN.value))
    compilations = timing.Compilations()
    times: dict[str, float] = {}
    ratios: dict[str, float] = {}
    text = ""
    for title, measure in jobs:
        print(f"measuring: {title}", flush=True)
        found_times, found_ratios = measure(compilations, steps)
        times |= found_times
        ratios |= found_ratios
        twice = {name: n for name, n in compilations.counts.items() if n != 1}
        if twice:
            raise ValueError(f"functions were traced more than once: {twice}")
        text = _write(steps, times, ratios, compilations.counts)
    print(text)


def _write(
    steps: tuple[int, ...],
    times: Mapping[str, float],
    ratios: Mapping[str, float],
    traces: Mapping[str, int],
) -> str:
    """Writes what was measured so far; returns it as tables."""
    limits = LIMITS | {_attack_ratio(k): PGA_LIMIT for k in steps}
    table = cli.table([_row(name, ratio, limits) for name, ratio in ratios.items()])
    seconds = cli.table(
        [{"what": name, "median ms": f"{1e3 * t:.1f}"} for name, t in times.items()]
    )
    run = runs.RunDirectory(_RUN.value)
    run.write_json(
        "benchmark.json",
        {
            "environment": runs.environment(),
            "git_revision": runs.git_revision(),
            "width": _WIDTH.value,
            "batch_size": _BATCH_SIZE.value,
            "rounds": _ROUNDS.value,
            "ratios": ratios,
            "seconds": times,
            "traces": traces,
        },
    )
    text = f"{table}\n\n{seconds}"
    run.write_text("table.md", f"{text}\n")
    return text


def _row(name: str, ratio: float, limits: Mapping[str, float]) -> dict[str, str]:
    promised, holds = "", ""
    if name in limits:
        promised, holds = f"<= {limits[name]:.3g}", _yes(ratio <= limits[name])
    elif name in AT_LEAST and jax.default_backend() == "cpu":
        promised, holds = f">= {AT_LEAST[name]:g}", _yes(ratio >= AT_LEAST[name])
    elif name == input.RATIO and jax.default_backend() != "cpu":
        promised, holds = "<= 1.05", _yes(ratio <= 1.05)
    elif name in RATES and jax.default_backend() != "cpu":
        promised, holds = f">= {RATES[name]:g}", _yes(ratio >= RATES[name])
    row = {"ratio": name, "measured": f"{ratio:.3f}"}
    return row | {"promised": promised, "holds": holds}


def _yes(holds: bool) -> str:
    return "yes" if holds else "NO"


def _attack_ratio(k: int) -> str:
    return f"PGA-{k} / {k} x (forward + input gradient)"


def _setup() -> tuple[training.Modes, Any, Any, jax.Array, jax.Array]:
    config = training.Config(width=_WIDTH.value)
    objective = training.make_objective(config, 10, (32, 32, 3))
    params, batch_stats = objective.init(jax.random.key(0))
    test_set = data.load("cifar10_mini", split="train", limit=_BATCH_SIZE.value)
    copies = -(-_BATCH_SIZE.value // len(test_set))
    images = np.tile(test_set.images, (copies, 1, 1, 1))[: _BATCH_SIZE.value]
    labels = np.tile(test_set.labels, copies)[: _BATCH_SIZE.value]
    x, y = jax.device_put((np.float32(images) / 255, labels))
    return objective.modes, params, batch_stats, x, y


def _attack_part(compilations: timing.Compilations, steps: tuple[int, ...]) -> Found:
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
        functions[name] = functools.partial(compiled, params, x, y)
    rounds = timing.take_turns(functions, _ROUNDS.value)
    pairs = timing.pick(rounds, "forward", "input gradient")
    single = [f + g for f, g in zip(*pairs, strict=True)]
    ratios = {
        _attack_ratio(k): statistics.median(
            t / (k * s) for t, s in zip(rounds[f"PGA-{k}"], single, strict=True)
        )
        for k in steps
    }
    return timing.medians(rounds), ratios


def _power_part(compilations: timing.Compilations, steps: tuple[int, ...]) -> Found:
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
        name: functools.partial(jax.jit(compilations.wrap(name, fun)), params)
        for name, fun in named.items()
    }
    rounds = timing.take_turns(functions, _ROUNDS.value)
    return timing.medians(rounds), {
        "10 power steps / 20 linear passes": timing.ratio(
            rounds, "10 power steps", "20 linear passes"
        ),
        "naive power loop / 10 power steps": timing.ratio(
            rounds, "naive power loop", "10 power steps"
        ),
        "exact dense sigma / 10 power steps": timing.ratio(
            rounds, "exact dense sigma", "10 power steps"
        ),
    }


def _train_part(compilations: timing.Compilations, steps: tuple[int, ...]) -> Found:
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
        "spectral normalisation": {"spectral_norm_bound": 1.0},
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
    rounds = timing.take_turns(functions, _ROUNDS.value)
    adversarial, standard = "adversarial step", "standard step"
    ratios = {
        "adversarial step / standard step": timing.ratio(rounds, adversarial, standard)
    }
    for name in ("SNR, 10 power steps", "SNR, exact dense", "SNR, amortized"):
        ratios[f"{name} / {adversarial}"] = timing.ratio(rounds, name, adversarial)
    for name in (
        "SNR, amortized",
        "SNR, amortized, whole batch",
        "SNR, amortized, derivative",
        "global SNR step",
        "spectral normalisation",
        "gradient regularisation",
        "gradient regularisation, whole batch",
    ):
        ratios[f"{name} / {standard}"] = timing.ratio(rounds, name, standard)
    return timing.medians(rounds), ratios


def _spectrum_part(compilations: timing.Compilations, steps: tuple[int, ...]) -> Found:
    del steps
    return spectrum.measure(
        compilations, *_setup(), width=_WIDTH.value, num_rounds=_ROUNDS.value
    )


def _network_part(
    name: str, compilations: timing.Compilations, steps: tuple[int, ...]
) -> Found:
    del steps
    return train_steps.measure(
        compilations,
        name,
        full_size=jax.default_backend() != "cpu",
        compute_dtype=_COMPUTE_DTYPE.value,
        num_rounds=_ROUNDS.value,
    )


def _input_part(compilations: timing.Compilations, steps: tuple[int, ...]) -> Found:
    del steps
    return input.measure(
        compilations,
        full_size=jax.default_backend() != "cpu",
        compute_dtype=_COMPUTE_DTYPE.value,
        num_rounds=_ROUNDS.value,
    )


def _train_step(
    compilations: timing.Compilations, name: str, options: Mapping[str, Any]
) -> Callable[[], Any]:
    _, params, batch_stats, x, y = _setup()
    config = training.Config(width=_WIDTH.value, **options)
    mesh = training.data_mesh(jax.devices()[:1])
    objective = training.make_objective(config, 10, x.shape[1:])
    program = training.Program(objective, training.make_plan(config, 10_000), mesh)
    method, optimizer = objective.method, program.optimizer
    counted = method._replace(loss=compilations.wrap(name, method.loss))
    state = training.init_state(
        params,
        batch_stats,
        method,
        optimizer,
        jax.random.key(0),
        num_examples=len(x),
        num_classes=10,
    )
    # Buffers that nothing else holds, because the step takes them.
    state = training.place(state, training.state_shardings(state, mesh, "replicated"))
    step = training.make_step(counted, optimizer, mesh, augmentation=data.augment)
    images = jax.device_put(np.uint8(np.asarray(x) * 255), training.sharded(mesh))
    indices = jnp.arange(len(x), dtype=jnp.int32)
    holder = [state]

    def run() -> Any:
        holder[0], metrics = step(holder[0], images, y, indices)
        return metrics

    return run


if __name__ == "__main__":
    cli.run(main)
