"""The papers' tables against sums, ratios and products of their own columns."""

import inspect
import itertools
import math

import numpy as np
import pytest

from opnorm import papers
from opnorm.papers import farnia, finlay, regularization_view, roth

ROWS = {
    (roth, 2): 9,
    (roth, 3): 1,
    (farnia, 1): 42,
    (farnia, 2): 42,
    (farnia, 3): 10,
    (regularization_view, 1): 18,
    (regularization_view, 2): 6,
    (regularization_view, 3): 6,
    (regularization_view, 4): 6,
    (regularization_view, 5): 4,
    (regularization_view, 6): 12,
    (finlay, 1): 9,
    (finlay, 2): 11,
    (finlay, 3): 10,
}


@pytest.mark.parametrize(("paper", "number"), ROWS)
def test_tables_are_complete_and_say_their_units(paper, number):
    table = getattr(paper, f"TABLE_{number}")
    assert len(table.rows) == len(set(table.rows)) == ROWS[paper, number]
    assert f"Table {number}" in table.source
    (kind,) = {type(row) for row in table.rows}
    assert set(table.units) <= set(kind._fields)
    documented = inspect.getdoc(kind)
    assert all(name in documented for name in kind._fields)
    for name, unit in table.units.items():
        if unit == "fraction":
            values = [getattr(row, name) for row in table.rows]
            found = np.array([v for v in values if v is not None])
            assert np.all((found >= 0) & (found <= 1))


def test_rows_are_found_by_their_columns():
    table = farnia.TABLE_1
    names = {"dataset": "cifar10", "architecture": "mlp1"}
    assert [row.scheme for row in table.select(**names)] == [
        *("erm", "fgm_l2", "pgm_l2", "wrm")
    ]
    assert table.row(**names, scheme="wrm").bounded_test == 0.50
    with pytest.raises(ValueError, match=r"dataset='cifar10'.* fits 4 rows of Farnia"):
        table.row(**names)
    with pytest.raises(
        ValueError, match=r"column 'data' is unknown; Farnia .* has dat"
    ):
        table.select(data="cifar10")
    assert papers.Table is type(table)


def column(rows, name):
    return np.array([math.nan if (v := getattr(r, name)) is None else v for r in rows])


def test_farnias_notebooks_have_the_digits_that_table_1_rounds():
    first, digits = farnia.TABLE_1.rows, farnia.NOTEBOOKS.rows
    for table in (farnia.NOTEBOOKS, farnia.TABLE_2):
        assert [row[:3] for row in table.rows] == [row[:3] for row in first]
    for name in ("test", "bounded_test"):
        np.testing.assert_allclose(
            column(first, name), column(digits, name), rtol=0, atol=0.00501
        )
    # The paper stars the four rows in which no bound was the best choice.
    starred = [row for row in digits if row.beta == math.inf]
    assert [(row.dataset, row.architecture) for row in starred] == [
        *(("mnist", "elu_net"), ("mnist", "mlp1"), ("svhn_cropped", "alexnet"))
    ]
    for row in starred:
        assert (row.validation, row.test) == (row.bounded_validation, row.bounded_test)
    # The bound was chosen by its validation accuracy.
    chosen = column(digits, "bounded_validation") - column(digits, "validation")
    assert chosen.min() >= 0
    assert (chosen > 0).sum() == 42 - len(starred)


def test_farnias_last_accuracies_round_those_of_table_1_and_the_notebooks():
    place = {"dataset": "cifar10", "architecture": "alexnet", "scheme": "pgm_l2"}
    trained, validated = (
        table.row(**place) for table in (farnia.TABLE_1, farnia.NOTEBOOKS)
    )
    drawn = {row.regularization: row for row in farnia.FIGURE_11.select(**place)}
    assert len(drawn) == len(farnia.FIGURE_11.rows) == 6
    # They were read off the figure, to a hundredth.
    expected = {
        "none": (trained.train, validated.validation),
        "normalize": (trained.bounded_train, validated.bounded_validation),
    }
    for name, pair in expected.items():
        assert drawn[name][-2:] == pytest.approx(pair, abs=0.011)


def test_farnias_ratios_are_those_of_the_durations():
    rows = farnia.TABLE_2.rows
    found = column(rows, "bounded_seconds") / column(rows, "seconds")
    # Short durations are rounded to whole seconds.
    rounding = 0.005 + (found + 1) * 0.5 / column(rows, "seconds")
    assert np.all(np.abs(found - column(rows, "ratio")) <= rounding)


@pytest.mark.parametrize("number", [2, 3, 4, 5, 6])
def test_the_regularization_views_gaps_are_differences(number):
    rows = getattr(regularization_view, f"TABLE_{number}").rows
    losses = column(rows, "test_loss") - column(rows, "train_loss")
    np.testing.assert_allclose(column(rows, "loss_gap"), losses, atol=1.001e-3)
    if number > 2:
        errors = column(rows, "train_accuracy") - column(rows, "test_accuracy")
        np.testing.assert_allclose(column(rows, "accuracy_gap"), errors, atol=1.001e-4)


def test_the_regularization_views_spreads_are_those_of_55_layers():
    rows = regularization_view.APPENDIX_B_2.rows
    assert [row.num_fallen + row.num_risen for row in rows] == [55, 55]
    falls = column(rows, "fall") / column(rows, "num_fallen")
    np.testing.assert_allclose(falls, column(rows, "mean_fall"), atol=6e-5)
    # The sum that is printed for CIFAR-100 fits neither its mean nor its layers.
    rises = column(rows, "rise") / column(rows, "num_risen")
    np.testing.assert_allclose(rises[0], rows[0].mean_rise, atol=6e-5)
    assert rises[1] < rows[1].mean_rise / 4


# Percent of all test images that are correct under PGD, computed by hand from the text.
ABSOLUTE = {
    3: (58.58, 57.09, 61.26, 51.75, 58.30, 61.55),
    4: (18.71, 24.95, 29.01, 20.49, 25.78, 30.37),
    5: (0, 20.03, 25.17, 30.47),
    6: (
        *(52.41, 62.19, 65.21, 51.16, 59.65, 62.71),
        *(49.16, 58.10, 61.75, 58.58, 57.09, 61.26),
    ),
}


@pytest.mark.parametrize("number", ABSOLUTE)
def test_the_regularization_views_robust_accuracies(number):
    rows = getattr(regularization_view, f"TABLE_{number}").rows
    found = 100 * column(rows, "robust") * column(rows, "test_accuracy")
    np.testing.assert_allclose(found, ABSOLUTE[number], atol=0.02)
    # Longer attacks in training fall short on clean images.
    for row, longer in itertools.pairwise(rows):
        if row[:3] == longer[:3]:
            assert longer.trained_with > row.trained_with
            assert longer.test_accuracy < row.test_accuracy


def test_the_regularization_views_loss_variations_rise_and_fall_with_the_attacks():
    table = regularization_view.TABLE_1
    for dataset in ("cifar10", "cifar100"):
        rows = table.select(dataset=dataset)
        mean = column(rows, "mean").reshape(3, 3)
        deviation = column(rows, "standard_deviation").reshape(3, 3)
        for values in (mean, deviation):
            assert np.all(np.diff(values, axis=0) > 0)
            assert np.all(np.diff(values, axis=1) < 0)


# R_mu / R_e from the rounded columns, by hand.
RATIOS = {
    (1, "cifar10"): (1.875, 5.319, 3.785),
    (1, "imagenet2012"): (4.170, 9.835, 5.844, 3.189),
    (2, "cifar10"): (-0.147, 1.882, 5.049, 2.333, 1.572),
    (2, "imagenet2012"): (0.052, 10.34, 2.672, 4.561),
}


@pytest.mark.parametrize(("number", "dataset"), RATIOS)
def test_finlays_ratios_are_those_of_the_columns(number, dataset):
    first, *rest = getattr(finlay, f"TABLE_{number}").select(dataset=dataset)
    assert (first.method, first.smooth, first.ratio) == ("undefended", False, None)
    gain = column(rest, "distance") / first.distance - 1
    rise = column(rest, "clean_error") / first.clean_error - 1
    np.testing.assert_allclose(
        gain / rise, RATIOS[number, dataset], rtol=1e-3, atol=6e-4
    )
    if number == 1:
        # Distances have three digits there, and the printed ratios agree.
        np.testing.assert_allclose(gain / rise, column(rest, "ratio"), atol=0.02)


def test_finlays_tables_are_of_the_same_networks():
    for row in finlay.TABLE_3.rows:
        same = dict(zip(row._fields[:4], row[:4], strict=True))
        distances = finlay.TABLE_2.row(**same)
        # The L-bound's mean gap between probabilities is below 1.
        assert 0 < distances.lipschitz * row.max_slope < 1
        assert distances.lipschitz < distances.distance
        assert row.mean_slope < row.max_slope
        assert (row.mean_curvature is not None) == row.smooth
        for other in finlay.TABLE_1.select(**same):
            if row.method != finlay.GRADIENT or row.dataset == finlay.IMAGENET:
                assert other.clean_error == distances.clean_error
                assert other.hours == distances.hours


def test_roths_grid_has_the_values_of_table_2():
    (grid,) = roth.TABLE_3.rows
    assert len(grid.epsilon_l2) == 14
    assert 2.25 not in grid.epsilon_l2
    assert (len(grid.epsilon_linf), len(grid.num_steps)) == (18, 11)
    for row in roth.TABLE_2.rows:
        lengths = grid.epsilon_linf if row.method.endswith("linf") else grid.epsilon_l2
        assert row.epsilon is None or row.epsilon in lengths
        assert row.weight is None or row.weight in grid.weight
        known = {*grid.num_steps, *grid.global_num_steps}
        assert set(row.num_steps) <= known
