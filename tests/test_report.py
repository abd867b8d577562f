"""Records and tables, against numbers worked by hand."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from cljax import report
from tests import records


def make_run(method, accuracy, scenario="task", **changes):
    run = {
        "method": method,
        "data": "digits",
        "scenario": scenario,
        "seeds": list(range(len(accuracy))),
        "accuracy": accuracy,
        "task_il_accuracy": accuracy,
        "seconds": [1.0, 2.0],
        "compile_seconds": 1.5,
        "flops": 1_445_551.0,
        "bytes_per_task": 17160.0,
        "facts": [{"kind": "split"}],
    }
    return {**run, **changes}


FINETUNE = make_run("finetune", [[[0.9, 0.1], [0.5, 0.7]], [[0.8, 0.2], [0.6, 0.8]]])
FROZEN = make_run("freezing", [[[0.9, 0.1], [0.9, 0.64]], [[0.8, 0.2], [0.8, 0.82]]])


def render(record, width=100, terminal=False):
    stream = io.StringIO()
    console = Console(file=stream, width=width, force_terminal=terminal, color_system="standard" if terminal else None)
    console.print(report.table(record))
    return stream.getvalue()


def test_metrics_by_hand():
    values = report.summarise(FINETUNE)
    np.testing.assert_allclose(values["average_accuracy"], [0.6, 0.7], rtol=1e-6)
    np.testing.assert_allclose(values["backward_transfer"], [-0.4, -0.2], rtol=1e-6)
    np.testing.assert_allclose(values["forgetting"], [0.4, 0.2], rtol=1e-6)
    np.testing.assert_allclose(values["average_incremental_accuracy"], [0.75, 0.75], rtol=1e-6)
    assert set(values) == {"average_accuracy", "backward_transfer", "forgetting", "average_incremental_accuracy"}
    joint = {**FINETUNE, "method": "joint", "accuracy": [[[0.95, 0.0], [0.0, 0.9]]] * 2}
    # Joint training reaches 0.95 and 0.9; fine-tuning of the two seeds 0.9 and 0.7, 0.8 and 0.8.
    np.testing.assert_allclose(report.summarise(FINETUNE, [joint])["intransigence"], [0.125, 0.125], rtol=1e-5)
    assert "intransigence" not in report.summarise(joint, [joint])
    # Before it is learned, task 2 is at .1 and .2; untrained it was at .05 and .1.
    shared = {**FINETUNE, "untrained": [[0.5, 0.05], [0.5, 0.1]]}
    np.testing.assert_allclose(report.summarise(shared)["forward_transfer"], [0.05, 0.1], rtol=1e-5)
    assert report.tables.cells([shared])[0][3] == "forward transfer"
    # One head has three classes and then one: .9 and (3 * .5 + .7) / 4.
    facts = [{"classes": [["a", "b", "c"], ["d"]]}]
    single = make_run("finetune", [[[0.9, 0.0], [0.5, 0.7]]], "class", facts=facts)
    np.testing.assert_allclose(report.summarise(single)["average_incremental_accuracy"], [0.725], rtol=1e-6)
    np.testing.assert_allclose(report.summarise(single)["average_accuracy"], [0.6], rtol=1e-6)
    assert "Forward transfer is against the network before" in report.tables.caption([shared])


def test_table_by_hand():
    """Two seeds: t(0.975, 1) = 12.706, so a pair x, y has the half-width 12.706 |x - y| / 2."""
    lines = render({"runs": [FINETUNE, FROZEN]}).splitlines()
    row = next(line.split() for line in lines if line.startswith("finetune"))
    assert row == ["finetune", "65", "±64", "-30", "±127", "30", "±127", "-", "1.50", "1.45M", "17.2k"]
    row = next(line.split() for line in lines if line.startswith("freezing"))
    # Average accuracies .77 and .81 against .6 and .7: differences .17 and .11, half-width 12.706 * .06 / 2.
    assert row[:-3] == ["freezing", "79", "±25", "0.0", "±0.0", "0.0", "±0.0", "+14", "±38"]
    text = " ".join(" ".join(lines).split())
    assert "digits, 2 tasks, task-incremental" in text
    assert "Percent ±95% interval, 2 seeds; seconds without compilation (3.0 in all)." in text


def test_class_incremental_shows_task_il_accuracy_and_fits_100_columns():
    wide = [[[1.0, 0.0], [last, 1.0]] for last in (0.0, 0.1, 0.2, 0.1)]
    aware = [[[1.0, 0.0], [last, 0.8]] for last in (0.8, 0.7, 0.8, 0.9)]
    names = ("finetune", "tensor_factorization")
    runs = [make_run(name, wide, "class", task_il_accuracy=aware) for name in names]
    text = render({"runs": runs})
    assert "task-IL" in text
    assert "class-incremental" in text
    row = next(line for line in text.splitlines() if line.startswith("tensor_factorization"))
    # Last rows 0, .1, .2, .1: mean .1, deviation .0816, t(0.975, 3) = 3.182: ±.13 on one of two tasks, so ±.065.
    assert row.split()[1:7] == ["55.0", "±6.5", "80.0", "±6.5", "-90", "±13"]
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 100
    narrow = report.table({"runs": runs}, width=80)
    assert [str(column.header).replace("\n", " ") for column in narrow.columns][-1] == "seconds a seed"
    assert str(narrow.caption).endswith("There is no room for FLOPs a step, bytes a task.")
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(narrow)
    lines = console.export_text().splitlines()
    assert sum(line.startswith("tensor_factorization") for line in lines) == 1
    row = next(line for line in lines if line.startswith("tensor_factorization"))
    assert row.split()[1:7] == ["55.0", "±6.5", "80.0", "±6.5", "-90", "±13"]


def test_without_reference_and_with_one_seed():
    single = make_run("freezing", [[[0.9, 0.1], [0.9, 0.6]]], seconds=[2.0], flops=None)
    text = render({"runs": [single]})
    assert "against" not in text
    row = next(line.split() for line in text.splitlines() if line.startswith("freezing"))
    assert row == ["freezing", "75.0", "0.0", "0.0", "2.00", "17.2k"]
    assert "Percent of one seed;" in " ".join(text.split())


def test_other_seeds_are_not_paired():
    other = {**FROZEN, "seeds": [4, 5]}
    row = next(line.split() for line in render({"runs": [FINETUNE, other]}).splitlines() if line.startswith("freezing"))
    assert row[7] == "-"


@pytest.mark.parametrize(("values", "colour"), [([0.95, 0.95], "32"), ([0.2, 0.2], "31"), ([0.6, 0.7], None)])
def test_colour_says_that_the_interval_leaves_out_zero(values, colour):
    base = make_run("finetune", [[[0.5, 0.5], [0.6, 0.6]], [[0.5, 0.5], [0.61, 0.61]]])
    run = make_run("other", [[[0.5, 0.5], [value, value]] for value in values])
    text = render({"runs": [base, run]}, terminal=True)
    line = next(line for line in text.splitlines() if "other" in line)
    assert ("\x1b[32m" in line, "\x1b[31m" in line) == (colour == "32", colour == "31")


def test_multi_label_words_of_permuted_pixels():
    run = make_run("finetune", FINETUNE["accuracy"], "domain", facts=[{"kind": "permuted"}])
    assert "permuted pixels, domain-incremental" in render({"runs": [run]})


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([0.5, 0.5], "50.0 ±0.0"),
        ([0.97777, 0.97777], "97.8 ±0.0"),
        ([0.5, 0.50001], "50.00 ±0.01"),
        ([-0.0001, -0.0003], "-0.0 ±0.1"),
        ([0.5, 0.52], "51 ±13"),
        ([0.123], "12.3"),
    ],
)
def test_digits(values, text):
    if text.startswith("-0.0"):
        text = text[1:]
    assert report.interval(np.array(values)) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (0.5, "0.5"),
        (999, "999"),
        (999.6, "1k"),
        (1000, "1k"),
        (99_950, "100k"),
        (1e9, "1G"),
        (2.5e15, "2.5e+03T"),
    ],
)
def test_short_counts(number, text):
    assert report.short(number) == text


def test_forgetting_nothing_counts_from_each_visit_to_the_next():
    marks = np.array([[[1, 0], [1, 5], [3, 5], [3, 5]]], np.uint32)
    tasks = np.array([0, 1, 0, 1])
    assert report.zero_forgetting(marks, tasks)
    between = np.array([[[1, 0], [2, 5], [3, 5], [3, 5]]], np.uint32)
    assert not report.zero_forgetting(between, tasks)
    assert not report.zero_forgetting(marks, np.array([0, 1, 1, 1]))
    marks[0, 3, 0] = 9
    assert not report.zero_forgetting(marks, tasks)
    marks[0, 3] = 0  # not evaluated
    assert report.zero_forgetting(marks, tasks)


def test_one_seed_that_forgets_is_enough():
    marks = np.ones((3, 2, 2), np.uint32)
    assert report.zero_forgetting(marks, np.array([0, 1]))
    marks[2, 1, 0] = 2
    assert not report.zero_forgetting(marks, np.array([0, 1]))


def test_plain_is_strict_json_and_keeps_float32_bits():
    values = np.random.default_rng(0).random(100, np.float32)
    text = json.dumps(
        report.plain({"values": values, "nan": [np.float32(np.nan), np.inf], "flag": np.True_}), allow_nan=False
    )
    back = json.loads(text)
    np.testing.assert_array_equal(np.asarray(back["values"], np.float32), values)
    assert back["nan"] == [None, None]
    assert back["flag"] is True


def test_read_a_folder_or_a_file_and_refuse_others(tmp_path):
    record = {"runs": [records.make_run("finetune", FINETUNE["accuracy"])]}
    (tmp_path / "record.json").write_text(json.dumps(record))
    assert report.read(tmp_path) == report.read(tmp_path / "record.json") == record
    (tmp_path / "record.json").write_text("[]")
    with pytest.raises(ValueError, match="not a run's record"):
        report.read(tmp_path)
