r"""Measures what opnorm's kernels and train steps cost, as ratios within one run.

  opnorm benchmark                      # CPU: CNN7 at width 16
  opnorm benchmark --width=128 --batch_size=512   # a GPU, < 10 minutes
  opnorm benchmark --parts=networks --compute_dtype=bfloat16   # a GPU
  opnorm benchmark --parts=peers        # beside PyTorch, if installed
  opnorm benchmark --parts=breakdown,scaling

Absolute times differ between machines and hours; ratios of interleaved runs hold. Every
number is a median over rounds, every ratio the median of the rounds' own ratios. Writes
benchmark.json and table.md into --run after every part, network, row and axis, so that
a run that is ended early has written what it measured; scaling.png shows growth.
"""

import functools
from collections.abc import Callable
from pathlib import Path

import jax
from absl import flags

from experiments.benchmark import (
    attack,
    breakdown,
    input,
    machine,
    networks,
    peers,
    power,
    scaling,
    spectrum,
    train,
)
from experiments.benchmark.setting import Found, Setting
from experiments.benchmark.tables import text
from experiments.common import cli, drawings, options, records, timing, train_steps
from opnorm import runs, training

_RUN = flags.DEFINE_string("run", "runs/benchmark", "directory to write to")
_WIDTH = flags.DEFINE_integer("width", 16, "width of CNN7")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "examples per step")
_ROUNDS = flags.DEFINE_integer("rounds", 7, "interleaved rounds, at least 3")
_ALL_PARTS: dict[str, Callable[..., Found]] = {
    "attack": attack.measure,
    "power": power.measure,
    "train": train.measure,
    "spectrum": spectrum.measure,
    "networks": networks.measure,
    "input": input.measure,
    "breakdown": breakdown.measure,
    "scaling": scaling.measure,
    "peers": peers.measure,
}
_PARTS = flags.DEFINE_list(
    "parts",
    ["attack", "power", "train", "spectrum"],
    f"what to measure, out of {', '.join(_ALL_PARTS)}",
)
_STEPS = flags.DEFINE_list("steps", ["10", "100"], "attack steps K to measure")

_NETWORKS = flags.DEFINE_list(
    "networks",
    list(train_steps.FULL),
    "networks of the part networks: as large as in the papers on an accelerator, "
    "smaller on CPU",
)
_PEER_ROWS = flags.DEFINE_list(
    "peer_rows",
    list(peers.ROWS),
    f"rows of the part peers, out of {', '.join(peers.ROWS)}",
)
_COMPUTE_DTYPE = flags.DEFINE_enum(
    "compute_dtype",
    "float32",
    list(training.COMPUTE_DTYPES),
    "dtype that the networks of the parts networks and input compute in",
)


def main() -> None:
    """Measures the parts asked for and reports them."""
    jobs = _jobs()
    setting = _read_setting()
    run = cli.hold(runs.RunDirectory(_RUN.value))
    rates: list[float] = []
    found = Found({}, {})
    report = ""
    for title, measure in jobs.items():
        print(f"measuring: {title}", flush=True)
        rates.append(machine.gflops(setting))
        found = found.joined(measure(setting))
        counts = setting.compilations.counts
        twice = {name: n for name, n in counts.items() if n != 1}
        if twice:
            raise ValueError(f"functions were traced more than once: {twice}")
        results = {
            **records.origin(),
            "machine": {**machine.describe(), "product_gflops": rates},
            "width": setting.width,
            "batch_size": setting.batch_size,
            "rounds": setting.num_rounds,
            "ratios": found.ratios,
            "seconds": found.seconds,
            "traces": counts,
            **found.more,
        }
        report = text(results)
        run.write_json("benchmark.json", results)
        run.write_text("table.md", f"{report}\n")
        drawings.write(run, results)
    print(report)


def _read_setting() -> Setting:
    attack_steps = options.parse_integers("steps", _STEPS.value)
    options.check_at_least(1, _WIDTH, _BATCH_SIZE)
    options.check_at_least(3, _ROUNDS)
    return Setting(
        compilations=timing.Compilations(),
        width=_WIDTH.value,
        batch_size=_BATCH_SIZE.value,
        num_rounds=_ROUNDS.value,
        attack_steps=attack_steps,
        compute_dtype=_COMPUTE_DTYPE.value,
        full_size=jax.default_backend() != "cpu",
        directory=Path(_RUN.value),
    )


def _jobs() -> dict[str, Callable[[Setting], Found]]:
    """The parts to measure by their titles; each network is a part of its own."""
    train_steps.check_names(_NETWORKS.value)
    for name in _PEER_ROWS.value:
        if name not in peers.ROWS:
            raise ValueError(
                f"peer_rows has {name!r}; it may have {', '.join(peers.ROWS)}."
            )
    several = {
        "networks": _NETWORKS.value,
        "peers": _PEER_ROWS.value,
        "scaling": list(scaling.AXES),
    }
    jobs: dict[str, Callable[[Setting], Found]] = {}
    for part in _PARTS.value:
        if part not in _ALL_PARTS:
            raise ValueError(
                f"parts has {part!r}; it may have {', '.join(_ALL_PARTS)}."
            )
        measure, names = _ALL_PARTS[part], several.get(part)
        if names is None:
            jobs[part] = measure
            continue
        for name in names:
            jobs[f"{part}, {name}"] = functools.partial(measure, name=name)
    return jobs


if __name__ == "__main__":
    cli.run(main)
