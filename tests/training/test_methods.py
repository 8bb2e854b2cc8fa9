"""A training method is an entry in a table, and all else follows from it."""

import dataclasses

import jax
import pytest

from opnorm import training
from opnorm.training import methods, ranges

# A value other than the default for every field that only some methods use.
OTHER = {
    "mix": 0.25,
    "difference_step": 0.02,
    "divide_by_size": True,
    "gamma": 3.0,
    "step_size": 0.1,
    "random_start": False,
    "attack_labels": "predicted",
    "search": "dense",
    "variant": "derivative",
    "penalty_fraction": 0.25,
}


def test_every_method_takes_its_own_fields_and_no_others():
    owned = {field for each in methods.TABLE.values() for field in each.fields}
    assert owned == set(OTHER)
    for method, definition in methods.TABLE.items():
        for field, value in OTHER.items():
            if (method, field) == ("interpolated", "variant"):
                continue
            config = training.Config(method=method, **{field: value})
            if field in definition.fields:
                training.validate(config)
                continue
            owners = training.methods_with(field)
            words = f"{field} is {value!r}.*{method}.*{' and '.join(owners)}"
            with pytest.raises(ValueError, match=words):
                training.validate(config)


def test_methods_are_found_by_their_fields():
    adversarial = ("adversarial", "adversarial_only", "interpolated")
    assert training.methods_with("random_start") == adversarial
    assert training.methods_with("attack_labels") == (*adversarial, "wrm")
    assert training.methods_with("mix", "gamma") == ("interpolated", "wrm")
    assert training.methods_with("epsilon") == ()


def test_a_method_is_one_entry(monkeypatch):
    def create(config, modes):
        def init(params, key, num_examples, num_classes):
            return {"examples": num_examples}

        return training.Method(init, lambda *arguments: (config.gamma, modes))

    def check(config):
        if config.epochs > 3:
            raise ValueError(f"epochs is {config.epochs}; 'mine' has at most 3.")

    entry = methods.Definition(
        "a loss", create, fields={"gamma": ranges.POSITIVE}, check=check
    )
    monkeypatch.setitem(methods.TABLE, "mine", entry)
    # METHODS is derived from the table when the room is imported.
    monkeypatch.setitem(training.METHODS, "mine", entry.summary)
    config = training.Config(method="mine", gamma=4.0, epochs=3)
    training.validate(config)
    objective = training.make_objective(config, 10, (4, 4, 3))
    assert objective.method.init({}, jax.random.key(0), 5, 10) == {"examples": 5}
    assert objective.method.loss()[0] == 4.0
    with pytest.raises(ValueError, match="'mine' has at most 3"):
        training.validate(dataclasses.replace(config, epochs=4))
    with pytest.raises(ValueError, match="gamma is 0; it must be positive"):
        training.validate(dataclasses.replace(config, gamma=0))
    with pytest.raises(ValueError, match=r"mix is 0\.1, which the method 'mine'"):
        training.validate(dataclasses.replace(config, mix=0.1))


@pytest.mark.parametrize("method", ["standard", "data_dependent_snr"])
def test_a_method_without_an_attack_has_none_to_measure_with(method):
    with pytest.raises(ValueError, match=f"{method}.*no attack.*adversarial, .*wrm"):
        training.training_attack(training.Config(method=method))
