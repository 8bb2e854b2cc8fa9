"""A checkpoint that is not one of a run is refused in one line."""

import numpy as np
import pytest

from opnorm import runs, training


@pytest.mark.parametrize(
    ("state", "metadata", "message"),
    [
        ({"params": np.zeros(2)}, {"config": {}}, "lies at no place in a state"),
        ({"params": {"a": np.zeros(2)}}, {}, "has no configuration"),
        ({"params": {"a": np.zeros(2)}}, {"config": {}}, "'logits'; they are a"),
        (
            {"params": {"a": np.zeros(2)}},
            {"config": {"width": -3}},
            "cannot be used: width is -3",
        ),
        (
            {"params": {"a": np.zeros(2)}, "method_state": {}},
            {"config": {"spectral_norm_bound": 1.0}, "image_shape": "many"},
            "num_classes is None, image_shape is many",
        ),
    ],
)
def test_a_checkpoint_of_any_shape_is_one_line(tmp_path, state, metadata, message):
    store = runs.CheckpointStore(tmp_path)
    store.save(0, state, metadata)
    store.close()
    with pytest.raises(ValueError, match=message):
        training.load_run(tmp_path)
