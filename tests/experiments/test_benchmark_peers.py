"""Libraries in processes of their own: a stub stands for all of them."""

import contextlib
import resource
import time

import flax.linen as nn
import jax
import numpy as np
import pytest

from experiments.benchmark import breakdown, peers, scaling, tables, tasks
from experiments.benchmark import figures as benchmark_figures
from experiments.benchmark.children import Child, ChildError, take_turns
from experiments.benchmark.setting import Setting, cnn7_program
from experiments.common import figures, timing
from opnorm import runs
from tests.support import fake_peer

STUB = "tests.support.fake_peer"
ENVIRONMENT = {"platform": "cpu", "jax": "0.1"}
MACHINE = {
    "processor": "Abacus",
    "processors": 2,
    "versions": {"torch": "2.0"},
    "product_gflops": [9.6, 30.2, 11.0],
}


def task(folder, name="sleeps", library="opnorm", channels_last=False):
    return tasks.Task(name, library, channels_last, 1, 2, str(folder))


def setting(directory, **changed):
    return Setting(
        compilations=timing.Compilations(),
        width=2,
        batch_size=2,
        num_rounds=3,
        attack_steps=(),
        compute_dtype="float32",
        full_size=False,
        directory=directory,
    )._replace(**changed)


def test_only_one_process_works_at_a_time(tmp_path):
    with contextlib.ExitStack() as stack:
        children = {}
        for library in ("opnorm", "pytorch"):
            child = Child(STUB, task(tmp_path, library=library))
            stack.callback(child.close)
            children[library] = child
        rounds = take_turns(children, 2)
    lines = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    times = [float(time) for line in lines for time in line[1:]]
    assert times == sorted(times)
    turns = [a[0] for a, b in zip([[""], *lines], lines, strict=False) if a[0] != b[0]]
    # The first calls, those that tell how many calls make a turn, and two rounds.
    assert len(turns) == 8
    for library, least in (("opnorm", 0.02), ("pytorch", 0.08)):
        assert len(rounds[library]) == 2
        assert all(least <= seconds < 10 * least for seconds in rounds[library])
        # A turn has calls enough to be measured.
        calls = sum(line[0] == library for line in lines) - 2
        assert calls * max(rounds[library]) >= 2 * 0.25


def test_a_process_answers_when_its_threads_have_stopped(tmp_path):
    child = Child(STUB, task(tmp_path, "spins"))
    seconds, answered = child.run(), time.monotonic()
    child.close()
    last = (tmp_path / "log").read_text().splitlines()[-1]
    assert float(last.split()[2]) < answered
    # The time after the call is not the library's.
    assert seconds < 0.2


def test_memory_counts_from_the_start_of_the_process(tmp_path):
    child = Child(STUB, task(tmp_path, "allocates"))
    child.close()
    assert child.peak_bytes - child.bytes_before > 60e6
    # The memory of this process, which has imported JAX, is not that of its child.
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert child.bytes_before < own / 2


@pytest.mark.parametrize(
    ("name", "message"),
    [("fails", "ValueError: the task is unknown"), ("dies", "ended with code 3")],
)
def test_a_process_that_fails_says_why(name, message, tmp_path):
    with pytest.raises(ChildError, match=message):
        Child(STUB, task(tmp_path, name))


def test_all_libraries_are_given_the_same_arrays(tmp_path):
    given = {
        "images": np.arange(6, dtype=np.uint8).reshape(2, 3),
        "params": {"conv1": {"kernel": np.float32([[0.5]])}, "logits": np.ones(2)},
    }
    tasks.write(tmp_path, given)
    found = task(tmp_path).load()
    assert jax.tree.structure(found) == jax.tree.structure(given)
    for got, expected in zip(*map(jax.tree.leaves, (found, given)), strict=True):
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(got, expected)


@pytest.fixture
def stubs(monkeypatch):
    """Every library is the stub, and none is missing."""
    for library in peers._MODULES:
        monkeypatch.setitem(peers._MODULES, library, STUB)
    monkeypatch.setattr(peers, "_NEEDED", {})
    monkeypatch.setattr(peers, "_write_given", lambda *given: None)


def test_a_row_counts_the_fastest_layout(stubs, tmp_path):
    name = "pga"
    found = peers.measure(setting(tmp_path), name)
    record = found.more["peers"][name]
    assert record["best"] == "pytorch, channels-last"
    # The stub sleeps half as long as in the other layout.
    expected = fake_peer.LAYOUTS[True] / fake_peer.OPNORM
    speed = found.ratios["speed of PGA-10 / PyTorch's PGA-10"]
    assert speed == pytest.approx(expected, rel=0.5)
    costs = record["costs"]
    assert list(costs) == ["opnorm", "pytorch", "pytorch, channels-last"]
    assert costs["opnorm"]["first_seconds"] == found.ratios["first call of PGA-10, s"]
    results = {"ratios": found.ratios, "seconds": {}, "environment": ENVIRONMENT}
    lines = tables.text(results | found.more).splitlines()
    row = next(line for line in lines if "pytorch, channels-last" in line)
    assert row.split("|")[1].strip() == "PGA-10"


def test_without_pytorch_opnorm_is_measured_alone(stubs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(peers, "_NEEDED", {"pytorch": ("torch_that_is_missing",)})
    found = peers.measure(setting(tmp_path), "standard")
    said = capsys.readouterr().out.strip()
    assert said == (
        "left out, torch_that_is_missing is not installed: pytorch, standard step"
    )
    assert list(found.ratios) == ["first call of standard step, s"]
    assert list(found.more["peers"]["standard"]["costs"]) == ["opnorm"]


def test_the_promises_of_speed_are_lower_limits():
    ratios = {peers.ROWS["pga"].ratio: 1.99, peers.ROWS["standard"].ratio: 1.0}
    results = {"ratios": ratios, "seconds": {}, "environment": ENVIRONMENT}
    rows = [line.split("|")[3:5] for line in tables.text(results).splitlines()[2:4]]
    found = [[cell.strip() for cell in row] for row in rows]
    assert found == [[">= 2", "NO"], ["<= 1", "yes"]]


def test_the_parts_of_a_step_are_the_whole_step():
    parts = list(breakdown._PARTS.items())
    whole = [name for name, _ in parts].index("whole step")
    total: dict[str, int] = {}
    for _, signs in parts[:whole]:
        for name, sign in signs.items():
            total[name] = total.get(name, 0) + sign
    nonzero = {name: sign for name, sign in total.items() if sign}
    assert nonzero == parts[whole][1]


def test_the_parts_of_the_passes_are_found_in_the_network(tmp_path):
    objective = cnn7_program(setting(tmp_path)).objective
    params, batch_stats = jax.eval_shape(objective.init, jax.random.key(0))
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), np.float32)
    modes = objective.modes
    pooled = breakdown._pooled(modes, params, batch_stats, x)
    shapes = [(2, 32, 32, 2), (2, 16, 16, 4), (2, 8, 8, 8), (2, 2, 2, 16)]
    assert [array.shape for array in pooled] == shapes

    def normalised(*args):
        return modes.train(*args, jax.random.key(0))

    def skipped(*args):
        with nn.intercept_methods(breakdown.skip_batch_norm):
            return modes.train(*args, jax.random.key(0))

    programs = [
        str(jax.make_jaxpr(fun)(params, batch_stats, x))
        for fun in (normalised, skipped)
    ]
    assert ["rsqrt" in program for program in programs] == [True, False]


def test_growth_is_drawn_and_told_as_an_exponent(tmp_path, monkeypatch):
    builds = {"a sleep": lambda setting, size: lambda: time.sleep(0.01 * size)}
    axis = scaling.Axis("seconds", (1, 4, 16), builds)
    monkeypatch.setitem(scaling.AXES, "sleep", axis)
    found = scaling.measure(setting(tmp_path), "sleep").more["scaling"]
    assert found["sleep"]["sizes"] == [1, 4, 16]
    found["sleep"]["seconds"]["a square"] = [0.5, 8.0, 128.0]
    results = {
        "ratios": {},
        "seconds": {},
        "environment": ENVIRONMENT,
        "machine": MACHINE,
        "git_revision": "0123456789",
        "scaling": found,
    }
    first, _, *lines = tables.text(results).splitlines()
    assert first == (
        "2 cores of Abacus; a product of float32 matrices at 10 to 30 GFLOP/s during "
        "the run; JAX 0.1, torch 2.0; revision 0123456."
    )
    rows = [[cell.strip() for cell in line.split("|")[2:6]] for line in lines]
    exponents = {(name, size): exponent for name, size, _, exponent in rows[2:]}
    assert exponents["a square", "1"] == ""
    assert exponents["a square", "4"] == exponents["a square", "16"] == "2.00"
    assert float(exponents["a sleep", "16"]) == pytest.approx(1, abs=0.2)
    figures.save(runs.RunDirectory(tmp_path), benchmark_figures.draw(results))
    assert (tmp_path / "scaling.png").stat().st_size > 1000


@pytest.fixture
def given(tmp_path):
    """Two images with labels, and the weights of a CNN7."""
    pytest.importorskip("torch")
    objective = cnn7_program(setting(tmp_path)).objective
    params, batch_stats = jax.device_get(objective.init(jax.random.key(0)))
    generator = np.random.default_rng(0)
    given = {
        "images": generator.integers(0, 256, (2, 32, 32, 3), np.uint8),
        "labels": np.int32([3, 5]),
        "params": params,
        "batch_stats": batch_stats,
    }
    tasks.write(tmp_path, given)
    return given


def test_the_tasks_of_pytorch_compute_those_of_opnorm(given, tmp_path, monkeypatch):
    from experiments.benchmark import peer_opnorm, peer_torch

    asked = task(tmp_path, tasks.JACOBIAN)
    ours = np.asarray(peer_opnorm.build(asked)())
    for layout in (False, True):
        theirs = peer_torch.build(asked._replace(channels_last=layout))()
        found = theirs.numpy().transpose(0, 1, 3, 4, 2)
        np.testing.assert_allclose(found, ours, rtol=1e-3, atol=1e-5)
    modes = cnn7_program(setting(tmp_path)).objective.modes
    x, rows = np.float32(given["images"]) / 255, np.arange(2)
    logits, _ = jax.jit(modes.train)(given["params"], given["batch_stats"], x)
    exact = np.asarray(logits, np.float64)
    loss = np.log(np.exp(exact).sum(axis=1)) - exact[rows, given["labels"]]
    monkeypatch.setattr(peer_torch, "augment", lambda x: x)
    first = peer_torch.build(asked._replace(name=tasks.STANDARD))()
    assert first == pytest.approx(loss.mean(), rel=1e-4)
    # The perturbed examples come on top of the clean ones.
    assert peer_torch.build(asked._replace(name=tasks.ADVERSARIAL))() > 1.5 * first


def test_augmentation_in_pytorch_crops_and_mirrors():
    torch = pytest.importorskip("torch")
    from experiments.benchmark import peer_torch

    x = torch.rand(8, 3, 6, 6)
    padded = np.pad(x.numpy(), [(0, 0), (0, 0), (4, 4), (4, 4)])
    seen = set()
    for image, found in zip(padded, peer_torch.augment(x).numpy(), strict=True):
        crops = {
            (row, column, sign): image[:, row : row + 6, column : column + 6][
                :, :, ::sign
            ]
            for row in range(9)
            for column in range(9)
            for sign in (1, -1)
        }
        places = [p for p, crop in crops.items() if np.array_equal(crop, found)]
        assert places
        seen.add(places[0])
    assert len(seen) > 4
