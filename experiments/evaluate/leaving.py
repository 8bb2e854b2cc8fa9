"""Results that leave an evaluation: adversarial images, transfer, and the card."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

from experiments.common import attack_specs, records
from experiments.common.records import Record
from experiments.evaluate import measure
from opnorm import analysis, data, linalg, reports, runs

# Flags defined here belong to the binary that calls for them.
flags.disclaim_key_flags()

_BITS = 255
_array_shape: Callable[..., jax.ShapeDtypeStruct] = jax.ShapeDtypeStruct


class Chosen(NamedTuple):
    """The evaluation that the flags ask for.

    Attributes:
      p: exponent of the norm; None for that of the training.
      epsilons: texts of the budgets.
      attack: texts of the attacks.
    """

    p: float | None
    epsilons: list[str]
    attack: list[str]


def define_flags() -> None:
    """Defines the flags that the functions of this file read."""
    flags.DEFINE_string(
        "save_examples",
        None,
        "where to save the attacked images: a file that ends in .npz, or a folder for "
        "PNG files; for one attack at one epsilon",
    )
    flags.DEFINE_integer(
        "quantize",
        None,
        "steps from 0 to 1 that saved images are rounded to, 255 for 8 bits; they stay "
        "adversarial and within the budget, and the report says how many cannot. PNG "
        "files have 255",
    )
    flags.DEFINE_string(
        "transfer",
        None,
        "set of attacked images that --save_examples has written, perhaps for another "
        "network: measures the accuracy on it, and nothing else",
    )
    flags.DEFINE_enum(
        "card",
        None,
        ["Linf", "L2"],
        "write card.json and card.md, the evaluation of public leaderboards: "
        "AutoAttack in Linf at 8/255 or in L2 at 0.5; --attack and --epsilons may "
        "change the steps and the budget, and the card says so",
    )


def standard(flagged: Chosen) -> Chosen:
    """Returns the evaluation of --card, with what the command line changes in it.

    Args:
      flagged: the values of --p, --epsilons and --attack.

    Raises:
      ValueError: for another norm, several budgets, or another attack.
    """
    given = flags.FLAGS
    p, _ = reports.standard_threat(given.card)
    if flagged.p is not None and flagged.p != p:
        raise ValueError(f"p is {flagged.p:g}; with --card={given.card} it is {p:g}.")
    budgets = [reports.BUDGETS[given.card]]
    chosen = Chosen(
        p,
        flagged.epsilons if given["epsilons"].present else budgets,
        flagged.attack if given["attack"].present else ["auto_attack"],
    )
    names = [attack_specs.parse_attack(text).name for text in chosen.attack]
    if len(chosen.epsilons) != 1 or names != ["auto_attack"]:
        raise ValueError(
            f"card is {given.card}, attack {', '.join(chosen.attack)} and epsilons "
            f"{','.join(chosen.epsilons)}; a card is of auto_attack at one epsilon."
        )
    return chosen


def check_save(attacks: list[attack_specs.AttackSpec], epsilons: list[float]) -> bool:
    """Raises a ValueError unless the images can be saved; nothing is written.

    Returns:
      Whether images are to be saved.
    """
    path = flags.FLAGS.save_examples
    if path is None:
        if flags.FLAGS.quantize is not None:
            raise ValueError("quantize is given without save_examples; give both.")
        return False
    levels = _levels()
    if levels is not None and levels < 1:
        raise ValueError(f"quantize is {levels}; it must be at least 1.")
    if not path.endswith(".npz") and levels != _BITS:
        raise ValueError(f"quantize is {levels}; PNG files have {_BITS}.")
    reports.check_place(path, quantized=levels == _BITS)
    budget = any(map(attack_specs.has_budget, attacks))
    if len(attacks) != 1 or (budget and len(epsilons) != 1):
        raise ValueError(
            f"save_examples is given, attack is {', '.join(map(str, attacks))} and "
            f"epsilons {epsilons}; images are saved of one attack at one epsilon."
        )
    return True


def _levels() -> int | None:
    """The steps of --quantize; 255 for PNG files."""
    given: int | None = flags.FLAGS.quantize
    if given is None and not flags.FLAGS.save_examples.endswith(".npz"):
        return _BITS
    return given


def save(
    f: linalg.Network,
    examples: data.Dataset,
    found: measure.Measured,
    settings: measure.Settings,
) -> Record:
    """Saves the attacked images, and returns facts on them for the results.

    Args:
      f: the network.
      examples: the examples.
      found: the results, with the attacked images.
      settings: how the network was evaluated.
    """
    assert found.x_adv is not None
    assert found.success is not None
    (spec,) = settings.attacks
    count = len(examples)
    budget = settings.epsilons[0] if attack_specs.has_budget(spec) else np.inf
    saved = reports.ExampleSet(
        images=examples.images,
        x_adv=found.x_adv,
        labels=examples.labels,
        adversarial=found.success,
        lost=np.zeros(count, bool),
        number=np.arange(count, dtype=np.int32),
        p=settings.p,
        epsilon=float(budget),
        attack=str(spec),
        data=examples.description,
    )
    levels = _levels()
    if levels is None:
        saved = _as_float(saved)
    else:
        given = saved if levels == _BITS else _as_float(saved)
        saved = reports.quantize_examples(
            f, given, levels=levels, batch_size=settings.batch_size
        )
    path = flags.FLAGS.save_examples
    reports.save_examples(path, saved)
    return {
        "path": path,
        "quantize": levels,
        "adversarial": int(saved.adversarial.sum()),
        "lost": np.flatnonzero(saved.lost).tolist(),
    }


def _as_float(examples: reports.ExampleSet) -> reports.ExampleSet:
    pixels = np.asarray(analysis.to_pixels(examples.images), np.float32)
    return examples._replace(images=pixels)


def transfer(
    name: str, f: linalg.Network, examples: reports.ExampleSet, batch_size: int
) -> Record:
    """Measures a network on a set of attacked images.

    Args:
      name: name of the network.
      f: the network.
      examples: the set.
      batch_size: images per compiled call.

    Raises:
      ValueError: if the network does not take the images.
    """
    path = flags.FLAGS.transfer
    shape = examples.images.shape[1:]
    try:
        linalg.output_shapes(f, _array_shape((2, *shape), np.float32))
    # The network may be code of the user.
    except Exception as error:
        raise ValueError(
            f"transfer is {path}, with images of {shape}, which {name} does not take."
        ) from error
    found = reports.transfer(f, examples, batch_size=batch_size)
    return {
        "run": name,
        "examples": len(examples.labels),
        "set": path,
        "data": examples.data,
        "attack": examples.attack,
        "p": examples.p,
        "epsilon": examples.epsilon,
        "adversarial": int(examples.adversarial.sum()),
        **{
            kind: {"mean": part.mean, "standard_error": part.standard_error}
            for kind, part in (("clean", found.clean), ("attacked", found.attacked))
        },
        "success": {
            "mean": found.success.mean,
            "standard_error": found.success.standard_error,
            "counted": found.success.counted,
        },
        **records.origin(),
    }


def card(
    name: str, results: Mapping[str, Any], attack: attack_specs.AttackSpec
) -> runs.JsonObject:
    """Returns the card of an evaluation by AutoAttack.

    Args:
      name: name of the network.
      results: the results.
      attack: the attack.
    """
    options = dict(attack.options)
    found = results["attacks"][str(attack)]
    clean, robust = zip(found["mean"], found["standard_error"], strict=True)
    chosen = {n: options[n] for n in ("num_steps", "num_queries") if n in options}
    return reports.make_card(
        network=name,
        data=f"{results['data']}, {results['split']}",
        examples=results["examples"],
        norm=results["norm"],
        epsilon=found["epsilon"][-1],
        clean=clean,
        robust=robust,
        after={stage: means[-1] for stage, means in found["after"].items()},
        seed=results["seed"],
        seconds=found["seconds"],
        checks=results["checks"],
        **chosen,
    )
