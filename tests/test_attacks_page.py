"""The tables of docs/attacks.md agree with the registry of attacks."""

import inspect
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from opnorm import attacks

PAGE = (Path(__file__).parent.parent / "docs" / "attacks.md").read_text()
NORMS = {"any": (1.0, 1.5, 2.0, math.inf)}
X, LABELS = jnp.full((2, 2, 2, 3), 0.5), jnp.zeros(2, int)


def table(header):
    """The cells of the rows below a header, by the name in the first one."""
    rows = PAGE.split(f"| {header} |")[1].split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]
    return {row[0].strip("`"): row[1:] for row in cells}


FACTS = table(
    "attack | norms p | looks for | targeted | random | sees | most steps "
    "| cost of a step | source"
)


def make(name, p=2.0, **options):
    price = {"gamma": 1.0} if name == "wrm" else {}
    return attacks.make(name, p=p, epsilon=0.1, **price, **options)


def options_of(name):
    return inspect.signature(getattr(attacks, name)).parameters


@jax.custom_vjp
def blind(x):
    """A network that cannot be differentiated."""
    return x.reshape(len(x), -1)[:, :10]


def refuse(*_):
    raise AssertionError("a gradient was taken")


blind.defvjp(refuse, refuse)


def test_every_attack_has_a_row():
    assert set(FACTS) == set(attacks.NAMES)
    others = table("attack | foolbox 3.3 | torchattacks 3.5 | ART 1.20")
    assert {name.split()[0] for name in others} == set(attacks.NAMES)


@pytest.mark.parametrize("name", attacks.NAMES)
def test_a_row_says_what_the_registry_does(name):
    norms, looks_for, targeted, random, _, steps, *_ = FACTS[name]
    claimed = NORMS.get(norms) or tuple(map(float, norms.split(", ")))
    for p in (1.0, 1.5, 2.0, math.inf):
        if p in claimed:
            assert make(name, p).p == p
        else:
            with pytest.raises(ValueError, match="p is"):
                make(name, p)

    if attacks.needs_budget(name):
        assert looks_for == "budget"
    elif "epsilon" in options_of(name):
        assert looks_for == "budget or nearest"
    else:
        assert looks_for == ("price" if "penalty" in options_of(name) else "nearest")
        assert not make(name).budget

    direct = "targeted" in options_of(name)
    ensemble = len(make(name).stages) > 1
    assert targeted == ("yes" if direct else "by a criterion" if ensemble else "no")

    total = sum(stage.num_steps for stage in make(name).stages)
    assert int(steps.replace(",", "")) == total

    assert make(name, bounds=None).stages[0].bounds is None
    refusals = []
    for stage in make(name).stages:
        try:
            if stage.check is not None:
                stage.check(attacks.Problem(X, LABELS, None, None))
        except ValueError as error:
            refusals.append("key" in str(error))
    assert all(refusals)
    assert random == ("yes" if refusals else "no")


@pytest.mark.parametrize("name", attacks.NAMES)
def test_a_row_says_what_an_attack_sees(name):
    few = {o: 2 for o in ("num_queries", "num_steps") if o in options_of(name)}
    attack = make(name, **few)

    def trace():
        jax.eval_shape(lambda x: attack(blind, x, LABELS, jax.random.key(0)), X)

    if FACTS[name][4] == "gradients":
        with pytest.raises(AssertionError, match="gradient"):
            trace()
    else:
        trace()


def test_the_costs_of_the_ensemble_are_the_sum_of_its_members():
    steps = [stage.num_steps for stage in attacks.auto_attack(p=2, epsilon=1).stages]
    backward, forward = sum(steps[:3]), steps[2] + steps[3]
    (text,) = re.findall(
        r"costs\s+([\d,]+) forward and backward passes and ([\d,]+) forward", PAGE
    )
    assert [int(n.replace(",", "")) for n in text] == [backward, forward]
