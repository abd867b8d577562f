"""The experiments' verdicts, and how they turn given parameters and rates into a run."""

import dataclasses
import importlib
import itertools
import json
import pathlib
import shlex
import sys
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tyro
from matplotlib.figure import Figure
from PIL import Image

from cljax import data, methods, metrics, networks, report, streams, training, tucker
from cljax.cli.making import make_network, make_schedule
from cljax.cli.options import Compare, settle
from cljax.cli.parameters import parse_parameters
from cljax.cli.rules import check_values
from cljax.filters import TUCKER
from cljax.methods.build import build
from experiments import benchmark_gpu, benchmark_methods, claims, five_papers, growth, saving, tables
from experiments.benchmark import ours, plain
from experiments.clnp import figure_3 as clnp_figure_3
from experiments.clnp import figure_4 as clnp_figure_4
from experiments.clnp import figure_5 as clnp_figure_5
from experiments.clnp import table_1 as clnp_table_1
from experiments.df_cnn import causes, figure_3, tables_1_2
from experiments.lwf import __main__ as lwf
from experiments.lwf import paper, parts, runs
from experiments.lwf.paper import from_torch, middle
from experiments.lwm import figure_4
from experiments.lwm import figure_5 as lwm_figure_5
from tests.test_cli import fake_stream
from tests.test_df_cnn import count


@pytest.mark.parametrize(
    ("mine", "at_least", "verdict"),
    [([0.9, 0.8, 0.7], 0.0, "reproduced"), ([0.9, 0.8, 0.7], 0.1, "not reproduced"), ([0.9], 0.0, "not reproduced")],
)
def test_a_difference_counts_where_its_interval_is_beyond_the_margin(mine, at_least, verdict):
    other = [0.7, 0.6, 0.4][: len(mine)]  # differences 0.2, 0.2, 0.3: 0.233 with half-width 0.143
    assert claims.compare(("a", mine), ("b", other), at_least=at_least)[1] == verdict


@pytest.mark.parametrize("module", [benchmark_methods, five_papers, growth])
def test_a_part_that_there_is_not_is_refused(module):
    """Nothing used to be done, and of the benchmark an empty result took the place of the last."""
    with pytest.raises(SystemExit):
        tyro.cli(module.Config, args=["--only", "nothing"])


def test_a_cause_that_there_is_not_is_refused_before_data_are_read(tmp_path):
    """It used to write a result of no run over that of all."""
    with pytest.raises(SystemExit, match="There is no run task 11, but: task 1"):
        causes.main(causes.Config(data_dir=str(tmp_path), out=str(tmp_path), only=("task 11",)))


def test_causes_that_are_kept_stay_in_the_result(tmp_path, monkeypatch):
    monkeypatch.setattr(causes.data, "load", lambda *_: None)
    monkeypatch.setattr(causes, "run", lambda dataset, way: {"test": [0.1 * way.task] * 300, "loss": [1.0]})
    for only in (("task 1", "task 6"), ("task 10",)):
        causes.main(causes.Config(runs=str(tmp_path), out=str(tmp_path), only=only))
    found = json.loads((tmp_path / "results" / "df_cnn_causes.json").read_text())
    assert list(found["runs"]) == ["task 1", "task 6", "task 10"]


def test_a_claim_of_no_difference_is_not_tested_where_there_is_no_interval():
    for claimed in (parts.level, parts.not_above):
        for values in ([0.9], [0.9, np.nan, 0.9]):
            assert claimed("", "", ("a", values), ("b", [0.1] * len(values)))["verdict"] == "not tested"
        assert claimed("", "", ("a", [0.9, 0.8, 0.9]), ("b", [0.1, 0.1, 0.2]))["verdict"] == "not reproduced"
        assert claimed("", "", ("a", [0.1, 0.8, 0.9]), ("b", [0.8, 0.1, 0.9]))["verdict"] == "reproduced"


def test_less_does_not_replace_a_result_of_more(tmp_path):
    config = tables.Config(out=str(tmp_path), seeds=3)
    saving.check_replaces(config, "x")
    saving.write_result(config, "x", {"average_accuracy_mean": {"lwf": 1.0, "ewc": 2.0}}, "")
    saving.check_replaces(config, "x", ["lwf", "ewc", "si"])
    saving.check_replaces(dataclasses.replace(config, seeds=5), "x")
    with pytest.raises(SystemExit, match=r"x.json is of 3 seeds, and one of 2 would replace it. Give another --out"):
        saving.check_replaces(dataclasses.replace(config, seeds=2), "x")
    with pytest.raises(SystemExit, match=r"x.json has ewc as well, and would lose them. Leave out --only"):
        saving.check_replaces(config, "x", ["lwf"])
    for main, more, name in (
        (lambda config: tables.main(table_of(), config), tables.Config(form="tiny"), "x_tiny"),
        (clnp_table_1.main, clnp_table_1.Config(form="tiny"), "clnp_table_1_tiny"),
        (clnp_figure_3.main, clnp_table_1.Config(form="tiny"), "clnp_figure_3_tiny"),
        (figure_4.main, figure_4.Config(form="tiny"), "lwm_figure_4_tiny"),
        (lwf.main, lwf.Config(only=("figure_5",)), "lwf_figure_5"),
    ):
        saving.write_result(config, name, {}, "")
        with pytest.raises(SystemExit, match=f"{name}.json is of 3 seeds"):
            main(dataclasses.replace(more, out=str(tmp_path), seeds=1))


def test_options_of_several_tables_are_checked_before_the_first_is_run(monkeypatch):
    ran = []
    monkeypatch.setattr(tables, "main", lambda table, config: ran.append((table.name, config.only)))
    two = [table_of(name="a", systems={"lwf": "", "ewc": ""}), table_of(name="b", systems={"lwf": "", "si": ""})]
    with pytest.raises(SystemExit, match="no system lwm, but: ewc, lwf, si"):
        tables.all_of(two, tables.Config(only=("lwf", "lwm")))
    tables.all_of(two, tables.Config(only=("lwf", "si")))
    assert ran == [("a", ("lwf",)), ("b", ("lwf", "si"))]
    tables.all_of(two, tables.Config(only=("ewc",)))
    assert ran[2:] == [("a", ("ewc",))]


def test_a_private_folder_is_not_in_the_command_of_a_result(monkeypatch):
    for option in ("--data-dir", "--data_dir"):
        monkeypatch.setattr(sys, "argv", ["x", f"{option}=/home/me", "--seeds=3"])
        assert saving.command_line("experiments.x") == "python -m experiments.x --data-dir FOLDER --seeds 3"


def test_differences_of_hundredths_are_shown():
    found = claims.compare(("a", [0.9827, 0.9829, 0.9825]), ("b", [0.9835, 0.9841, 0.9837]), at_least=-0.001, digits=2)
    assert found == ("a 98.27, b 98.38: -0.11 ±0.06 points, not apart from -0.10", claims.NOT_REPRODUCED)


def test_merging_replaces_claims_of_the_same_words(tmp_path):
    one, two, again = (claims.claim("paper", what, "1", found, "reproduced") for what, found in ["ax", "bx", "ay"])
    claims.merge(tmp_path, [one, two])
    claims.merge(tmp_path, [again])
    assert json.loads((tmp_path / "claims.json").read_text())["claims"] == [again, two]
    table = (tmp_path / "claims.md").read_text().splitlines()
    assert table[-2:] == ["| a | 1 | y | reproduced |", "| b | 1 | x | reproduced |"], "where they stood"
    assert table.count("## paper") == 1
    at = table.index("| of | claims | reproduced |")
    assert table[at + 2 : at + 4] == ["| paper | 2 | 2 |", ""]


def test_the_five_papers_commands_are_readable_and_df_cnns_is_the_papers():
    made = {}
    for name, words in {**five_papers.COMMANDS, **five_papers.FULL}.items():
        command = made[name] = tyro.cli(Compare, args=shlex.split(words))
        check_values(settle(command.options))
        parse_parameters(command.options.training.set, {one: getattr(methods, one) for one in command.methods})
        assert command.options.network.normalization == "auto", "tfm has its own"
    full, reduced = (made[name].options for name in ("df_cnn_cifar100_full", "df_cnn_cifar100"))
    assert sorted(full.data.class_order) == list(range(100))
    assert reduced.data.class_order == full.data.class_order[:50]
    for options in (full, reduced):
        assert options.network.network == "df_cnn_base"
        assert (options.training.loss_reduction, options.training.optimizer_state) == ("sum", "task")
        assert options.training.learning_rate_decay * options.training.epochs == 0.5
    training_of = full.training
    assert (training_of.learning_rate, training_of.epochs, training_of.batch_size, training_of.clip) == (
        1e-4,
        2000,
        10,
        0,
    )


def tables_of_papers():
    """Every Table of the experiments, TABLE or one of TABLES of its module."""
    for path in sorted(pathlib.Path(claims.__file__).parent.glob("*/*.py")):
        if path.stem == "__main__" or path.parent.name == "benchmark":
            continue
        module = importlib.import_module(f"experiments.{path.parent.name}.{path.stem}")
        yield from getattr(module, "TABLES", (module.TABLE,) if hasattr(module, "TABLE") else ())


def test_the_papers_tables_are_commands_that_can_be_read():
    seen = set()
    for table in tables_of_papers():
        assert {"reduced", "tiny"} <= set(table.forms) <= {"full", "leased", "reduced", "tiny"}, table.name
        assert {system for pair in table.pairs.values() for system in pair} <= set(table.systems), table.name
        assert {system for claim in table.claims for system in claim.systems} <= set(table.systems), table.name
        assert set(table.published) <= {*table.metrics, *report.METRICS}, table.name
        assert {system for numbers in table.published.values() for system in numbers} <= set(table.systems), table.name
        assert importlib.import_module(table.module).__doc__, table.module
        new = [name for name, own in table.systems.items() if own not in seen]
        seen.update(table.systems.values())
        pairs = list(itertools.zip_longest(table.forms, new))  # each form and each new system, not all pairs
        pairs += [(form, system) for form, own in table.in_form.items() for system in own]
        for form, system in pairs:
            config = tables.Config(form=form or "reduced")
            words = tables.arguments_of(table, system or next(iter(table.systems)), config)
            command = tyro.cli(Compare, args=shlex.split(words))
            assert len(command.methods) == 1, words
            check_values(settle(command.options))
            if command.options.data.tasks:
                make_schedule(command.options)
            parse_parameters(command.options.training.set, {one: getattr(methods, one) for one in command.methods})


def table_of(**changes):
    tiny = "--data digits --tasks 2 --epochs 1 --hidden 4 --fraction 0.1 --quiet"
    systems = {"lwf": "--methods lwf", "lwf, strong": "--methods lwf --set lwf.strength=10 --epochs 2"}
    claim = tables.above("the strong is above", "1 to 2", "lwf, strong", "lwf", at_least=-2.0)
    table = tables.Table(
        "x", "paper, table 1", "experiments.x", {"tiny": tiny}, systems, {"average_accuracy": {"lwf": 9.0}}, (claim,)
    )._replace(pairs={"strength": ("lwf, strong", "lwf")})
    return table._replace(**changes)


def test_a_table_s_systems_are_run_once_each_with_its_own_options(tmp_path, capsys, monkeypatch):
    drawn = []
    table = table_of()._replace(draw=lambda runs: drawn.append(set(runs)) or Figure())
    places = {"runs": str(tmp_path / "runs"), "out": str(tmp_path)}
    config = tables.Config(**places, form="tiny", seeds=2, only=("lwf",))
    tables.main(table, dataclasses.replace(config, seconds=0.0))
    assert "No run is complete yet" in capsys.readouterr().out
    tables.main(table, config)
    printed = capsys.readouterr().out
    assert "paper   9.00" in printed
    assert "Not run yet: lwf, strong" in printed
    first = next((tmp_path / "runs").iterdir())
    found = json.loads((tmp_path / "results" / "x_tiny.json").read_text())
    assert found["not_run"] == ["lwf, strong"]
    assert set(found["average_accuracy_mean"]) == {"lwf"}
    assert found["differences"]["average_accuracy_mean"] == {}
    made = (first / "record.json").stat().st_mtime_ns
    tables.main(table, dataclasses.replace(config, only=()))
    assert (first / "record.json").stat().st_mtime_ns == made, "it was there"
    found = json.loads((tmp_path / "results" / "x_tiny.json").read_text())
    assert found["not_run"] == []
    assert set(found["average_accuracy_mean"]) == set(table.systems)
    assert drawn == [{"lwf"}, set(table.systems)]
    assert (tmp_path / "results" / "x_tiny.png").exists()
    (other,) = set((tmp_path / "runs").iterdir()) - {first}
    config = json.loads((other / "config.json").read_text())
    assert config["training"]["epochs"] == 2, "a system's own option is in place of all's"
    record = json.loads((other / "record.json").read_text())["runs"][0]
    np.testing.assert_allclose(
        found["average_accuracy_mean"]["lwf, strong"], 100 * tables.average(record).mean(), atol=0.005
    )
    other = json.loads((first / "record.json").read_text())["runs"][0]
    apart = metrics.paired_difference(tables.average(record), tables.average(other))
    for part, wanted in (("mean", apart.mean), ("ci95", apart.half_width)):
        np.testing.assert_allclose(
            found["differences"][f"average_accuracy_{part}"]["strength"], 100 * wanted, atol=0.006
        )
    assert "reproduced      the strong is above (x, tiny)" in capsys.readouterr().out
    assert not (tmp_path / "claims.json").exists(), "a trial claims nothing"
    asked, run_of = [], tables.run_of

    def late(table, name, *rest):
        asked.append(name)
        return run_of(table, name, *rest) if asked.count(name) > 1 else None

    monkeypatch.setattr(tables, "run_of", late)
    tables.main(table, tables.Config(**places, form="tiny", seeds=2))
    found = json.loads((tmp_path / "results" / "x_tiny.json").read_text())
    assert found["not_run"] == [], "other processes made both meanwhile"
    with pytest.raises(SystemExit, match="systems lwf, lwf, strong; not lwm"):
        tables.main(table, tables.Config(**places, form="tiny", only=("lwm",)))
    with pytest.raises(SystemExit, match=r"forms tiny .*; not full"):
        tables.main(table, tables.Config(**places, form="full"))


def test_a_run_is_kept_beside_the_results_without_what_no_table_reads(tmp_path, monkeypatch):
    run = {"accuracy": [[[0.5]]], "attention": 1, "facts": 1, "config": {"data": {"data_dir": "/a/private/folder"}}}
    folders = []
    monkeypatch.setattr(tables, "ran", lambda folder, *given: folders.append(folder) or {"runs": [run]})
    table, config = table_of(forms={"reduced": "--epochs 2", "tiny": ""}), tables.Config(out=str(tmp_path))
    for other in ({}, {}, {"seeds": 4}, {"form": "tiny"}, {"form": "tiny"}):
        found = tables.run_of(table, "lwf", dataclasses.replace(config, **other))
        assert found["accuracy"] == [[[0.5]]]
    assert len(folders) == 4, "the second was there, a trial is not kept"
    kept = sorted((tmp_path / "results/table_runs").iterdir())
    assert {path.stem for path in kept} == {folder.name for folder in folders[:2]}
    assert json.loads(kept[0].read_text()) == {"accuracy": [[[0.5]]]}


def test_what_fails_below_the_papers_size_is_not_tested_at_scale():
    values = np.arange(3)[:, None, None] / 100
    run = lambda value: {"accuracy": np.full((3, 2, 2), value) + values, "seeds": [0, 1, 2]}
    runs_of = {"lwf": run(0.5), "lwf, strong": run(0.4)}
    table = table_of(claims=(tables.above("is above", "1", "lwf, strong", "lwf"),))
    for form, verdict in (("reduced", "not tested at scale"), ("full", "not reproduced")):
        (one,) = tables.decided(table, runs_of, form)
        assert one["verdict"] == verdict
        assert one["found"].startswith("lwf, strong 41.0, lwf 51.0: -10.0")
    (one,) = tables.decided(table._replace(stands_in=True), runs_of, "full")
    assert one["verdict"] == "not tested at scale", "other data stand for the paper's"
    assert tables.decided(table, {"lwf": runs_of["lwf"]}, "full") == [], "the other system was not run"
    runs_of["lwf"] = {"accuracy": runs_of["lwf"]["accuracy"][[0, 2]], "seeds": [0, 2]}
    (one,) = tables.decided(table, runs_of, "full")
    assert one["verdict"] == "not tested"
    assert one["found"] == "too few seeds, or not the same: lwf, strong 0 1 2, lwf 0 2"


def test_accuracy_after_each_task_is_that_on_the_tasks_learned():
    run = {"accuracy": [[[0.9, 0.1, 0.1], [0.7, 0.8, 0.2], [0.5, 0.6, 0.7]]]}
    np.testing.assert_allclose(tables.after_each_task(run), [[0.9, 0.75, 0.6]])
    np.testing.assert_allclose(tables.incremental(run), [0.75])


def test_attention_has_moved_by_the_mean_distance_of_maps_that_see_something():
    first = np.array([[[3.0, 4.0]], [[0.0, 0.0]], [[1.0, 0.0]], [[0.0, 2.0]]])
    later = np.array([[[0.0, 1.0]], [[1.0, 1.0]], [[0.0, 0.0]], [[0.0, 5.0]]])
    np.testing.assert_allclose(figure_4.distances(np.stack([first, later])), [0.0, 0.8 / 2], atol=1e-6)
    # (0.6, 0.8), (1, 0) and (0, 1), each beside another: 0.4 + 0.8, 1 + 1, 0.6 + 0.2.
    np.testing.assert_allclose(figure_4.of_another(first[None]), (0.8 + 1.2 + 2.0) / 3, atol=1e-6)


def test_what_a_search_has_chosen_is_told_by_seed_and_visit():
    search = {"numbers": {"growth": [[[0.1, 0.5], [0.1, 0.5]], [[0.2, 0.6], [0.2, 0.6]]]}, "chosen": [[1, 0], [0, 0]]}
    np.testing.assert_array_equal(tables.chosen({"search": search})["growth"], [[0.5, 0.1], [0.2, 0.2]])


def test_clnps_published_form_has_the_papers_numbers_and_its_size(tmp_path):
    assert set(clnp_figure_3.TASKS) == set(clnp_table_1.FORMS)
    config = clnp_table_1.Config(form="published", runs=str(tmp_path))
    runs = clnp_table_1.Runs(config)
    assert (config.methods, runs.size, runs.grid) == (
        ("clnp", "single_task"),
        clnp_table_1.FORMS["full"],
        clnp_table_1.FULL_GRID,
    )
    numbers = clnp_table_1.as_hyper(runs.chosen("clnp")["best"])
    expected = {"learning_rate": 2e-3, "margin": 5e-4, "l1_0": 1e-7, "l1_1": 1e-5, "l1_2": 1e-6}
    assert numbers == pytest.approx(expected)
    assert list(tmp_path.iterdir()) == [], "nothing is tried"


def test_clnps_capacity_by_hand():
    """Two seeds, two layers, four tasks: the second layer is full after three tasks of one, after none of the other."""
    used = np.array([[[0.2, 0.2, 0.2, 0.2], [0.4, 0.8, 1.0, 1.0]], [[0.1, 0.2, 0.2, 0.2], [0.1, 0.3, 0.5, 0.7]]])
    assert clnp_figure_3.tasks_held(used[:, 1]).tolist() == [3, 4]
    told = clnp_figure_3.claims_of(used, np.array([[0.98, 0.98, 0.97, 0.5], [0.98, 0.98, 0.98, 0.975]]), "full")
    found = {one["claim"].split(" (")[0]: one["found"] for one in told}
    more = "the first layer grows less than the second after the first task"  # 0.6 and 0.6; 0 and 0.1
    assert found[more].startswith("second layer 60.0, first 5.0: +55.0")
    assert found["25 tasks find free units in the second layer"].startswith("tasks 3.5, paper 25.0: -21.5")
    line = (1.0 / np.sqrt(5 * 0.24) + 1) / 2  # of the one, which is full too soon, and of the other
    assert found["the second layer grows along a line over ten tasks"].startswith(f"correlation {100 * line:.1f}")
    run = {"feature_usage": {"dense_0": {"free": (1 - used[:, 1]).tolist()}}}
    np.testing.assert_allclose(clnp_figure_4.used(run, "dense_0"), used[:, 1])


def test_clnps_figure_5_draws_each_system_and_each_convolution():
    usage = {"conv_0": {"free": [[0.5, 0.2], [0.7, 0.4]]}, "dense_0": {"free": [[1.0, 1.0]]}}
    runs = {
        "CLNP": {"accuracy": [[[0.1, 0.0], [0.3, 0.5]], [[0.1, 0.0], [0.5, 0.9]]], "feature_usage": usage},
        "multi-task": {"accuracy": [[[np.nan, np.nan], [0.6, 0.8]], [[np.nan, np.nan], [0.6, 0.8]]]},
    }
    left, right = clnp_figure_5.draw(runs).axes
    drawn = {line.get_label(): line.get_xydata().tolist() for line in (*left.lines, *right.lines)}
    assert {name: np.round(points, 9).tolist() for name, points in drawn.items()} == {
        "CLNP": [[1, 40], [2, 70]],
        "multi-task": [[1, 60], [2, 80]],
        "convolution 1": [[1, 40], [2, 70]],
    }
    del runs["CLNP"]
    assert not clnp_figure_5.draw(runs).axes[1].lines


def test_lwms_figure_5_draws_what_is_there_in_the_same_colours():
    run = lambda *steps: {"accuracy": [[[steps[0], 0.0], [steps[1], steps[1]]]] * 2}
    runs = {"lwm_50": run(0.5, 0.25), "finetune_50": run(0.5, 0.125), "finetune_20": run(0.75, 0.25)}
    panels = lwm_figure_5.draw(runs).axes
    assert [len(panel.lines) for panel in panels] == [0, 1, 2, 0]
    (small,), (lwm, large) = panels[1].lines, panels[2].lines
    assert lwm.get_xydata().tolist() == [[50, 50], [100, 25]]
    assert small.get_xydata().tolist() == [[20, 75], [40, 25]]
    assert small.get_color() == large.get_color() != lwm.get_color()


def test_df_cnns_curves_by_hand():
    """Two tasks of four epochs, of which every second is evaluated; the second task's are in two phases."""
    run = {
        "curve_epochs": [[0, 0, 2], [0, 0, 4], [1, 0, 2], [1, 1, 2]],
        "curves": [[[0.4, 0.1], [0.5, 0.1], [0.3, 0.8], [0.45, 0.6]]],
        "epochs": {"validation_accuracy": [[[[0.1, 0.9, 0.9, 0.2]], [[0.9, 0.3, None, None], [0.1, 0.4, None, None]]]]},
    }
    run["epochs"]["validation_accuracy"][0][0].append([None] * 4)
    np.testing.assert_allclose(tables.peak(run), [(0.5 + 0.8) / 2], rtol=1e-6)
    np.testing.assert_allclose(figure_3.peak_by_validation(run), [(0.4 + 0.6) / 2], rtol=1e-6)
    np.testing.assert_allclose(figure_3.converged(run), [(2 / 2 + 1 / 2) / 2], rtol=1e-6)
    np.testing.assert_allclose(figure_3.forgetting_ratio(run), [0.45 / 0.5], rtol=1e-6)
    np.testing.assert_allclose(figure_3.recovered(run), [(0.45 - 0.5) / 0.5], rtol=1e-6)


def test_df_cnns_figure_4_draws_each_task_from_when_it_comes():
    run = {
        "curve_epochs": [[0, 0, 2], [0, 0, 4], [1, 0, 2]],
        "curves": [[[0.4, 0.0], [0.5, 0.1], [0.3, 0.8]], [[0.4, 0.0], [0.7, 0.1], [0.5, 0.8]]],
        "epochs": {"loss": [[[[1.0] * 4], [[1.0] * 2 + [None] * 2]]] * 2},
        "schedule": {"task": [0, 1]},
        "seeds": [0, 1],
    }
    (panel,) = figure_3.draw({"STL": run, "HPS": run}).axes
    *tasks, peaks = (np.round(line.get_xydata(), 9).tolist() for line in panel.lines)
    assert tasks == [[[0.5, 40], [1, 60]], [[0.5, 40], [1, 60], [2, 40]], [[2, 80]], [[2, 80]]]
    np.testing.assert_allclose([y for _, y in peaks], 70, rtol=1e-6)


def test_a_multi_task_run_is_measured_in_the_round_that_validation_chooses():
    """Of rounds 2 and 4, those that are evaluated, the first has tasks' validation accuracies 0.9 and 0.5, then 0.6."""
    run = {
        "schedule": {"task": [0, 1, 0, 0]},
        "epochs": {"validation_accuracy": [[[[0.9]], [[0.5]], [[0.7]], [[0.6]]]]},
        "rounds": {"accuracy": [[[None] * 2, [0.8, 0.6], [None] * 2, [0.9, 0.9]]]},
    }
    np.testing.assert_allclose(tables_1_2.accuracy(run), [0.7])
    run["epochs"]["validation_accuracy"][0][3] = [[0.95]]
    np.testing.assert_allclose(tables_1_2.accuracy(run), [0.9])


def test_tf_distillation_begins_with_the_single_task_models(tmp_path):
    forms = {"tiny": "--data digits --tasks 2 --schedule multi-task --epochs 4 --network cnn --channels 4 --quiet"}
    name = "TF (Distillation), 4%"
    systems = {"STL, 4%": "--methods single_task --keep-learners", name: "--methods tensor_factorization --lr 1e-12"}
    own = {name: tables_1_2.begun}
    table = tables.Table("x", "paper, table 2", "experiments.x", forms, systems, {}, (), own=own)
    config = tables.Config(runs=str(tmp_path), form="tiny", seeds=2)
    assert tables.run_of(table, name, config, time.monotonic()) is None, "no time for the models"
    trained = tables.run_of(table, "STL, 4%", config)
    assert tables.run_of(table, name, config, time.monotonic()) is None, "no time"
    run = tables.run_of(table, name, config)
    begun, ended = (np.asarray(one["rounds"]["accuracy"]) for one in (run, trained))
    assert (run["method"], begun.shape) == ("tensor_factorization", (2, 8, 2))
    np.testing.assert_allclose(begun, np.broadcast_to(ended[:, -1:], begun.shape), atol=1e-6)


def test_seeds_of_tf_that_diverged_are_not_in_its_run(tmp_path, monkeypatch, private_cache):
    drive = training.drive

    def second_diverges(*args, **kwargs):
        outcome = drive(*args, **kwargs)
        return outcome._replace(failure=outcome.failure._replace(round=np.array([-1, 0])))

    monkeypatch.setattr(tables_1_2.training, "drive", second_diverges)
    words = "compare --data digits --tasks 2 --schedule multi-task --epochs 4 --network cnn --channels 4 --quiet"
    words = [*words.split(), "--methods", "tensor_factorization", "--seeds", "2"]
    run = tables_1_2._begin(words, None, str(tmp_path), 600.0)
    assert run["seeds"] == [0]
    assert np.shape(run["accuracy"]) == (1, 2, 2)


def test_tf_begins_with_kernels_uniform_from_0_to_1(tmp_path):
    stream = streams.split(data.load("digits"), tasks=5)
    method = methods.tensor_factorization(networks.cnn((8, 8, 1), 2, channels=((4,), (8,)), dense=()))
    (learner,) = training.drive(method, optax.sgd(0.0), [(3, stream)], rounds=1).learners
    begun = tables_1_2.first(method, optax.sgd(1.0), 3, stream)
    chex.assert_trees_all_equal_shapes_and_dtypes(learner, begun)
    drawn = []
    for name in ("conv_0_0", "conv_1_0"):
        kernel = begun.params[name]["kernel"]
        drawn.append(tucker.product(kernel["core"], [kernel[factor] for factor in TUCKER]))
        assert (drawn[-1] > -1e-5).all()
        assert (drawn[-1] < 1 + 1e-5).all()
        assert abs(drawn[-1].mean() - 0.5) < 0.05
        assert abs(drawn[-1].std() - 12**-0.5) < 0.03
    assert drawn[0].shape == (3, 3, 1, 4, 5)
    chex.assert_trees_all_close(learner.params["head"], begun.params["head"], atol=1e-6)
    forms = {"tiny": "--data digits --tasks 2 --schedule multi-task --epochs 4 --network cnn --channels 4 --quiet"}
    name = "TF, 4%"
    systems = {name: "--methods tensor_factorization --lr 1e-12"}
    table = tables.Table("x", "paper", "experiments.x", forms, systems, {}, (), own={name: tables_1_2.begun})
    config = tables.Config(runs=str(tmp_path), form="tiny", seeds=1)
    unknown = table._replace(forms={"tiny": "--data no_such_data"})
    assert tables.run_of(unknown, name, config, time.monotonic()) is None, "no time, and nothing is begun"
    run = tables.run_of(table, name, config)
    assert np.asarray(run["rounds"]["accuracy"]).shape == (1, 8, 2)


@pytest.mark.parametrize("system", [name for name in figure_3.PARAMETERS if name != "ProgNN"])
def test_df_cnns_systems_have_the_published_sizes(system):
    """That of ProgNN, which closes a part of its adapters, is counted in tests/test_progressive.py."""
    command = tyro.cli(Compare, args=shlex.split(tables.arguments_of(figure_3.TABLE, system, tables.Config())))
    (name,), options = command.methods, settle(command.options)
    chosen = dataclasses.replace(options.network, normalization="none")
    network = make_network(chosen, fake_stream((32, 32, 3)))
    method = build(name, network, parse_parameters(options.training.set, {name: getattr(methods, name)})[name])
    assert count(method, 10)[0] == figure_3.PARAMETERS[system]


def accuracies(case, label):
    """Three seeds: methods differ by what their names weigh, on the old task and on the new ones."""
    old = {"finetune": -0.05, "feature_extraction": 0.02, "l2_constraint": -0.03, "lwf_l2": -0.01}.get(label, 0.0)
    new = {"finetune": -0.01, "feature_extraction": -0.04, "l2_constraint": -0.02}.get(label, 0.0)
    tasks = 5 if case == "several" else 2
    seeds = np.array([0.0, 0.01, -0.01])[:, None, None]
    found = np.full((3, tasks, tasks), 0.7) + seeds
    for after in range(1, tasks):
        found[:, after, :after] += old
        found[:, after, after:] += new
    return found


def test_lwfs_claims_are_judged_by_old_and_new_tasks():
    results = [part(accuracies) for part in (parts.table_1, parts.figure_4, parts.figure_5)]
    results.append(parts.table_2(accuracies))
    decided = {one["claim"]: one for result in results for one in result.claims}
    assert len(decided) == sum(len(result.claims) for result in results) == 43
    assert all(set(one) == {"source", "claim", "published", "found", "verdict"} for one in decided.values())
    here = "(mammals after CIFAR-10)"
    for words, verdict in {
        f"table 1: LwF is above fine-tuning on the old task {here}": "reproduced",
        f"table 1: joint training is above LwF on the old task {here}": "not reproduced",
        f"table 1: LwF is at most 2 points below joint training on average {here}": "reproduced",
        f"table 2b: the L2 constraint is above feature extraction on the new task {here}": "reproduced",
        f"table 2b: LwF with network expansion is worse than LwF, or similar {here}": "reproduced",
        f"table 2c: the response loss l1 is neither better nor worse on average {here}": "reproduced",
        f"table 2c: the response loss l2 is below distillation on the old task {here}": "reproduced",
        f"table 2d: a tenth of the shared rate lowers fine-tuning's accuracy on the new task {here}": "not reproduced",
    }.items():
        assert decided[words]["verdict"] == verdict, words
    found = results[0].found
    np.testing.assert_allclose(found["old_minus_lwf"]["similar/finetune"], -0.05)
    np.testing.assert_allclose(found["new_minus_lwf"]["dissimilar/feature_extraction"], -0.04)


def test_no_class_of_lwfs_fifty_is_learned_anew_and_their_claims_have_their_own_words(tmp_path):
    parts_of_fifty, (first, second) = lwf.OF_FIFTY, runs.FORMS["fifty"].first
    assert {first, second} < set(runs.GROUPS)
    tasks = {task for part in parts_of_fifty for case in parts.RUNS[part] for task in runs.CASES[case].tasks}
    assert tasks == {"mammals", "mnist"}
    words = lambda *after: {
        one["claim"] for part in parts_of_fifty for one in lwf.PARTS[part](accuracies, *after).claims
    }
    both = words() & words(lwf.AFTER["fifty"])
    assert {one.partition(":")[0] for one in both} == {"table 1b", "table 1c"}
    with pytest.raises(SystemExit, match="--form fifty has table_1, figure_5, table_2, and no other part"):
        lwf.main(lwf.Config(form="fifty", only=("figure_4",), runs=str(tmp_path)))


def test_lwfs_full_form_writes_beside_the_reduced_one(tmp_path, monkeypatch):
    monkeypatch.setattr(lwf, "use_threads", lambda: None)
    monkeypatch.setattr(lwf, "use_compilation_cache", lambda: None)
    monkeypatch.setattr(lwf, "full_form", lambda *_: {})
    monkeypatch.setattr(runs.Runs, "accuracy", lambda self, case, method: accuracies(case, method))
    for form in ("reduced", "full"):
        lwf.main(lwf.Config(only=("table_1",), form=form, runs=str(tmp_path), out=str(tmp_path)))
    assert {path.name for path in (tmp_path / "results").iterdir()} == {"lwf_table_1.json", "lwf_table_1_full.json"}
    words = [one["claim"] for one in json.loads((tmp_path / "claims.json").read_text())["claims"]]
    reduced, full = words[: len(words) // 2], words[len(words) // 2 :]
    assert full == [f"{one}, full form" for one in reduced]


def test_kept_results_are_those_of_the_whole_configuration(tmp_path, monkeypatch):
    monkeypatch.setattr(paper, "SIDE", 8)
    for part in ("old/train", "old/val", "new/train", "new/val"):
        for label in ("a", "b"):
            write_images(tmp_path / part / label, ["0", "1"])
    config = paper.Config(old=str(tmp_path / "old"), new=(str(tmp_path / "new"),), init="x", epochs=2)
    given = {"head/bias": np.zeros(2, np.float32)}

    def key(label="lwf", given=given, **changes):
        now = dataclasses.replace(config, **changes)
        return saving.digest(paper.decides(now, label, paper.make_stream(now), given))

    first = key()
    assert key() == key(out="elsewhere", methods=("lwf",), init="y") == first
    changes = [{"learning_rate": 0.001}, {"epochs": 3}, {"seeds": 2}, {"batch_size": 64}, {"network": "vgg16"}]
    changes += [{"mean": (0.0, 0.0, 0.0)}, {"std": (1.0, 1.0, 1.0)}, {"label": "finetune"}]
    changes += [{"given": {"head/bias": np.ones(2, np.float32)}}, {"new": (config.old,)}]
    keys = [key(**one) for one in changes]
    one, other = (tmp_path / "new" / "train" / label / "0.jpg" for label in ("a", "b"))
    one.rename(tmp_path / "aside")
    other.rename(one)
    (tmp_path / "aside").rename(other)
    assert len({first, key(), *keys}) == len(keys) + 2


def changed(value):
    """Another value of the same kind."""
    if isinstance(value, tuple):
        return (*value, value[-1])
    return not value if isinstance(value, bool) else value + 1


def test_no_changed_option_of_lwfs_runs_gives_the_old_number(tmp_path, monkeypatch):
    size, made = runs.FORMS["tiny"], []

    def numbers(case="similar", label="lwf", seeds=2, **changes):
        monkeypatch.setitem(runs.FORMS, "tiny", size._replace(**changes))
        asked = runs.Runs(tmp_path, "tiny", seeds, None)
        monkeypatch.setattr(asked, "_run", lambda *_: made.append(None) or {"accuracy": len(made), "seconds": [1]})
        return int(asked.accuracy(case, label))

    sizes = [{name: changed(value)} for name, value in size._asdict().items()]
    others = [{"case": "part_30"}, {"label": "finetune"}, {"seeds": 3}]
    found = [numbers(**changes) for changes in ({}, *others, *sizes)]
    assert found == list(range(1, len(size) + len(others) + 2)), "each of them is a run of its own"
    assert [numbers(**changes) for changes in ({}, *others, *sizes)] == found, "and each is read the next time"
    monkeypatch.setitem(runs.GROUPS, "mammals", "small_mammals")
    assert numbers() == len(found) + 1


def test_first_networks_are_kept_by_what_they_are_trained_with(monkeypatch):
    size = runs.FORMS["tiny"]

    def key(**changes):
        monkeypatch.setitem(runs.FORMS, "tiny", size._replace(**changes))
        return saving.digest(runs.Runs(pathlib.Path("x"), "tiny", 1, None).decides_first())

    later = ("new_dropout", "hidden", "fraction", "epochs", "learning_rate")
    keys = {name: key(**{name: changed(value)}) for name, value in size._asdict().items()}
    assert {name for name in keys if keys[name] == key()} == set(later)
    assert len(set(keys.values())) == len(size) - len(later) + 1


def test_results_are_strict_json_written_whole_with_what_they_were_found_on(tmp_path, monkeypatch, capsys):
    @dataclasses.dataclass
    class Config:
        epochs: int = 3
        data_dir: str = "/a/private/folder"
        out: str = str(tmp_path)

    monkeypatch.setattr("sys.argv", ["x", "--data-dir", "/a", "--epochs", "3", "--out", "b", "--seconds=9", "--runs=c"])
    result = {"rows": [np.float32(0.1), np.nan]}
    for name, file in (("x", "x.json"), ("x_benchmark", f"x_benchmark_{jax.default_backend()}.json")):
        path = saving.write_result(Config(), name, result, saving.command_line("experiments.x"))
        assert path == tmp_path / "results" / file
        assert capsys.readouterr().out == f"written: {path}\n"
    found = json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(word))
    facts = {
        "command": "python -m experiments.x --data-dir FOLDER --epochs 3",
        "config": {"epochs": 3},
        "rows": [0.1, None],
    }
    assert found == {**facts, "device": report.device(), "versions": report.versions()}
    assert len(list(path.parent.iterdir())) == 2
    path = saving.write_result(Config(), "x", {"device": "that of the record"}, "x")
    assert json.loads(path.read_text())["device"] == "that of the record"


def test_the_index_names_every_experiment_its_command_and_its_result():
    folder = pathlib.Path(claims.__file__).parent
    index = (folder / "README.md").read_text()
    for path in sorted(folder.glob("*.py")):
        assert f"`{path.stem}`" in index or f"`python -m experiments.{path.stem}" in index, path
    for path in sorted(folder.glob("*/*.py")):
        own = path.parent.name
        shown = f"python -m experiments.{own}" if path.stem == "__main__" else f"{own}.{path.stem}"
        assert shown in index, path
    for path in (folder / "results").iterdir():
        assert path.name in index.replace("{", "").replace("}", ""), path


def test_torchs_parameters_compute_the_same_here():
    network = networks.cnn((4, 6, 2), 3, channels=((4,),), dense=(5,))
    generator = np.random.default_rng(0)
    draw = lambda *shape: generator.standard_normal(shape).astype(np.float32)
    layers = {"features/0": (4, 2, 3, 3), "classifier/1": (5, 24), "classifier/4": (3, 5)}
    leaves = {f"{name}/weight": draw(*shape) for name, shape in layers.items()}
    leaves |= {f"{name}/bias": draw(shape[0]) for name, shape in layers.items()}
    given = from_torch(leaves, network)
    params, _ = network.shapes
    assert {path: leaf.shape for path, leaf in given.items()} == {
        f"{layer}/{name}": leaf.shape for layer, own in params.items() for name, leaf in own.items()
    }
    maps = draw(2, 2, 3, 4)  # height, width, features
    wanted = maps.transpose(0, 3, 1, 2).reshape(2, -1) @ leaves["classifier/1/weight"].T
    np.testing.assert_allclose(maps.reshape(2, -1) @ given["dense_0/kernel"], wanted, rtol=1e-5, atol=1e-5)
    assert given["conv_0_0/kernel"][1, 2, 0, 3] == leaves["features/0/weight"][3, 0, 1, 2]
    assert from_torch(given, network) == given


def test_the_middle_of_larger_images_is_shown():
    network = networks.cnn((2, 4, 1), 2, channels=((3,),), dense=())
    params, collections = network.init(jax.random.key(0))
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1)).astype(np.uint8)
    shown = middle(network, 8).apply(params, collections, images).logits
    np.testing.assert_array_equal(shown, network.apply(params, collections, images[:, 3:5, 2:6]).logits)


def test_a_benchmark_measures_what_it_has_time_for_and_says_what_it_leaves_out(capsys):
    row, kept = benchmark_gpu.Row, []

    def broken(config, left):
        raise ValueError("no compiler")

    parts = [
        benchmark_gpu.Part("first", 1, lambda config, left: [row("seconds", 1.5, 2.0), row("times", 9, 10, True)]),
        benchmark_gpu.Part("too long", 1000, broken),
        benchmark_gpu.Part("broken", 1, broken),
        benchmark_gpu.Part("beside PyTorch", 1, broken, torch=True),
        benchmark_gpu.Part("last", 1, lambda config, left: [row("seen", left)]),
    ]
    config = benchmark_gpu.Config(seconds=500.0)
    found = benchmark_gpu.measure(parts, config, lambda found: kept.append(list(found["rows"])), "there is none")
    assert [row["met"] for row in found["rows"]["first"]] == [True, False]
    assert 490 < found["rows"]["last"][0]["found"] < 500
    assert found["left_out"] == {
        "too long": "it takes 1000 s, and 500 of 500 are left",
        "beside PyTorch": "there is none",
    }
    assert found["failed"] == {"broken": "ValueError: no compiler"}
    assert kept == [["first"], ["first", "broken"], ["first", "broken", "last"]]
    printed = capsys.readouterr().out
    assert "met      seconds: 1.5 (at most 2)" in printed
    assert "NOT MET  times: 9 (at least 10)" in printed
    assert "LEFT OUT too long: it takes" in printed


def test_the_parts_of_a_benchmark_fit_its_time_and_are_named_once():
    for size in benchmark_gpu.AMOUNTS:
        config = benchmark_gpu.Config(size=size)
        parts = benchmark_gpu.parts_of(config)
        assert len({part.name for part in parts}) == len(parts)
        spent = np.cumsum([part.seconds for part in parts]) * config.amount.share
        goals = next(place for place, part in enumerate(parts) if part.name == "many learners")
        assert spent[goals] < config.seconds, "every goal of the card comes before what may be left out"


def test_a_step_by_hand_is_ours():
    size = ours.Size(channels=(3, 2), dense=4, batch_size=6, steps=2)
    mine = ours.Ours(methods.finetune(ours.NETWORKS["cnn"](size)), size)
    other = plain.Plain(mine, plain.cnn)
    with jax.numpy_rank_promotion("allow"):  # as by hand
        assert ours.apart(mine.steps(2), other.steps(2)) < 2e-6


def test_whole_runs_are_the_same_in_pytorch(monkeypatch):
    pytest.importorskip("torch")
    whole_runs = importlib.import_module("experiments.benchmark.whole_runs")
    name, run, found = "lwf, split CIFAR-10", whole_runs.ours, []
    case = whole_runs.CASES[name]._replace(data="digits")
    monkeypatch.setitem(whole_runs.CASES, name, case)
    monkeypatch.setattr(whole_runs, "ours", lambda *given: found.append(run(*given)) or found[-1])
    size = {"channels": (3, 2), "dense": 4, "batch_size": 16}
    config = whole_runs.Config(train=16, test=100, epochs=2, repeats=1, **size)
    row = whole_runs.row_of(name, config)
    assert row["apart"] < 1e-5
    assert row["cljax_accuracy"] == pytest.approx(row["reference_accuracy"])  # an epoch is a step
    assert row["cljax"] > row["cljax_compiling"] > 0
    assert row["ratio"] == row["cljax"] / row["reference"]
    assert len(found) == 2
    other = case._replace(reference=importlib.import_module("experiments.benchmark.reference").Reference)
    monkeypatch.setitem(whole_runs.CASES, name, other)
    monkeypatch.setattr(whole_runs, "ours", lambda *given: found[0])
    with pytest.raises(ValueError, match="apart, not by rounding"):
        whole_runs.row_of(name, config)


def write_images(folder, names):
    folder.mkdir(parents=True)
    for number, name in enumerate(names):
        pixels = np.full((6, 8, 3), 40 * number + 10, np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.jpg")


def test_voc_follows_a_single_label_task_and_is_measured_without_difficult_images(tmp_path, monkeypatch):
    monkeypatch.setattr(paper, "SIDE", 8)
    for part in ("train", "val"):
        for label in ("a", "b", "c"):
            write_images(tmp_path / "old" / part / label, ["0"])
    marks = {"bird": [1, 0, -1, 1, -1, 0], "cat": [1, 1, 1, -1, 1, 1]}
    lists = tmp_path / "VOC" / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    write_images(tmp_path / "VOC" / "JPEGImages", map(str, range(6)))
    for label, values in marks.items():
        for part, chosen in (("train", range(3)), ("val", range(3, 6))):
            (lists / f"{label}_{part}.txt").write_text("".join(f"{row} {values[row]}\n" for row in chosen))
    config = paper.Config(old=str(tmp_path / "old"), new=(str(tmp_path / "VOC"),), epochs=1)
    stream = paper.make_stream(config)
    assert stream.tables.single_label.tolist() == [True, False]
    assert stream.tables.train.labels.tolist() == [*np.eye(3).tolist(), [1, 1, 0], [0, 1, 0], [0, 1, 0]]
    assert stream.tables.test.labels[3:].tolist() == [[1, 0, 0], [0, 1, 0], [0.5, 1, 0]]
    brightness = lambda images: images.astype(jnp.float32).mean((1, 2, 3))[:, None]
    predict = lambda learner, images, task: brightness(images) * jnp.array([[1.0, -1.0, 0.0]])
    method = methods.finetune(networks.mlp((8, 8, 3), 3))._replace(predict=predict)
    found = paper.precision(method, None, stream, 1, batch_size=2)
    # By rising brightness: a bird, none, one that does not count; and, the darkest first, no cat, cat, cat.
    np.testing.assert_allclose(found, (1 / 2 + 2 / 3) / 2, rtol=1e-5)
