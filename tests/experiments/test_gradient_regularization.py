"""experiments.gradient_regularization: nearest points, ratios, and a run as a whole."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common import attack_specs, cache
from experiments.gradient_regularization import (
    attacks as gradient_regularization_attacks,
)
from experiments.gradient_regularization import (
    measure as gradient_regularization_measure,
)
from experiments.gradient_regularization import networks, paper
from opnorm import data, training

# R_mu / R_e of the paper's tables, from their rounded columns.
RATIOS = {
    "CIFAR10_LINF": (1.875, 5.319, 3.785),
    "IMAGENET_LINF": (4.170, 9.835, 5.844, 3.189),
    "CIFAR10_L2": (-0.147, 1.882, 5.049, 2.333, 1.572),
    "IMAGENET_L2": (0.052, 10.34, 2.672, 4.561),
}


@pytest.mark.parametrize("name", RATIOS)
def test_improvement_ratios_are_those_of_the_papers_columns(name):
    first, *rest = getattr(paper, name).rows
    assert first.name == "undefended"
    assert first.ratio is None
    found = [
        gradient_regularization_measure.improvement_ratio(
            row.distance, row.clean_error, first.distance, first.clean_error
        )
        for row in rest
    ]
    np.testing.assert_allclose(found, RATIOS[name], rtol=1e-3, atol=6e-4)
    if name.endswith("LINF"):
        # Distances have three digits there, and the printed ratios agree.
        np.testing.assert_allclose(found, [row.ratio for row in rest], atol=0.02)
    same = (first.distance, first.clean_error)
    assert (
        gradient_regularization_measure.improvement_ratio(0.5, same[1], *same) is None
    )


def test_the_error_of_a_ratio_is_that_over_images():
    rng = np.random.default_rng(3)
    wrong_before, wrong = 0.3, 0.5

    def draw(count, chance, length):
        # The same images for two seeds, so that these agree on which are hard.
        hard = rng.uniform(size=count) < chance
        far = length * rng.gamma(2, 0.5, (2, count))
        return np.where(hard, 0.0, far)

    def ratio(after, before):
        means = []
        for each in (after, before):
            means += [each.mean(), np.mean(each == 0)]
        return gradient_regularization_measure.improvement_ratio(*means)

    def pair():
        return draw(400, wrong, 4.0), draw(400, wrong_before, 1.0)

    draws = [ratio(*pair()) for _ in range(300)]
    found = gradient_regularization_measure.ratio_error(*pair(), largest=math.inf)
    assert found == pytest.approx(np.std(draws), rel=0.3)
    # One image decides whether the clean error rises.
    before, after = np.array([[[0.0, 1, 1]], [[0.0, 0, 1]]])
    found = gradient_regularization_measure.ratio_error(after, before, largest=8.0)
    assert found == math.inf


def linear(weight, x):
    """The third class follows the second, which is the first's rival, one behind."""
    z = x.reshape(len(x), -1) @ weight
    return jnp.stack([z, -z, -z - 0.1], axis=1)


PGA = "pga num_steps=2 step_size=inf"


@pytest.mark.parametrize(
    ("p", "top_k", "attacks"),
    [(2.0, 1, [PGA, "fast_minimum_norm num_steps=1"]), (math.inf, 2, [PGA])],
)
def test_nearest_points_of_a_linear_network_are_those_in_closed_form(
    p, top_k, attacks, tmp_path, monkeypatch
):
    weight = np.random.default_rng(0).normal(size=48).astype(np.float32)
    weight /= np.linalg.norm(weight, 2 if p == 2 else 1)
    draws = np.random.default_rng(1).integers(64, 192, (20, 4, 4, 3)).astype(np.uint8)
    # One is wrong already.
    draws[2] = np.where(weight < 0, 191, 64).reshape(4, 4, 3)
    pictures = data.Dataset(
        draws, np.zeros(20, np.int32), ("a", "b", "c"), "random", "random pictures"
    )
    logit = (draws.reshape(20, -1) / 255) @ weight
    # The label leaves the first k where its rival, or both, have overtaken it.
    distance = np.maximum(logit if top_k == 1 else logit + 0.05, 0)
    largest = float(np.quantile(distance, 0.8))
    settings = gradient_regularization_attacks.Settings(
        p=p,
        attacks=tuple(attack_specs.parse_attack(text) for text in attacks),
        epsilons=(largest / 8, largest / 3),
        largest=largest,
        halvings=8,
        top_k=top_k,
        lanczos_steps=1,
        batch_size=16,
        part_size=12,
        seed=0,
    )
    gradient_regularization_attacks.check(settings)

    def measure():
        return gradient_regularization_measure.measure(
            jax.tree_util.Partial(linear, jnp.asarray(weight)),
            pictures,
            20,
            settings,
            smooth=False,
            identity="linear",
            parts=cache.Parts(tmp_path),
            description="test",
        )

    found = measure()
    np.testing.assert_array_equal(found.right, distance > 0)
    reached = distance <= largest
    assert (distance > 0).sum() > 0
    assert not reached.all()
    np.testing.assert_array_equal(np.isfinite(found.by_attack[0]), reached)
    if len(attacks) > 1:
        # It begins at the misclassified point that the first has found.
        assert np.all(found.distance[reached] == found.by_attack.min(axis=0)[reached])
        assert np.all(found.by_attack[1][reached] <= found.by_attack[0][reached])
    found = found._replace(distance=found.by_attack[0])
    np.testing.assert_array_less(distance - 1e-5, found.distance)
    np.testing.assert_allclose(
        found.distance[reached], distance[reached], atol=largest / 200
    )
    summed = gradient_regularization_measure.summary(found, settings)
    assert summed["unbroken"] == pytest.approx(np.mean(~reached))
    expected = np.minimum(distance, largest).mean()
    assert summed["distance"] == pytest.approx(expected, abs=largest / 200)
    assert list(summed["error_at"].values()) == [
        np.mean(distance <= epsilon) for epsilon in settings.epsilons
    ]
    assert summed["clean_error"] == np.mean(distance == 0)
    assert summed["bounds"]["lipschitz"]["violations"] == 0
    # With fewer attacked, everything in a row is of these, and the slope of all.
    fewer = gradient_regularization_measure.summary(
        found._replace(distance=found.distance[:5], by_attack=found.by_attack[:, :5]),
        settings,
    )
    assert np.mean(distance[:5] == 0) not in (0, summed["clean_error"])
    assert fewer["clean_error"] == np.mean(distance[:5] == 0)
    assert fewer["clean_error"] <= min(fewer["error_at"].values())
    assert fewer["distance"] == pytest.approx(
        np.minimum(distance[:5], largest).mean(), abs=largest / 200
    )
    assert fewer["slope"] == summed["slope"]
    bound = summed["bounds"]["lipschitz"]["values"][:5]
    assert fewer["bounds"]["lipschitz"]["values"] == bound
    assert fewer["bounds"]["lipschitz"]["mean"] == pytest.approx(np.mean(bound))
    # Points of budget 1/255 lie within it, although float32 puts some farther away.
    x = np.arange(255, dtype=np.float32) / np.float32(255)
    rounded = np.sort((x + np.float32(1 / 255)) - x)[-20:]
    assert rounded.max() > (1 + 1e-6) / 255
    summed = gradient_regularization_measure.summary(
        found._replace(distance=rounded),
        settings._replace(epsilons=(0.999 / 255, 1 / 255)),
    )
    assert list(summed["error_at"].values()) == [0, 1]

    def forbidden(*_):
        raise AssertionError("what is saved was computed again")

    monkeypatch.setattr(gradient_regularization_attacks, "_nearest", forbidden)
    np.testing.assert_array_equal(measure().by_attack, found.by_attack)


@pytest.mark.parametrize(
    ("text", "row"),
    [
        ("undefended_smooth", ("undefended", None, None, True)),
        ("adversarial_Linf", ("adversarial", None, math.inf, False)),
        ("gradient_0.1", ("gradient", 0.1, 2.0, False)),
        ("gradient_1e-3_L2_smooth", ("gradient", 1e-3, 2.0, True)),
    ],
)
def test_rows_are_read_and_named(text, row):
    found = networks.parse(text, 2.0)
    assert tuple(found)[:4] == row
    assert networks.parse(found.name(), math.inf) == found


@pytest.mark.parametrize("text", ["undefended_L2", "gradient", "gradient_x", "snr_1"])
def test_rows_that_are_none_are_refused(text):
    with pytest.raises(ValueError, match=f"rows has '{text}'"):
        networks.parse(text, 2.0)


TINY = ["--test_examples=48", "--examples=24", "--test_batch_size=16", "--halvings=2"]
TINY += ["--attack=pga num_steps=2", "--lanczos_steps=3"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, run):
    """A directory of results, and what was printed."""
    out = tmp_path_factory.mktemp("gradient")
    options = ["--model=mlp1", "--width=8", "--train_examples=160", "--batch_size=16"]
    options += ["--epochs=1", "--rows=undefended,gradient_0.1_smooth", "--seeds=0,1"]
    result = run("gradient_regularization", *TINY, *options, f"--out={out}")
    assert result.returncode == 0, result.stderr
    return out, result.stdout


def test_a_run_writes_what_it_measured_beside_the_papers_numbers(trained):
    out, printed = trained
    results = json.loads((out / "L2" / "results.json").read_text())
    assert list(results["networks"]) == ["undefended", "gradient_0.1_smooth"]
    pictures = data.load("cifar10_mini", split="test", limit=48)
    x = data.to_float(jnp.asarray(pictures.images))
    for name, folder in (
        ("undefended", "undefended"),
        ("gradient_0.1_smooth", "gradient_0.1_L2_smooth"),
    ):
        f = training.load_run(out / "networks" / f"{folder}-seed0").network

        def margin(x, f=f):
            p = jax.nn.softmax(f(x))
            own = jax.nn.one_hot(pictures.labels, 10)
            each = jnp.max(p - 2 * own, axis=1) - jnp.sum(p * own, axis=1)
            return each.sum(), each

        slopes, values = jax.jit(jax.grad(margin, has_aux=True))(x)
        values, slopes = np.asarray(values), np.asarray(slopes).reshape(48, -1)
        slopes = np.linalg.norm(slopes, axis=1)
        found = results["networks"][name]["seeds"][0]
        assert found["clean_error"] == pytest.approx(np.mean(values[:24] > 0))
        assert found["slope"]["max"] == pytest.approx(slopes.max(), rel=1e-4)
        distances = np.asarray(found["distances"], float)
        np.testing.assert_array_equal(distances == 0, values[:24] > 0)
        assert found["distance"] == pytest.approx(distances.mean(), rel=1e-5)
        bound = np.maximum(-values, 0) / slopes.max()
        lipschitz = found["bounds"]["lipschitz"]
        np.testing.assert_allclose(lipschitz["values"], bound[:24], rtol=1e-3)
        assert lipschitz["mean"] == pytest.approx(bound[:24].mean(), rel=1e-4)
        for kept in found["bounds"].values():
            nearer = np.asarray(kept["values"]) > distances * (1 + 1e-5)
            assert kept["violations"] == pytest.approx(nearer.mean())
    before, after = (results["networks"][n] for n in results["networks"])
    assert set(before["mean"]["bounds"]) == {"lipschitz"}
    assert set(after["mean"]["bounds"]) == {
        "lipschitz",
        *(f"{m}_{k}" for m in ("soft", "log_sum_exp") for k in ("signed", "absolute")),
    }
    for network in (before, after):
        values = [one["distance"] for one in network["seeds"]]
        assert len(values) == 2
        assert len(network["ratios"]) == 2
        assert network["mean"]["distance"] == pytest.approx(np.mean(values))
        assert network["spread"]["distance"] == pytest.approx(np.std(values, ddof=1))
        assert f"({values[0]:.3f} / {values[1]:.3f})" in printed
    rise, gain = (
        after["mean"][n] / before["mean"][n] - 1 for n in ("clean_error", "distance")
    )
    assert after["ratio"] == (pytest.approx(gain / rise) if rise else None)
    for name in ("errors.png", "bounds.png", "tables.md"):
        assert (out / "L2" / name).stat().st_size > 0
    assert "not of this run but of Finlay & Oberman 2019, Tables 2 and 3" in printed
    # The paper's row of each, in columns of its own.
    for row in ("| 4.36 %             | 0.12 ", "| 11.68 %            | 0.59 "):
        assert row in printed


def test_trained_networks_are_taken_as_they_are(trained, run):
    out, _ = trained
    copy, kept = out / "copy", out / "networks" / "undefended-seed0"
    result = run("gradient_regularization", *TINY, f"--run={kept}", f"--out={copy}")
    assert result.returncode == 0, result.stderr
    first, again = (
        json.loads((folder / "L2" / "results.json").read_text())["networks"]
        for folder in (out, copy)
    )
    assert list(again) == ["undefended"]
    for name in ("clean_error", "distances", "slope", "bounds", "training_seconds"):
        expected = first["undefended"]["seeds"][0][name]
        assert again["undefended"]["seeds"][0][name] == expected
    assert not (copy / "networks").exists()


def test_results_are_summed_up_again_from_the_values_by_image(trained, run, tmp_path):
    written = (trained[0] / "L2" / "results.json").read_text()
    results = json.loads(written)
    for network in results["networks"].values():
        # As earlier versions did it, over other images.
        network["mean"]["clean_error"] = network["seeds"][0]["clean_error"] = 0.99
    (tmp_path / "results.json").write_text(json.dumps(results))
    result = run("gradient_regularization", f"--summarize={tmp_path}")
    assert result.returncode == 0, result.stderr
    again = json.loads((tmp_path / "results.json").read_text())
    assert again.pop("summary_revision") == again["git_revision"]
    assert again == json.loads(written)
    for name in ("errors.png", "bounds.png"):
        assert (tmp_path / name).stat().st_size > 0
    first, *_ = (trained[0] / "L2" / "tables.md").read_text().split("Revision")
    kept, _, rest = (tmp_path / "tables.md").read_text().partition("Revision")
    assert kept == first
    known = again["git_revision"] is not None
    assert ("summed up at revision" in rest) == known
    (tmp_path / "results.json").write_text('{"networks": []}')
    for folder, more, words in (
        (tmp_path, [], f"summarize is {tmp_path}; its results.json is not of this"),
        (tmp_path / "none", [], f"summarize is {tmp_path / 'none'}; it has no"),
        (tmp_path, ["--epsilons=0.1"], "epsilons is ['0.1']; it is of a measurement"),
        (tmp_path, ["--p=inf"], "p is inf; it is of a measurement"),
    ):
        result = run("gradient_regularization", f"--summarize={folder}", *more)
        assert result.returncode == 2
        assert len(result.stderr.strip().splitlines()) == 1
        assert words in result.stderr


def test_a_usage_error_is_one_line_and_writes_nothing(tmp_path, run):
    result = run("gradient_regularization", f"--out={tmp_path / 'o'}", "--rows=magic")
    assert result.returncode == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert "rows has 'magic'" in result.stderr
    assert "gradient_<lambda>" in result.stderr
    assert not (tmp_path / "o").exists()
