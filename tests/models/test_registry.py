"""tests: networks by name."""

import pytest

from opnorm import models


def test_builds_each_model_with_its_own_default_width() -> None:
    assert models.create("cnn7") == models.CNN7()
    assert models.create("mlp", num_classes=7) == models.MLP(num_classes=7)


def test_width_means_channels_or_hidden_units() -> None:
    assert models.create("cnn7", width=16, std=0.25) == models.CNN7(width=16, std=0.25)
    assert models.create("mlp", width=16) == models.MLP(hidden=(16, 16))


def test_rejects_unknown_names_and_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'resnet'.*cnn7, mlp"):
        models.create("resnet")


@pytest.mark.parametrize("options", [{"width": 0}, {"num_classes": 0}, {"width": 1.5}])
def test_rejects_sizes_below_one(options: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        models.create("cnn7", **options)
