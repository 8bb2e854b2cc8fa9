"""A configuration that somebody else wrote is read field by field."""

import dataclasses
import json

import pytest

from opnorm.training import Config, config, presets


def test_what_is_written_is_read_as_it_was():
    configs = [Config(p=float("inf"), learning_rate=1), Config(milestones="1,2")]
    configs += [presets.get_preset(name).config for name in presets.PRESETS]
    for each in configs:
        text = json.dumps(dataclasses.asdict(each))
        assert config.from_plain(json.loads(text), "run") == each
    # As versions wrote it that had fewer fields.
    assert config.from_plain({"epochs": 3}, "run") == Config(epochs=3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (None, "run has no configuration"),
        ([["epochs", 3]], "run has no configuration"),
        ({"new_field": 1, "epochs": 2}, "does not know: new_field; use the version"),
        ({"epochs": "3"}, "epochs is of type str; it must be int"),
        ({"epochs": 3.0}, "epochs is of type float; it must be int"),
        ({"epochs": True}, "epochs is of type bool; it must be int"),
        ({"epochs": None}, "epochs is of type NoneType; it must be int"),
        ({"width": [[3]]}, "width is of type list; it must be int or NoneType"),
        ({"augment": 1}, "augment is of type int; it must be bool"),
        ({"p": "inf"}, "p is of type str; it must be float or int"),
        ({"dataset": {"a": {}}}, "dataset is of type dict; it must be str"),
    ],
)
def test_other_shapes_are_refused_by_name(values, message):
    with pytest.raises(ValueError, match=message):
        config.from_plain(values, "run")
