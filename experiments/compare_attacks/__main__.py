r"""Compares opnorm's attacks with foolbox, torchattacks and plain PyTorch.

  pip install 'opnorm[oracles]'
  opnorm compare_attacks --run=runs/snr
  opnorm compare_attacks --run=runs/snr --attacks=pgd_l2,square_l2

All libraries attack the same network (a CNN7; its weights are copied to PyTorch), the
same images and with the same budgets, each with the settings of ``peers.ROWS``. opnorm
attacks as an evaluation does: only images that are classified correctly, until they are
misclassified. The table reports the accuracy that is left, and the seconds without
compilation: medians over rounds in which the libraries take turns. Accuracy is judged
by opnorm's copy of the network on the points that were returned, within the budget.
Writes comparison.json and table.md into --out.
"""

import os

from absl import flags

from experiments.common import attack_specs, cli, jobs, options, records
from experiments.compare_attacks import torch_cnn7
from experiments.compare_attacks.measure import Setting, logit_difference, measure
from experiments.compare_attacks.peers import ROWS
from experiments.compare_attacks.tables import text
from opnorm import data, runs, training

_RUN = flags.DEFINE_string("run", None, "run directory of a CNN7 (required)")
_OUT = flags.DEFINE_string("out", None, "where to write; default RUN/comparison")
_EXAMPLES = flags.DEFINE_integer("examples", 512, "number of test images")
_ATTACKS = flags.DEFINE_list("attacks", None, "rows of the table; by default all")
_EPSILON = options.define_number("epsilon", 0.5, "L2 budget, in [0, 1] pixel units")
_EPSILON_INF = options.define_number("epsilon_inf", 4 / 255, "Linf budget")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "examples per call")
_ROUNDS = flags.DEFINE_integer("rounds", 1, "how often each attack is timed")
_SEED = flags.DEFINE_integer("seed", 0, "random seed of the attacks")
_LIBRARIES = ("torch", "torchattacks", "foolbox")


def main() -> None:
    """Runs every row, writes results, prints the table."""
    if not _RUN.value:
        raise ValueError("run is not given; it is the run directory of a CNN7.")
    names = _ATTACKS.value or list(ROWS)
    for name in names:
        if name not in ROWS:
            raise ValueError(f"attacks has {name!r}; it may be {', '.join(ROWS)}.")
    options.check_at_least(1, _EXAMPLES, _BATCH_SIZE, _ROUNDS)
    specs = {name: attack_specs.parse_attack(ROWS[name].ours) for name in names}
    torch, *_ = (cli.import_optional(name, "oracles") for name in _LIBRARIES)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    run = training.load_run(_RUN.value)
    setting = _setting(run)
    difference = logit_difference(setting)
    runs.RunDirectory.for_results(_OUT.value or _RUN.value)
    out = cli.hold(runs.RunDirectory(_OUT.value or f"{_RUN.value}/comparison"))

    rows: list[records.Record] = []
    for name in names:
        row = ROWS[name]
        epsilon = _EPSILON.value if row.p == 2 else _EPSILON_INF.value
        found = measure(
            setting, row, specs[name], epsilon, every_step=name.startswith("pgd")
        )
        rows.append({"attack": name, "p": row.p, "epsilon": epsilon, "found": found})
        print(text(rows[-1:]), flush=True)
        results = {
            "run": _RUN.value,
            "method": run.config.method,
            "data": setting.test_set.description,
            "examples": len(setting.test_set),
            "batch_size": setting.batch_size,
            "rounds": setting.rounds,
            "seed": setting.seed,
            "largest_logit_difference": difference,
            "torch_threads": torch.get_num_threads(),
            "versions": cli.versions(*_LIBRARIES),
            **records.origin(),
            "rows": rows,
        }
        out.write_json("comparison.json", results)
        out.write_text("table.md", f"{text(rows)}\n")
    print(f"written to {out.path}")


def _setting(run: training.Run) -> Setting:
    test_set = data.load(
        jobs.dataset_name(None, run.config),
        split="test",
        limit=_EXAMPLES.value,
        image_size=training.image_size(run.config),
    )
    network = run.network
    return Setting(
        network=network,
        torch_network=torch_cnn7.build(network.params, network.batch_stats),
        test_set=test_set,
        batch_size=_BATCH_SIZE.value,
        rounds=_ROUNDS.value,
        seed=_SEED.value,
    )


if __name__ == "__main__":
    cli.run(main)
