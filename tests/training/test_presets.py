"""The recipes can be trained, and their numbers are those of the papers."""

import dataclasses
import math

import numpy as np
import pytest

from opnorm import models, papers
from opnorm.training import Config, plan, presets, validate

# Values that a user gives for the fields that presets need.
GIVEN = {"dataset": "tiny_imagenet:/images", "init_from": "runs/standard"}

IMAGENET_STD = np.array([0.229, 0.224, 0.225])
INF = float("inf")


@pytest.mark.parametrize("name", presets.PRESETS)
def test_every_preset_can_be_trained_once_its_needs_are_given(name):
    preset = presets.get_preset(name)
    assert preset.name == name
    assert preset.source
    assert preset.paper
    assert set(preset.settings) <= {f.name for f in dataclasses.fields(Config)}
    config = dataclasses.replace(preset.config, **{n: GIVEN[n] for n in preset.needs})
    validate(config)
    if "dataset" in preset.needs:
        with pytest.raises(ValueError, match="dataset 'tiny_imagenet' is unknown"):
            validate(preset.config)


# method, norm, epsilon in the paper's pixels of [-1, 1], lambda, steps: Table 2.
ROTH = {
    "cnn7_at_l2": ("adversarial", 2.0, 1.75, 1.0, 10),
    "cnn7_at_linf": ("adversarial", INF, 8 / 255, 1.0, 10),
    "cnn7_snr": ("data_dependent_snr", 2.0, 1.75, 3e-2, 10),
    "cnn7_onr_linf": ("data_dependent_onr", INF, 8 / 255, 3e-2, 10),
    "wrn28_at_l2": ("adversarial", 2.0, 1.75, 1.0, 10),
    "wrn28_snr": ("data_dependent_snr", 2.0, 1.75, 3e-1, 10),
}


@pytest.mark.parametrize("name", ROTH)
def test_roths_lengths_are_converted_from_pixels_between_minus_1_and_1(name):
    method, p, epsilon, weight, num_steps = ROTH[name]
    preset = presets.get_preset(f"roth_{name}")
    config = preset.config
    # One of their units is as many of ours as what pixels are divided by.
    _, scale = models.STATISTICS["half"]
    assert (config.method, config.p, config.q) == (method, p, 2.0)
    assert config.epsilon == pytest.approx(epsilon * scale)
    assert (config.weight, config.num_steps, config.step_size) == (
        weight,
        num_steps,
        None,
    )
    assert config.penalty_fraction == (0.5 if method == "adversarial" else 1.0)
    assert preset.needs == ("init_from",)
    base = presets.get_preset(f"roth_{name.split('_')[0]}_standard")
    for field in ("model", "width", "normalization", "dataset"):
        assert getattr(config, field) == getattr(base.config, field)
    assert base.needs == ()


def test_roths_global_penalty_has_no_length():
    config = presets.get_preset("roth_cnn7_global_snr").config
    assert (config.method, config.weight, config.num_steps) == ("global_snr", 3e-4, 1)
    other = presets.get_preset("roth_cnn7_global_snr_10")
    assert other.config == dataclasses.replace(config, num_steps=10)
    assert other.paper["clean accuracy"] == "81.5 %"


@pytest.mark.parametrize("network", ["cnn7", "wrn28", "svhn_cnn7"])
def test_the_control_differs_from_roths_rows_in_the_method_alone(network):
    control = presets.get_preset(f"roth_{network}_standard_continued")
    assert control.needs == ("init_from",)
    assert control.config.method == "standard"
    of_methods = {"method", "epsilon", "weight", "num_steps", "search", "p"}
    for term in ("at_l2", "snr"):
        row = presets.get_preset(f"roth_{network}_{term}").config
        one, two = map(dataclasses.asdict, (control.config, row))
        differing = {name for name in one if one[name] != two[name]}
        assert "method" in differing
        assert differing <= {*of_methods, "penalty_fraction"}


@pytest.mark.parametrize("level", [4, 8, 16])
def test_the_regularization_views_attacks_are_in_255ths(level):
    for network in ("resnet56", "cifar100_resnet110", "tiny_imagenet"):
        config = presets.get_preset(f"regularization_view_{network}_at{level}").config
        assert (config.method, config.p) == ("adversarial_only", INF)
        assert config.epsilon * 255 == pytest.approx(level)
        assert config.step_size * 255 == pytest.approx(2)
        assert config.num_steps == 10
        assert config.random_start
    config = presets.get_preset(f"regularization_view_resnet56_fgsm{level}").config
    assert (config.num_steps, config.random_start) == (1, False)
    assert config.step_size == config.epsilon == pytest.approx(level / 255)


def test_finlays_attack_steps_by_about_two_255ths():
    config = presets.get_preset("finlay_cifar10_at_linf").config
    assert config.step_size == pytest.approx(0.43 / 3072**0.5)
    assert config.step_size * 255 == pytest.approx(1.978, abs=1e-3)
    assert config.epsilon * 255 == pytest.approx(8.007, abs=1e-3)
    assert (config.num_steps, config.random_start) == (7, False)


@pytest.mark.parametrize(("suffix", "weight"), [("0.1", 0.1), ("1", 1.0)])
def test_finlays_penalty_is_the_same_in_standardised_pixels(suffix, weight):
    cifar = presets.get_preset(f"finlay_cifar10_l2_{suffix}").config
    assert (cifar.weight, cifar.difference_step, cifar.p) == (weight, 0.01, 2.0)
    signs = presets.get_preset(f"finlay_cifar10_l1_{suffix}").config
    assert (signs.weight, signs.p, signs.divide_by_size) == (weight, INF, True)
    config = presets.get_preset(f"finlay_imagenet_l2_{suffix}").config
    # A gradient that is the same in the three channels, in pixels and in theirs.
    ours = np.full(3, 0.7)
    theirs = ours * IMAGENET_STD
    np.testing.assert_allclose(config.weight * ours @ ours, weight * theirs @ theirs)
    np.testing.assert_allclose(
        config.difference_step, 0.01 * np.sqrt(np.mean(IMAGENET_STD**2))
    )
    assert config.normalization == "imagenet"
    assert models.STATISTICS["imagenet"][1] == pytest.approx(IMAGENET_STD)


# Whitened pixels of CIFAR-10 are pixels divided by 0.211 on average, so measured on
# the embedded images; those of MNIST are pixels.
FARNIA = {
    "cifar10_alexnet_fgm_l2": (2.0, 1, 2.44 * 0.211),
    "cifar10_inception_pgm_l2": (2.0, 15, 2.44 * 0.211),
    "cifar10_resnet_pgm_linf": (INF, 15, 0.1 * 0.211),
    "mnist_elu_net_pgm_l2": (2.0, 15, 0.465),
}


@pytest.mark.parametrize("name", FARNIA)
def test_farnias_lengths_are_converted_from_whitened_pixels(name):
    config = presets.get_preset(f"farnia_{name}").config
    p, num_steps, epsilon = FARNIA[name]
    assert (config.method, config.p) == ("adversarial_only", p)
    assert (config.num_steps, config.attack_labels) == (num_steps, "predicted")
    assert config.epsilon == pytest.approx(epsilon, rel=0.01)
    # FGM's one step is the whole length, PGM's the default.
    assert config.step_size == (config.epsilon if num_steps == 1 else None)
    assert not config.random_start
    assert config.spectral_norm_bound is None
    assert config.optimizer == ("adam" if name.startswith("mnist") else "sgd")


def test_farnias_price_of_a_squared_length_is_divided_by_the_squared_scale():
    config = presets.get_preset("farnia_cifar10_mlp1_wrm").config
    assert config.gamma == pytest.approx(0.0976 / 0.211**2, rel=0.02)
    assert presets.get_preset("farnia_mnist_mlp2_wrm").config.gamma == pytest.approx(
        0.372
    )
    assert presets.get_preset("farnia_mnist_mlp2_wrm").config.image_size is None
    assert presets.get_grid("farnia_beta").values == {
        "spectral_norm_bound": (INF, 1.0, 1.3, 1.6, 2.0, 4.0)
    }


def test_the_regularization_views_norms_are_clipped():
    config = presets.get_preset("regularization_view_resnet56_at8_sn3").config
    assert (config.spectral_norm_bound, config.spectral_norm_method) == (3.0, "clip")
    base = presets.get_preset("regularization_view_resnet56_at8").config
    assert dataclasses.replace(base, **_clipped(3.0)) == config


def _clipped(bound):
    return {"spectral_norm_bound": bound, "spectral_norm_method": "clip"}


# Learning rates in the middle of epochs.
RATES = {
    "roth_cnn7_standard": {79: 1e-3, 80: 1e-4, 119: 1e-4, 120: 1e-5, 149: 1e-5},
    "roth_cnn7_snr": {0: 1e-4, 49: 1e-4},
    "roth_wrn28_standard": {59: 0.1, 60: 0.02, 120: 0.004, 160: 0.0008, 199: 0.0008},
    "finlay_cifar10_undefended": {59: 0.1, 60: 0.02, 120: 0.004, 160: 0.0008},
    "regularization_view_resnet56_at4": {99: 0.05, 100: 0.005, 150: 0.0005},
    "regularization_view_tiny_imagenet_at0": {29: 0.1, 30: 0.01, 60: 0.001},
    # Linear pieces: 0.25 to 0.5 to 0.0625, 0.1 to 0.01 to 0.001, 6.25e-4 to 6.25e-5.
    "finlay_imagenet_l2_0.1": {
        4: 0.25 + 0.25 * 4.5 / 8,
        8: 0.5 - 0.4375 * 0.5 / 7,
        14: 0.5 - 0.4375 * 6.5 / 7,
        15: 0.1 - 0.09 * 0.5 / 10,
        25: 0.01 - 0.009 * 0.5 / 3,
        28: 0.000625 - 0.0005625 * 0.5,
    },
}


@pytest.mark.parametrize("name", RATES)
def test_learning_rates_fall_where_the_papers_say(name):
    config = presets.get_preset(name).config
    made = plan.make(config, 2048)
    rate = plan.schedule(config, made)
    for epoch, expected in RATES[name].items():
        step = (made.step_at(epoch) + made.step_at(epoch + 1)) // 2
        phase = made.phase(step)
        # To half a step of an epoch's.
        slope = 0.06 / phase.steps_per_epoch if config.schedule == "linear" else 0.0
        assert float(rate(step)) == pytest.approx(expected, rel=1e-5, abs=slope)
    if config.dataset == "imagenet2012":
        sizes = [(p.image_size, p.batch_size / 4, p.least_area) for p in made.phases]
        assert sizes == [(128, 128, 0.08), (224, 48, 0.087), (288, 32, 0.5)]
        assert [p.first_epoch for p in made.phases] == [0, 15, 28]


def test_grids_are_table_3_in_pixels():
    l2 = presets.get_grid("roth_at_l2").values
    assert len(l2["epsilon"]) == 14
    assert l2["epsilon"][0] == 0.25
    assert l2["epsilon"][-1] == 2.0
    assert 2.25 / 2 not in l2["epsilon"]
    assert l2[presets.STEP_RATIO] == (1, 2, 3, 4, 5)
    linf = presets.get_grid("roth_epsilon_linf").values["epsilon"]
    np.testing.assert_allclose(np.array(linf) * 2 * 255, np.arange(1, 19))
    snr = presets.get_grid("roth_snr").values
    assert math.prod(map(len, snr.values())) == 14 * 11
    assert presets.get_grid("roth_global_snr").values["num_steps"] == (1, 10)
    for grid in presets.GRIDS.values():
        assert set(grid.values) <= {
            presets.STEP_RATIO,
            *(field.name for field in dataclasses.fields(Config)),
        }


def test_unknown_names_say_the_nearest_in_one_line():
    with pytest.raises(ValueError, match=r"roth_cnn7_snt.*roth_cnn7_snr") as caught:
        presets.get_preset("roth_cnn7_snt")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"zzz.*--list_presets"):
        presets.get_preset("zzz")
    with pytest.raises(ValueError, match=r"grid 'roth_snrr'.*roth_snr"):
        presets.get_grid("roth_snrr")


def test_descriptions_name_everything_and_show_both_units():
    everything = presets.describe_presets()
    for name in (*presets.PRESETS, *presets.GRIDS):
        assert name in everything
    one = presets.describe_presets("roth_cnn7_at_l2")
    assert "1.75" in one
    assert "0.875" in one
    assert "--init_from" in one


def test_presets_have_the_rows_that_their_paper_prints():
    unprinted = [name for name, preset in presets.PRESETS.items() if not preset.rows]
    known = ("svhn_cnn7", "interpolated", "standard_continued")
    assert all(any(part in name for part in known) for name in unprinted)
    for preset in presets.PRESETS.values():
        config = preset.config
        for row in preset.rows:
            assert preset.row(type(row)) is row
            match row:
                case papers.roth.Trained():
                    if row.epsilon is not None:
                        assert config.epsilon == row.epsilon / 2
                    assert row.weight in (None, config.weight)
                case papers.regularization_view.Generalization():
                    if row.trained_with:
                        assert config.epsilon * 255 == pytest.approx(row.trained_with)
                    assert config.spectral_norm_bound == row.bound
                    assert config.dataset == row.dataset
                case papers.finlay.Linf() | papers.finlay.L2():
                    assert (config.activation == "smooth_relu") == row.smooth
                    assert config.dataset == row.dataset
                case papers.farnia.Accuracy():
                    assert preset.name.endswith(f"{row.architecture}_{row.scheme}")
                    assert config.dataset == row.dataset
    assert presets.PRESETS["finlay_cifar10_l1_1"].row(papers.finlay.L2) is None
