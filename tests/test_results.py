"""Results of Python's runs are shown as they are: by the numbers that a run folder of the same run shows."""

import dataclasses
import json
import pickle

import jax
import numpy as np
import optax
import pytest

from cljax import methods, report, training
from cljax.report import writing
from cljax.training.outcome import members
from tests import conformance
from tests.shared import small

SETTINGS = training.Settings(batch_size=16, learning_rate=0.05, evaluation_batch=64, curves_every=1)
UNKNOWN = {"seconds", "compile_seconds", "traces", "flops"}
"""Of an entry, what a run of one program does not measure."""


@pytest.fixture(scope="module")
def both():
    """Two seeds of TFM driven, and the same by one program: what it gives of one, and of both under vmap."""
    stream = conformance.stream(epochs=2)
    method, sgd = methods.tfm(small(stream)), optax.sgd(1.0)
    outcome = training.drive(method, sgd, [(0, stream), (1, stream)], SETTINGS)
    run = training.make_run(method, sgd, stream, SETTINGS)
    keys = jax.numpy.stack([training.driver.make_key(seed) for seed in (0, 1)])
    together = jax.vmap(run, in_axes=(0, None))(keys, stream.tables)
    return outcome, jax.tree.map(lambda leaf: leaf[0], together), together


def test_an_outcome_and_a_folder_of_it_show_the_same(both, tmp_path):
    outcome = both[0]
    record = {"complete": True, "runs": [report.run_record(outcome)]}
    (tmp_path / "record.json").write_text(json.dumps(record, allow_nan=False))
    read = report.read(tmp_path)
    assert report.runs(outcome) == read["runs"]
    kept = pickle.loads(pickle.dumps(outcome))
    assert report.tidy(kept) == report.tidy(outcome)
    assert report.runs(kept)[0]["bytes_per_task"] is None  # which needs the network, of closures
    assert report.markdown(outcome) == report.markdown(read)
    for plot in (report.plots.comparison, report.plots.learning_curves, report.plots.task_accuracy):
        mine, theirs = (plot(what).lines for what in (outcome, read["runs"][0]))
        assert [line.get_xydata().tolist() for line in mine] == [line.get_xydata().tolist() for line in theirs]
    shown = report.plots.accuracy_matrix({"mine": outcome})
    np.testing.assert_allclose(shown.images[0].get_array(), 100 * outcome.evaluation.accuracy.mean(0), rtol=1e-6)
    assert shown.get_title("left").startswith("mine: ")


def test_a_result_of_one_program_is_shown_as_the_driven_one(both):
    outcome, alone, together = both
    (driven,), (one,), (two,) = map(report.runs, both)
    assert (one["seeds"], two["seeds"]) == ([0], [0, 1])
    assert two["bytes_per_task"] == driven["bytes_per_task"]
    assert {name for name in two if two[name] != driven[name]} - {"accuracy", "epochs", "curves"} <= {
        *UNKNOWN,
        "task_il_accuracy",
        "top5",
    }
    for name in ("accuracy", "task_il_accuracy", "curves"):
        np.testing.assert_allclose(np.asarray(two[name]), np.asarray(driven[name]), atol=0.02)
        np.testing.assert_allclose(np.asarray(one[name]), np.asarray(driven[name])[:1], atol=0.02)
    assert two["curve_epochs"] == driven["curve_epochs"] == outcome.curve_epochs.tolist()
    names, _ = report.tables.cells(report.runs(together))
    assert names[3:] == ["forgetting", "average incremental accuracy", "bytes a task"]
    assert report.runs(alone)[0]["feature_usage"].keys() == driven["feature_usage"].keys()


def test_several_results_and_their_names(both):
    outcome, alone, _ = both
    assert [run["label"] for run in report.runs({"a": outcome, "b": alone})] == ["a", "b"]
    listed = report.runs([outcome, alone])
    assert [report.sections.label(run) for run in listed] == ["tfm", "tfm (2)"]
    labels = report.plots.comparison({"a": outcome, "b": alone}).get_yticklabels()
    assert [text.get_text() for text in labels] == ["a", "b"]
    with pytest.raises(ValueError, match=r"shows one result, but there are 2: a, b"):
        report.plots.accuracy_matrix({"a": outcome, "b": alone})
    with pytest.raises(ValueError, match=r"of the type int, but must be what training.drive"):
        report.plots.comparison(3)
    with pytest.raises(ValueError, match=r"There is nothing to show in \[\]"):
        report.table([])


def test_a_page_of_results(both, tmp_path, monkeypatch):
    outcome, alone, _ = both
    monkeypatch.setattr(writing, "FORMS", ("svg",))  # all of them: `test_report_files`
    place = report.write({"driven": outcome, "one program": alone}, tmp_path)
    text = (tmp_path / "table.md").read_text()
    assert place == tmp_path / "report.html"
    assert "| driven |" in text
    assert "| one program |" in text
    with pytest.raises(ValueError, match="nothing to show"):
        report.write({}, tmp_path)


def test_tidy_rows(both):
    outcome = both[0]
    rows = report.tidy({"mine": outcome})
    seeds, _, tasks = outcome.evaluation.accuracy.shape
    assert len(rows) == seeds * tasks * tasks
    for row in rows:
        at = row["seed"], row["after_task"] - 1, row["task"] - 1
        assert row["method"] == "mine"
        assert np.float32(row["accuracy"]) == outcome.evaluation.accuracy[at]


def test_seeds_that_diverged_are_left_out_and_said(both):
    outcome = both[0]
    lost = outcome._replace(failure=outcome.failure._replace(round=np.array([-1, 0], np.int32)))
    (run,) = report.runs(lost)
    assert (run["seeds"], run["lost"]) == ([0], [1])
    assert report.tables.caption([run]).endswith(" tfm: seed 1 diverged, and is left out.")
    with pytest.raises(ValueError, match="nothing to show of tfm: all its learners diverged"):
        report.runs(outcome._replace(failure=outcome.failure._replace(round=np.zeros(2, np.int32))))


def test_a_number_in_a_name_is_free_and_seeds_are_not_values(both):
    entry = {"method": "tfm", "seeds": [0]}
    named = report.runs([{**entry, "label": name} for name in ("a", "a (2)", "a", "a")])
    assert [run["label"] for run in named] == ["a", "a (2)", "a (3)", "a (4)"]
    swept = both[0]._replace(origin=dataclasses.replace(both[0].origin, seeds=(0, 0)))
    with pytest.raises(ValueError, match=r"of tfm holds seed 0 several times, as with several hypers"):
        report.markdown(swept)
    assert report.runs(members(swept, [1]))[0]["seeds"] == [0]


def test_what_is_held_prints_in_a_few_lines(both):
    outcome, alone, together = both
    stream = conformance.stream(epochs=2)
    method = methods.tfm(small(stream))
    for held in (outcome, alone, together, stream, stream.tables, outcome.learners[0], method, method.network):
        text = repr(held)
        assert len(text.splitlines()) <= 25
        assert max(map(len, text.splitlines())) <= 120
    assert f"accuracy: float32{list(outcome.evaluation.accuracy.shape)}" in repr(outcome.evaluation)
    assert "learners: list of 2 Learner" in repr(outcome)
