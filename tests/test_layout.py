"""The tests lie as the library does, file by file."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# A file of tests whose name is not that of a file of its room tests several of them.
OF_SEVERAL = {
    "analysis/test_budgets.py": "every measurement that attacks, and its budgets",
    "attacks/test_attack_contract.py": "what every attack keeps",
    "attacks/test_auto_attack.py": "the members of the ensemble, and the ensemble",
    "attacks/test_named_attacks.py": "every attack of the registry",
    "attacks/test_nearest_points.py": "every search for the nearest point",
    "attacks/test_networks_as_pytrees.py": "programs that networks share",
    "attacks/test_relu_cells.py": "attacks against exact distances",
    "data/test_imagenet.py": "one data set through sources, decoding and streaming",
    "linalg/test_scales.py": "every function that scales with its argument",
    "linalg/test_subgradients.py": "derivatives of norms, maps and projections",
    "models/test_against_pytorch.py": "networks against those of PyTorch",
    "models/test_batch_norm.py": "BatchNorm in networks of half precision",
    "models/test_generalization_networks.py": "the networks of one paper",
    "models/test_pooling.py": "pooling, which layers.py and networks use",
    "models/test_regularization_view_networks.py": "the networks of one paper",
    "models/test_residual_networks.py": "networks that share residual blocks",
    "papers/test_papers.py": "the tables of all papers",
    "torch/test_against_attack_libraries.py": "modules attacked by other libraries",
    "training/test_lowering.py": "the compiled step on an accelerator",
    "training/test_parallel_training.py": "one step on several devices",
    "training/test_spectral_training.py": "training with bounded layers",
    "training/test_stability.py": "updates that are not finite, and signals",
    "training/test_streamed_training.py": "training on streamed images",
}


def rooms():
    return sorted(path.parent.name for path in (ROOT / "opnorm").glob("*/__init__.py"))


@pytest.mark.parametrize("room", rooms())
def test_a_file_of_tests_is_named_for_the_file_that_it_tests(room):
    strays = [
        path.name
        for path in (ROOT / "tests" / room).glob("test_*.py")
        if not (ROOT / "opnorm" / room / path.name.removeprefix("test_")).exists()
        and not (ROOT / "opnorm" / room / path.stem.removeprefix("test_")).is_dir()
        and f"{room}/{path.name}" not in OF_SEVERAL
    ]
    assert strays == []


@pytest.mark.parametrize("room", rooms())
def test_every_room_has_tests(room):
    assert list((ROOT / "tests" / room).glob("test_*.py"))


@pytest.mark.parametrize("name", OF_SEVERAL)
def test_the_listed_files_are_there(name):
    assert (ROOT / "tests" / name).exists()
