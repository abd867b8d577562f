"""A sweep: one number's values through the same programs, its table, its plot, and the command."""

import functools
import json
import re

import jax
import numpy as np
import optax
import pytest

from cljax import cli, methods, report, training
from cljax.cli.asked import Curve, curves_of
from cljax.cli.options import Sweep, UsageError
from cljax.storage.checkpoints import Saving
from cljax.training import driver, identity, together
from cljax.training.driver import drive
from tests import conformance
from tests.shared import assert_close, small

MOMENTUM = optax.sgd(1.0, momentum=0.9)
SETTINGS = training.Settings(batch_size=16, learning_rate=0.05, evaluation_batch=64)


@pytest.fixture(scope="module")
def stream():
    return conformance.stream(epochs=2)


@functools.cache
def alone(strength, learning_rate):
    """A run of one value, which needs no sweep."""
    stream = conformance.stream(epochs=2)
    method = methods.lwf(small(stream), strength=strength)
    return drive(method, MOMENTUM, [(0, stream)], SETTINGS._replace(learning_rate=learning_rate))


@pytest.mark.parametrize("vectorize", [False, 2])
def test_values_and_seeds_share_one_program_and_are_what_they_are_alone(stream, vectorize):
    other = conformance.stream(seed=1, epochs=2)
    seeds = [(0, stream), (1, other)]
    grid = [
        {"strength": value, "learning_rate": learning_rate}
        for value, learning_rate in ((0.0, 0.05), (3.0, 0.02))
        for _ in seeds
    ]
    method = methods.lwf(small(stream))
    together = drive(method, MOMENTUM, seeds * 2, SETTINGS, hypers=grid, vectorize=vectorize)
    assert together.traces == 1
    for place, (strength, learning_rate) in enumerate(((0.0, 0.05), (3.0, 0.02))):
        expected = alone(strength, learning_rate)
        found = together.learners[2 * place]
        assert float(found.hyper["strength"]) == strength
        for mine, theirs in zip(
            jax.tree.leaves(found.params), jax.tree.leaves(expected.learners[0].params), strict=True
        ):
            np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(together.epochs.loss[2 * place], expected.epochs.loss[0], rtol=1e-4)
    assert not np.allclose(together.learners[0].params["head"]["kernel"], together.learners[2].params["head"]["kernel"])


def test_numbers_that_do_not_fit_are_refused(stream):
    method = methods.lwf(conformance.network(conformance.TABLE["lwf"], stream))
    with pytest.raises(ValueError, match=r"lwf has no hyper-parameter 'growth'.*rate, strength, temperature"):
        drive(method, MOMENTUM, [(0, stream)], SETTINGS, hypers=[{"growth": 1.0}])
    for hypers in ([], [{"learning_rate": 1.0}, {"strength": 1.0}]):
        with pytest.raises(ValueError, match="2 mappings of the same names"):
            drive(method, MOMENTUM, [(0, stream), (1, stream)], SETTINGS, hypers=hypers)
    with pytest.raises(ValueError, match="3 seeds cannot run 2 at a time"):
        drive(method, MOMENTUM, [(seed, stream) for seed in range(3)], SETTINGS, vectorize=2)


def test_the_words_of_the_command():
    found = curves_of(Sweep("lwf", "strength", (0.1, 1.0), vs=("tfm.growth=0.1,0.3", "finetune")))
    assert found == [
        Curve("lwf", "strength", (0.1, 1.0)),
        Curve("tfm", "growth", (0.1, 0.3)),
        Curve("finetune", None, ()),
    ]
    assert [curve.name for curve in found] == ["lwf.strength", "tfm.growth", "finetune"]
    for vs, words in (
        (("lwf.strength=2",), "lwf.strength is named more than once"),
        (("lwm.beta",), "--vs takes METHOD or METHOD.NAME=VALUE,VALUE..., such as lwm.beta=0.1,1,10; not 'lwm.beta'"),
        (("lwm.beta=a",), "not 'lwm.beta=a'"),
        (("lwmm",), "There is no method 'lwmm'. Did you mean 'lwm'"),
        (("lwm.beta=1,1",), "lwm.beta needs one value or more, each once, not '1.0 1.0'"),
    ):
        with pytest.raises(UsageError, match=re.escape(words)):
            curves_of(Sweep("lwf", "strength", (0.1,), vs=vs))


def test_as_many_go_side_by_side_as_measured_memory_takes_and_as_many_when_taken_up(stream, tmp_path, monkeypatch):
    other = conformance.stream(seed=1, epochs=2)
    seeds = [(0, stream), (1, stream), (2, other), (3, other)]
    method, measured, events = methods.lwf(small(stream), strength=0.0), [], []
    saving = Saving(tmp_path, interval=0.0)

    def fitting(sizes, count, needed, kept, free):
        measured.append((needed, kept))
        enough_for_two = 1.05 * (2 * measured[0][0] + 2 * measured[0][1]) / 4 / 0.8
        return together.fitting(sizes, count, needed, kept, enough_for_two)

    def report(event):
        events.append((event.seed, event.seeds))
        if len(events) == 8:
            raise KeyboardInterrupt

    monkeypatch.setattr(driver, "fitting", fitting)
    monkeypatch.setattr(identity, "computation", lambda *given: "of one process")
    run = lambda: drive(method, MOMENTUM, seeds, SETTINGS, vectorize=True, report=report, checkpoints=saving)
    with pytest.raises(KeyboardInterrupt):
        run()
    (four, kept), (two, half) = measured
    assert two / four == pytest.approx(0.5, rel=0.05)
    assert kept == 2 * half == 4 * sum(leaf.nbytes for leaf in jax.tree.leaves(alone(0.0, 0.05).learners[0]))
    found = run()
    assert len(measured) == 2, "what the checkpoints are of decides"
    assert set(events) == {(0, 2), (2, 2)}
    assert found.traces == 1
    assert_close(found.learners[0].params, alone(0.0, 0.05).learners[0].params, rtol=1e-4)


def made(curve, value, accuracy):
    return {
        "method": curve.split(".")[0],
        "data": "digits",
        "scenario": "task",
        "seeds": list(range(len(accuracy))),
        "accuracy": accuracy,
        "facts": [{"kind": "split"}],
        "seconds": [0.015, 0.0125],
        "compile_seconds": 1.0,
        "sweep": {"curve": curve, "parameter": None, "value": value},
    }


RUNS = [
    made("lwf.strength", 10.0, [[[0.9, 0.1, 0.1], [0.8, 0.6, 0.1], [0.8, 0.6, 0.5]]]),
    made("lwf.strength", 1.0, [[[0.9, 0.1, 0.1], [0.7, 0.8, 0.1], [0.6, 0.4, 0.7]]]),
    made("finetune", None, [[[0.9, 0.1, 0.1], [0.5, 1.0, 0.1], [0.1, 0.3, 0.9]]]),
]


def test_the_table_by_hand():
    assert report.sweep.sweep_rows(RUNS) == [
        ["lwf.strength", "10", "63.3", "70.0", "55.0", "5.0", "0.0138"],
        ["lwf.strength", "1", "56.7", "50.0", "75.0", "35.0", "0.0138"],
        ["finetune", "-", "43.3", "20.0", "95.0", "75.0", "0.0138"],
    ]


def test_table_and_plot_name_what_a_method_lacks():
    ends = {10.0: "=10", 1.0: "=1", None: ""}
    lacks = [{**run, "label": f"{run['sweep']['curve']}{ends[run['sweep']['value']]} without a part"} for run in RUNS]
    names = {row[0] for row in report.sweep.sweep_rows(lacks)}
    assert names == {f"{run['sweep']['curve']} without a part" for run in RUNS}
    legend = {" ".join(line.get_label().split()) for line in report.stability_plasticity(lacks).get_lines()}
    assert names <= legend


def test_the_plot_has_a_line_a_curve_in_order_of_its_values():
    ax = report.stability_plasticity(RUNS)
    lines = {line.get_label(): line.get_xydata() for line in ax.get_lines() if not line.get_label().startswith("_")}
    np.testing.assert_allclose(lines["lwf.strength"], [[50, 75], [70, 55]])
    np.testing.assert_allclose(lines["finetune"], [[20, 95]])
    assert {text.get_text() for text in ax.texts} == {"1", "10"}


def test_the_command_writes_record_table_and_plot(tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    small = ["--seeds", "2", "--epochs", "1", "--tasks", "2", "--hidden", "8", "--fraction", "0.2", "--no-cache"]
    words = ["sweep", "freezing", "learning_rate", "1e30", "--vs", "finetune.learning_rate=0.01,0.1,1e30", "freezing"]
    words += [*small, "--quiet"]
    lost = [f"{name}.learning_rate=1e+30, seed {seed}: " for name in ("freezing", "finetune") for seed in (0, 1)]
    assert cli.main([*words, "--out", str(out)]) == 1, "one value diverges, and all that there is of another curve"
    printed, told = capsys.readouterr()
    told = " ".join(told.split())
    for line in lost:
        assert f"Diverged, and left out: {line}the loss of {line.partition('.')[0]} turned" in told
    assert "finetune.learning_rate   0.01" in " ".join(printed.split()).replace(
        "finetune.learning_rate 0.01", "finetune.learning_rate   0.01"
    )
    record = json.loads((out / "record.json").read_text())
    assert record["complete"]
    assert [line.partition("the loss")[0] for line in record["diverged"]] == lost
    assert (
        report.gather([out])[0]
        .notes[3]
        .startswith("Diverged, and left out: finetune.learning_rate=1e+30, seed 1: the loss")
    )
    assert [run["label"] for run in record["runs"]] == [
        "finetune.learning_rate=0.01",
        "finetune.learning_rate=0.1",
        "freezing",
    ]
    assert record["runs"][0]["accuracy"] != record["runs"][1]["accuracy"]
    assert [len(run["accuracy"]) for run in record["runs"]] == [2, 2, 2]
    first, second, _ = (run["compile_seconds"] for run in record["runs"])
    assert first == second > 0, "a drive's compilation counts once, shared by its values"
    assert (out / "sweep.png").read_bytes()[:4] == b"\x89PNG"
    assert (out / "sweep.md").read_text().count("\n| ") == 5
    drive, before = driver.drive, json.loads((out / "record.json").read_text())
    monkeypatch.setattr(driver, "drive", lambda *_, **__: pytest.fail("trained again"))
    for again in (["--resume"], []):  # killed between its record and its plot
        (out / "sweep.png").unlink()
        (out / "sweep.md").unlink()
        assert cli.main([*words, "--out", str(out), *again]) == 1
        assert (out / "sweep.png").read_bytes()[:4] == b"\x89PNG"
        assert (out / "sweep.md").read_text().count("\n| ") == 5
        assert json.loads((out / "record.json").read_text()) == before
    assert cli.main([*words, "--out", str(out)]) == 2
    assert "holds a finished run" in " ".join(capsys.readouterr().err.split())
    monkeypatch.setattr(driver, "drive", drive)
    assert [run["label"] for section in report.gather([out]) for run in section.runs] == [
        "finetune.learning_rate=0.01",
        "finetune.learning_rate=0.1",
        "freezing",
    ]
    assert cli.main(["sweep", "finetune", "strength", "1", *small, "--out", str(tmp_path / "other")]) == 2
    assert "finetune has no hyper-parameter 'strength'" in " ".join(capsys.readouterr().err.split())
    for given, words in ((["--keep-learners"], "--keep-learners is for `cljax run`"), (["--tasks", "1"], "at least 2")):
        assert (
            cli.main(["sweep", "finetune", "learning_rate", "1", *small, *given, "--out", str(tmp_path / "other")]) == 2
        )
        assert words in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "other").exists()
