"""Figures say what they show, and colours, ticks and distributions are right."""

import json
import re
import xml.etree.ElementTree
from pathlib import Path

import numpy as np
import pytest

from experiments.common import drawings, figures, scales
from opnorm import runs

RESULTS = Path(__file__).parents[2] / "experiments" / "results"
# A folder of each kind of figures.
FOLDERS = (
    "equivalence",
    "table2",
    "table2/spectrum",
    "linearity",
    "curvature",
    "interpolation_step_size",
    "gradient_regularization/Linf",
    "spectral_normalization",
)
# Each figure has one of these words on its errors.
ERRORS = ("bands: ", "bars: ", "without errors")
LOOKS = {figures.label(name): look for name, look in figures.STYLES.items()}
# Densities are too close for markers; solid and dashed lines tell activations apart.
OWN = ("parameter_spectrum", "errors")
# Simulated vision without one kind of cone: Machado, Oliveira & Fernandes 2009, "A
# Physiologically-based Model for Simulation of Color Vision Deficiency", severity 1.
VISIONS = {
    "usual": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def shown(figure):
    return [axes for axes in figure.axes if axes.get_visible()]


@pytest.mark.parametrize("folder", FOLDERS)
def test_figures_of_committed_results_say_what_they_show(folder):
    count = 0
    for name, figure in drawings.of_file(RESULTS / folder / "results.json"):
        count += 1
        assert (RESULTS / folder / f"{name}.png").exists()
        title = " ".join(figure.get_suptitle().split())
        assert any(words in title for words in ERRORS), (name, title)
        assert "seed)" not in title
        assert "pictures" not in title
        (legend,) = figure.legends
        assert {text.get_text() for text in legend.get_texts()}
        for axes in shown(figure):
            # A legend in a panel may hide a curve.
            assert axes.get_legend() is None
            assert axes.lines or axes.collections or axes.containers, name
            # A method looks alike in every figure.
            for line in axes.lines:
                look = (line.get_color(), line.get_marker(), line.get_linestyle())
                expected = LOOKS.get(line.get_label())
                assert expected is None or name in OWN or look == expected, name
            unit = axes.get_xlabel()
            if unit.startswith("Linf"):
                assert "in 1/255" in unit
                assert len(axes.get_xticks()) >= 3
                if axes.get_xscale() == "linear":
                    ticks = 255 * axes.get_xticks()
                    np.testing.assert_allclose(ticks, ticks.round(), atol=1e-9)
        figures.pyplot().close(figure)
    assert count


def linear(color):
    """Linear RGB of ``"#rrggbb"``."""
    channels = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(
        channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4
    )


def lab(rgb):
    """CIELAB of linear RGB, D65."""
    matrix = [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
    x = np.array(matrix) @ rgb / [0.95047, 1, 1.08883]
    f = np.where(x > 0.008856, np.cbrt(x), 7.787 * x + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("vision", VISIONS)
def test_colours_of_methods_can_be_told_apart(vision):
    colors = sorted({color for color, *_ in figures.STYLES.values()})
    seen = [
        lab(np.clip(np.array(VISIONS[vision]) @ linear(color), 0, 1))
        for color in colors
    ]
    for i in range(len(seen)):
        for j in range(i):
            # Differences of 2 are just seen by all.
            assert np.linalg.norm(seen[i] - seen[j]) > 14, (colors[i], colors[j])
    # On white paper and on a dark screen; black is replaced there.
    for color in colors:
        light = linear(color) @ [0.2126, 0.7152, 0.0722]
        assert 1.05 / (light + 0.05) > 2.2
        assert color == figures.BLACK or (light + 0.05) / 0.056 > 2.2


def test_a_distribution_counts_all_images_of_all_networks():
    figure, (axes,) = figures.new_panels("", ("",))
    networks = [[0.0, 1.0, 2.0, np.inf], [0.0, 0.0, 2.0, 3.0]]
    figures.distribution(axes, networks, color="#000000")
    (line,) = axes.lines
    np.testing.assert_allclose(line.get_xdata(), [0, 1, 2, 3])
    # 25 and 50, 50 and 50, 75 and 75, 75 and 100 percent.
    np.testing.assert_allclose(line.get_ydata(), [37.5, 50, 75, 87.5])
    (band,) = axes.collections
    # Half the difference of two is the standard error.
    low, high = (band.get_paths()[0].vertices[:, 1].min(), 100.0)
    np.testing.assert_allclose((low, high), (37.5 - 12.5, 87.5 + 12.5))
    figures.pyplot().close(figure)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.9, 110, [1, 10, 100]),
        (0.4, 22, [0.5, 1, 2, 5, 10, 20]),
        (1e-9, 1e3, [1e-9, 1e-7, 1e-5, 1e-3, 1e-1, 10, 1000]),
        (0.61, 0.89, [0.64, 0.72, 0.8, 0.88]),
    ],
)
def test_logarithmic_axes_have_some_ticks_but_few(low, high, expected):
    np.testing.assert_allclose(scales.log_ticks(low, high), expected)


@pytest.mark.parametrize(
    ("width", "low", "high"), [(1.2, -20, 700), (5e-4, -2e-3, 0.05), (0.01, 0, 9)]
)
def test_ticks_on_both_sides_of_zero_do_not_run_together(width, low, high):
    ticks = np.array(scales.asinh_ticks(width, low, high))
    assert 0 in ticks
    assert len(ticks) >= 3
    assert low <= ticks.min() < ticks.max() <= high
    places = np.arcsinh(ticks / width)
    span = np.arcsinh(high / width) - np.arcsinh(low / width)
    assert np.diff(places).min() >= span / 7


def test_an_attack_of_a_flag_has_a_name_for_readers():
    name = figures.attack_label("pga keep=success num_steps=5")
    assert name == "PGA, keep success, num steps 5"
    assert figures.attack_label("auto_attack") == "AutoAttack"
    assert figures.attack_label("apgd_dlr") == "APGD DLR"


def test_figures_are_written_in_both_formats_and_fit_into_a_page(tmp_path):
    def draw():
        figure, panels = figures.new_panels("<a> & b", ("second",))
        mean = {"mean": [1.0, 2.0], "standard_error": [0.1, None]}
        for axes in panels:
            figures.curves(axes, {"standard": ([0, 1], mean)})
        yield "name", figures.finish(figure, panels)

    out = runs.RunDirectory(tmp_path)
    (png,) = figures.save(out, draw())
    (svg,) = figures.save(out, draw(), "svg")
    assert png.read_bytes()[1:4] == b"PNG"
    assert svg.name == "name.svg"
    ((_, figure),) = draw()
    text = figures.inline_svg(figure, "first")
    root = xml.etree.ElementTree.fromstring(text)
    ids = [each.get("id") for each in root.iter() if each.get("id")]
    assert len(set(ids)) == len(ids)
    assert all(name.startswith("first-") for name in ids)
    referred = re.findall(r'(?:href="#|url\(#)([^")]+)', text)
    assert referred
    assert set(referred) <= set(ids)
    # Text is text, and colours follow the page.
    assert "second" in text
    assert "&lt;a&gt; &amp; b" in text
    assert "var(--figure-ink" in text
    assert not re.search(r"(?<!, )#000000", text)


def test_files_of_nobody_have_no_figures(tmp_path):
    file = tmp_path / "results.json"
    for content in ([1], {"a": 1}, {"networks": {}}):
        file.write_text(json.dumps(content))
        assert list(drawings.of_file(file)) == []
    file.write_text("{")
    with pytest.raises(ValueError, match=r"results\.json cannot be read"):
        list(drawings.of_file(file))


def test_redraw_draws_a_folder_again_with_the_right_name_of_its_data(run, tmp_path):
    held = json.loads((RESULTS / "interpolation_mix" / "results.json").read_text())
    place = tmp_path / "results" / "mix"
    place.mkdir(parents=True)
    (place / "results.json").write_text(json.dumps(held | {"data": "images in a"}))
    flags = (f"--results={tmp_path / 'results'}", f"--out={tmp_path / 'out'}")
    done = run("redraw", *flags, "--format=svg", "--data_name=images in a=The set A")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "figures written: 1"
    text = (tmp_path / "out" / "mix" / "accuracy.svg").read_text()
    assert "The set A" in text
    assert "images in a" not in text
    done = run("redraw", *flags, "--data_name=a")
    assert done.returncode == 2
    assert "data_name is 'a'; it must be OLD=NEW" in done.stderr
