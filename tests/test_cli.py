"""The command, in process with small settings: what it computes, writes, prints and refuses."""

import dataclasses
import inspect
import json
import math
import os
import pathlib
import shlex
import subprocess
import sys
import time
import typing
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tyro
from jax.experimental.compilation_cache import compilation_cache

import cljax
from cljax import cli, data, methods, networks, report, streams, task_params, training
from cljax.cli import making, process, progress
from cljax.cli.asked import Curve, configuration, curves_of
from cljax.cli.compare import confusion
from cljax.cli.experiment import make_experiment
from cljax.cli.options import DEFAULT_METHODS, Compare, Data, Network, Options, Output, Training, UsageError, settle
from cljax.cli.parameters import described, fits, parameters_of, parse_parameters
from cljax.cli.repeat import option_words
from cljax.cli.rules import check_values
from cljax.cli.typed import idle
from cljax.data.on_demand import ReadError
from cljax.report import writing
from cljax.storage import old_names
from cljax.training import driver
from cljax.training.driver import drive
from cljax.training.outcome import Event
from cljax.training.step import phase_learning_rate
from cljax.types import Sizes, make_clock
from tests import conformance

pytestmark = pytest.mark.usefixtures("private_cache")
SMALL = ["--epochs", "2", "--hidden", "16"]
SCHEMA = {
    "method": str,
    "data": str,
    "scenario": str,
    "network": dict,
    "seeds": list,
    "accuracy": list,
    "task_il_accuracy": list,
    "top5": list,
    "zero_forgetting": bool,
    "schedule": dict,
    "epochs_trained": list,
    "epochs": dict,
    "curve_epochs": list,
    "evaluation": dict,
    "seconds": list,
    "compile_seconds": float,
    "traces": int,
    "flops": float,
    "bytes_per_task": float,
    "facts": list,
    "config": dict,
    "versions": dict,
    "device": dict,
    "parameters": dict,
}


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """`cljax compare` of two methods on two seeds: folder, exit code, stdout, stderr."""
    place = tmp_path_factory.mktemp("compare")
    out, code = place / "run", None
    with (
        open(place / "out", "w+") as stdout,
        open(place / "err", "w+") as stderr,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(sys, "stdout", stdout)
        patch.setattr(sys, "stderr", stderr)
        patch.setattr(writing, "FORMS", ("svg",))  # all of them: `test_report_files`
        named = ["compare", "--methods", "finetune", "freezing", "--seeds", "2", *SMALL]
        code = cli.main([*named, "--tensorboard", "--out", str(out)])
    return out, code, (place / "out").read_text(), (place / "err").read_text()


def refused(capsys, *arguments):
    """Runs the command; asserts exit code 2 and one paragraph on stderr, nothing on stdout; returns the words."""
    assert cli.main(list(arguments)) == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert "Traceback" not in found.err
    words = " ".join(found.err.split())
    assert words.startswith("cljax: ")
    return words


BILLIONS = "100000000000"
TOO_LARGE = [
    ["--tasks", BILLIONS],
    ["--epochs", BILLIONS],
    ["--first-epochs", BILLIONS],
    ["--batch-size", BILLIONS],
    ["--seeds", BILLIONS],
    ["--seeds", "3", "9223372036854775808"],
    ["--hidden", BILLIONS],
    ["--channels", BILLIONS],
    ["--class-order", BILLIONS, "1"],
    ["--image-size", "1000000"],
    ["--image-size", "-1"],
    ["--patience", BILLIONS],
    ["--patience-minimum-learning-rate", "inf"],
    ["--patience-factor", "nan"],
    ["--curves-every", BILLIONS],
    ["--checkpoint-seconds", "nan"],
    ["--validation", "nan"],
    ["--fraction", "nan"],
    ["--learning-rate", "1e300"],
    ["--clip", "inf"],
    ["--weight-decay", "1e39"],
    ["--dropout", "nan"],
]


@pytest.mark.parametrize("words", TOO_LARGE, ids=" ".join)
def test_numbers_too_large_or_not_finite_are_refused_before_anything_heavy(words):
    with pytest.raises(UsageError, match=rf"^{words[0]} is .*, but must be a (whole|finite) number"):
        check_values(settle(cli.parse(["run", "finetune", *words]).options))


def test_a_sweep_takes_finite_values_only():
    for words in (["strength", "nan"], ["strength", "1", "1e300"], ["strength", "1", "--vs", "lwm.beta=inf"]):
        with pytest.raises(UsageError, match="but must be a finite number"):
            curves_of(cli.parse(["sweep", "lwf", *words]))


def test_words_that_no_parser_takes_are_words():
    with pytest.raises(UsageError, match=r"The parameter 'strength' needs a number .* not '----.*\.\.\."):
        parse_parameters([f"strength={'-' * 100_000}1"], {"lwf": methods.lwf})


def test_no_device_is_one_paragraph(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "cljax", "run", "finetune", "--out", tmp_path / "run", "--no-cache"],
        env={**os.environ, "JAX_PLATFORMS": "cuda"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "JAX_PLATFORMS is 'cuda', but JAX finds no such device here" in " ".join(done.stderr.split())
    assert not (tmp_path / "run").exists()


def test_ctrl_c_while_modules_are_loaded_is_quiet(tmp_path):
    """The first heavy import is interrupted, as by Ctrl-C."""
    (tmp_path / "tyro.py").write_text("raise KeyboardInterrupt")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "cljax", "compare"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "cljax: Stopped.\n")


def test_help_answers_at_once():
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", "import sys, cljax.cli; sys.exit(cljax.cli.main(['run', '--help']))"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert time.perf_counter() - start < 5.0
    for option in ("--data", "--scenario", "--class-order", "--patience", "--weight-decay", "--vectorize", "--out"):
        assert option in done.stdout


def test_parsing_imports_nothing_heavy(tmp_path):
    """Nor anything of one's own, before JAX has its flags."""
    file = tmp_path / "config.json"
    settings = {"methods": ["lwf", "no_such_module:mine"], "training": {"set": ["lwf.strength=2", "temperature=3"]}}
    file.write_text(json.dumps(settings))
    code = (
        "import sys, cljax, cljax.cli; cljax.cli.parse(['compare']); "
        f"cljax.cli.parse(['run', 'lwf', '--config', {str(file)!r}]); "
        "print(*(name for name in ('jax', 'numpy', 'flax', 'optax', 'tensorflow_datasets') if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_record_has_the_schema(compared):
    out, code, _, _ = compared
    assert code == 0

    def no_constants(text):
        raise AssertionError(f"{text} is not strict JSON")

    record = json.loads((out / "record.json").read_text(), parse_constant=no_constants)
    assert (record["format"], record["complete"], record["left_out"]) == (1, True, {})
    assert [run["method"] for run in record["runs"]] == ["finetune", "freezing"]
    config = json.loads((out / "config.json").read_text())
    for run in record["runs"]:
        assert {name: type(run[name]) for name in SCHEMA} == SCHEMA
        assert set(run) == {
            *SCHEMA,
            "curves",
            "search",
            "untrained",
            "rounds",
            "feature_usage",
            "attention",
            "packed_bytes_per_task",
            "driver",
            "share_waiting",
        }
        assert np.shape(run["epochs"]["loss"]) == np.shape(run["epochs"]["validation_accuracy"]) == (2, 5, 1, 2)
        assert (run["data"], run["scenario"], run["seeds"]) == ("digits", "task", [0, 1])
        assert np.shape(run["accuracy"]) == np.shape(run["task_il_accuracy"]) == (2, 5, 5)
        assert run["accuracy"] == run["task_il_accuracy"]
        assert np.asarray(run["top5"]).tolist() == np.ones((2, 5, 5)).tolist()  # of two classes
        assert 0 <= np.min(run["accuracy"]) <= np.max(run["accuracy"]) <= 1
        assert (run["traces"], run["curves"], run["rounds"]) == (1, None, None)
        assert run["epochs_trained"] == [[2] * 5] * 2
        assert run["config"] == config
        size = {"name": "mlp", "hidden": [16], "parameters": 64 * 16 + 16 + 16 * 2 + 2}
        assert run["network"] == {**size, "normalization": "none", "norm_after": False, "dropout": 0.0}
        assert run["schedule"] == {"task": [0, 1, 2, 3, 4], "epochs": [2] * 5, "evaluate": [True] * 5}
        # A dense layer of 16 is shared; a task has a head of 16 x 2 weights and 2 biases, float32.
        assert run["bytes_per_task"] == 4 * (16 * 2 + 2)
        assert len(run["seconds"]) == 2
        assert min(run["seconds"]) > 0
    assert [run["zero_forgetting"] for run in record["runs"]] == [False, True]
    assert config["methods"] == ["finetune", "freezing"]
    assert config["training"]["seeds"] == [0, 1]


def test_the_command_computes_what_the_library_does(compared):
    dataset = data.load("digits")
    seeds = [(seed, streams.split(dataset, tasks=5, seed=seed, epochs=2)) for seed in (0, 1)]
    network = networks.mlp((8, 8, 1), 2, hidden=(16,), mean=seeds[0][1].mean, std=seeds[0][1].std)
    settings = training.Settings(batch_size=32, learning_rate=0.05, validate=True)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0, momentum=0.9))
    outcome = drive(methods.finetune(network), optimizer, seeds, settings)
    run = json.loads((compared[0] / "record.json").read_text())["runs"][0]
    np.testing.assert_array_equal(np.asarray(run["accuracy"], np.float32), outcome.evaluation.accuracy)
    assert run["flops"] == outcome.flops
    first, head = [32 * size for size in (64 * 16, 16 * 2)]
    products = 2 * (2 * first + 3 * head)  # forwards, for weights, and but for the first layer for its inputs
    assert products < run["flops"] < 1.6 * products, (run["flops"], products)


def test_the_record_has_the_command_line(compared):
    record = json.loads((compared[0] / "record.json").read_text())
    words = shlex.split(record["command"])
    assert words[:4] == ["cljax", "compare", "--methods", "finetune"]
    assert words[-2:] == ["--out", str(compared[0])]
    assert report.read(compared[0])["command"] == record["command"]


def test_a_configuration_is_taken_back_and_overridden(compared, tmp_path):
    file = compared[0] / "config.json"
    config = json.loads(file.read_text())

    def again(*words):
        command = cli.parse([words[0], "--config", str(file), *words[1:]])
        options = settle(command.options)
        check_values(options)
        return json.loads(json.dumps(configuration(curves_of(command), options)))

    assert again("compare") == config
    assert again("run", "joint") == {**config, "methods": ["joint"]}
    for seeds, expected in ((["--seed", "7"], [7]), (["--seeds", "3"], [0, 1, 2])):
        changed = again("compare", *seeds, "--epochs", "9", "--methods", "joint", "--set", "joint.sampling=balanced")
        training = {**config["training"], "seeds": expected, "epochs": 9, "set": ["joint.sampling=balanced"]}
        assert changed == {**config, "methods": ["joint"], "training": training}
    file = tmp_path / "config.json"  # of one seed, of a cnn, of old names, of a sweep
    training = {name: value for name, value in config["training"].items() if name != "learning_rate"}
    training |= {"seeds": [7], "rate": 0.125, "set": ["finetune.shared_rate=0.5"], "patience_restore": True}
    network = {**config["network"], "network": "cnn", "channels": ["8", "8,8"], "hidden": []}
    swept = [["finetune.shared_learning_rate", [0.5, 1.0]], ["lwf", []], ["lwf.strength", [2.0]]]
    of_old = [["finetune.shared_rate", [0.5, 1.0]], *swept[1:]]
    old = {**config, "methods": ["finetune", "lwf"], "training": training, "network": network, "sweep": of_old}
    file.write_text(json.dumps(old))
    command = cli.parse(["sweep", "--config", str(file)])
    assert [[curve.name, list(curve.values)] for curve in curves_of(command)] == swept
    options = settle(command.options)
    assert (options.training.seed, options.training.learning_rate, options.training.patience_restore) == (
        7,
        0.125,
        True,
    )
    found = configuration(curves_of(command), options, swept=True)
    assert json.loads(json.dumps(found)) == old_names.config(old)
    for words in ("compare", "run"):
        with pytest.raises(UsageError, match="it is of a sweep: give it to `cljax sweep`, or name the methods"):
            cli.parse([words, "--config", str(file)])
    assert curves_of(cli.parse(["run", "joint", "--config", str(file)])) == [Curve("joint")]
    assert option_words({"network": {"network": "mine:make", "channels": ["8", "9"]}})[:3] == ["--channels", "8", "9"]
    assert curves_of(cli.parse(["sweep", "lwf", "strength", "3", "--config", str(file)])) == [
        Curve("lwf", "strength", (3.0,))
    ]
    for words, told in (
        (["run"], "it is of 2 methods: name one"),
        (["sweep"], "it is of no sweep: name a method"),
    ):
        file.write_text(json.dumps({name: value for name, value in old.items() if name != "sweep"}))
        with pytest.raises(UsageError, match=told):
            cli.parse([*words, "--config", str(file)])
    for text, told in (
        ("[1]", "no run's config.json"),
        ("{", "cannot be taken"),
        (
            '{"methods": ["lwf"], "training": {"speed": 1}}',
            "training.speed, an option that this version",
        ),
    ):
        file.write_text(text)
        with pytest.raises(UsageError, match=told):
            cli.parse(["compare", "--config", str(file)])


def test_what_a_configuration_has_by_default_gives_way(tmp_path):
    """To another data set, network or schedule of the rate; what was asked for, stays."""
    file = tmp_path / "config.json"

    def again(first, *words):
        command = cli.parse(first)
        file.write_text(json.dumps(configuration(curves_of(command), settle(command.options))))
        options = settle(cli.parse(["run", "lwf", "--config", str(file), *words]).options)
        check_values(options)
        return options

    plain, chosen = ["run", "lwf"], ["run", "lwf", "--tasks", "3", "--channels", "4", "--dropout", "0.25"]
    assert again(plain, "--network", "alexnet").network == settle(Options(network=Network("alexnet"))).network
    assert again(["run", "lwf", "--network", "vgg16"], "--network", "cnn").network.dropout == 0.0
    found = again(chosen, "--network", "vgg16", "--data", "mnist")
    assert (found.network.dropout, found.network.channels, found.data.tasks) == (0.25, None, 3)
    assert again(chosen, "--network", "cnn", "--tasks", "4").network.channels == ("4",)
    assert again(plain, "--division", "one-vs-all").data.tasks == 10
    for first, then in (("--milestones=0.5", "--cosine"), ("--cosine", "--milestones=0.5")):
        training = again([*plain, first], then).training
        assert (training.cosine, training.milestones) == ((True, ()) if then == "--cosine" else (False, (0.5,)))
    two = [
        "compare",
        "--methods",
        "lwf",
        "mas+ewc",
        "--set",
        "lwf.temperature=3",
        "mas+ewc.ewc.strength=9",
        "strength=2",
    ]
    assert again([*two, "ewc.fisher=sampled", "lfw.x=1"]).training.set == (
        "lwf.temperature=3",
        "strength=2",
        "lfw.x=1",
    ), "what is of another method goes, what is of none is to be refused"
    assert again([*plain, "--channels", "8"], "--network", "mine:make").network.channels == ("8",)
    assert again([*plain, "--network", "cnn"], "--network", "mine:make").network.channels is None
    assert again([*plain, "--network", "mine:make", "--channels", "8"], "--network", "cnn").network.channels == ("8",)
    assert again([*plain, "--milestones=0.5"], "--no-cosine").training.milestones == (0.5,)


def test_a_list_in_two_parts_is_refused_and_what_changes_nothing_is_told(tmp_path):
    with pytest.raises(UsageError, match="--set is given 2 times: give all at once, --set ONE OTHER"):
        cli.parse(["run", "lwf", "--set", "strength=2", "--set=temperature=3"])
    told = lambda *words: idle(cli.parse(words), words)
    assert told("run", "lwf", "--lr", "0.1", "--patience", "2", "--patience-factor", "2") == []
    assert told("run", "lwf", "--patience-factor=2", "--patience-restore") == [
        "--patience-factor changes nothing without --patience.",
        "--patience-restore changes nothing without --patience.",
    ]
    assert told("run", "lwf", "--tune", "--lr", "0.1") == [
        "--learning-rate changes nothing with --tune, which chooses it."
    ]
    swept = ["sweep", "lwf", "learning_rate", "0.1", "1", "--rate", "0.5"]
    assert told(*swept) == ["--learning-rate changes nothing where it is swept."]
    assert told(*swept, "--vs", "ewc") == []
    number = ["sweep", "lwf", "strength", "1", "2", "--set", "strength=7"]
    assert told(*number) == ["--set strength=7 changes nothing where it is swept."]
    assert told(*number, "--vs", "ewc") == told("sweep", "lwf+ewc", *number[2:]) == []
    file = tmp_path / "config.json"
    command = cli.parse(["run", "lwf", "--tune", "--lr", "0.1"])
    file.write_text(json.dumps(configuration(curves_of(command), settle(command.options))))
    assert told("run", "lwf", "--config", str(file)) == []


def test_one_seed_is_that_of_several(compared, tmp_path):
    """And old words are taken."""
    out = tmp_path / "run"
    words = ["run", "finetune", "--seed", "0", "--rate", "0.05", "--share", "1", *SMALL, "--quiet", "--out", str(out)]
    assert cli.main(words) == 0
    one, both = (json.loads((place / "record.json").read_text())["runs"][0] for place in (out, compared[0]))
    assert (one["seeds"], one["accuracy"]) == ([0], both["accuracy"][:1])


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"cljax {cljax.__version__}\n"


def test_table_and_plain_progress(compared):
    out, _, stdout, stderr = compared
    record = json.loads((out / "record.json").read_text())
    rows = {line.split()[0]: line for line in stdout.splitlines() if line.strip()}
    for run in record["runs"]:
        mean, half_width = report.interval(report.summarise(run)["average_accuracy"]).split()
        assert rows[run["method"]].split()[1:3] == [mean, half_width]
    assert max(map(len, stdout.splitlines()[:-1])) <= 100
    assert "Record:" in stdout
    assert "finetune (1 of 2)" in stderr
    lines = [line.split(", ")[:2] for line in stderr.splitlines() if line.startswith("freezing seed 1, ")]
    accuracy = np.asarray(next(run["accuracy"][1] for run in record["runs"] if run["method"] == "freezing"))
    seen = [accuracy[task, : task + 1].mean() for task in range(5)]
    assert [line[1] for line in lines] == [
        f"task {task + 1}/5: {100 * value:.1f}% on the tasks so far" for task, value in enumerate(seen)
    ]
    assert "\x1b" not in stdout + stderr


def test_event_files_and_how_to_make_a_report(compared):
    out, _, stdout, _ = compared
    places = sorted(str(path.parent.relative_to(out)) for path in out.rglob("events.out.tfevents.*"))
    assert places == [f"tensorboard/{method}/seed-{seed}" for method in ("finetune", "freezing") for seed in (0, 1)]
    assert stdout.splitlines()[-1] == f"Report: {out / 'report/report.html'}"
    assert (out / "report/report.html").exists()


def test_compiled_programs_are_kept_in_the_user_s_cache(monkeypatch, tmp_path):
    place = pathlib.Path(os.environ["XDG_CACHE_HOME"]) / "cljax" / "compiled" / process.processor()
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.chdir(tmp_path)
    kept = jax.config.jax_compilation_cache_dir
    try:
        compilation_cache.reset_cache()
        assert cli.main(["run", "finetune", "--tasks", "2", "--epochs", "1", "--hidden", "4", "--quiet"]) == 0
    finally:
        jax.config.update("jax_compilation_cache_dir", kept)
        compilation_cache.reset_cache()
    assert list(place.glob("*epoch*-cache"))


def test_a_finished_folder_is_refused_before_anything_else(compared, capsys, monkeypatch):
    monkeypatch.setattr(data, "load", None)
    out = str(compared[0])
    same = ["compare", "--methods", "finetune", "freezing", "--seeds", "2", *SMALL, "--no-report", "--out", out]
    assert "holds a finished run" in refused(capsys, *same)
    words = refused(capsys, *same, "--learning-rate", "0.1")
    assert "differs in training.learning_rate (0.05 there, 0.1 now). Choose another folder" in words


def test_an_interrupted_run_is_taken_up(compared, tmp_path, capsys):
    record = json.loads((compared[0] / "record.json").read_text())
    runs = record["runs"]
    out = tmp_path / "run"
    out.mkdir()
    (out / "config.json").write_text((compared[0] / "config.json").read_text())
    marked = {**runs[1], "seconds": [123.0, 123.0]}
    (out / "record.json").write_text(json.dumps({**record, "complete": False, "runs": [marked]}))
    same = ["compare", "--methods", "finetune", "freezing", "--seeds", "2", *SMALL, "--no-report", "--out", str(out)]
    assert cli.main(same) == 0
    assert "has freezing already" in " ".join(capsys.readouterr().err.split())
    again = json.loads((out / "record.json").read_text())
    assert again["complete"]
    assert [run["method"] for run in again["runs"]] == ["finetune", "freezing"]
    assert again["runs"][1] == marked
    assert again["runs"][0]["accuracy"] == runs[0]["accuracy"]


def test_results_that_stand_on_other_data_are_not_compared(compared, tmp_path, capsys):
    """A folder of images, or a file of parameters, may have changed since."""
    out, record = tmp_path / "run", json.loads((compared[0] / "record.json").read_text())
    out.mkdir()
    (out / "config.json").write_text((compared[0] / "config.json").read_text())
    half = {**record, "complete": False, "runs": record["runs"][:1]}
    same = ["compare", "--methods", "finetune", "freezing", "--seeds", "2", *SMALL, "--no-report", "--out", str(out)]
    parts = {"examples": "the examples", "sample": "the examples", "division": "their division"}
    for name, words in {**parts, "start": "the parameters given to begin with"}.items():
        text = json.dumps({**half, "basis": {**record["basis"], name: "0"}})
        (out / "record.json").write_text(text)
        told = refused(capsys, *same)
        assert f"has results of finetune, since which {words} have changed" in told
        assert (out / "record.json").read_text() == text
    streamed = {name: part for name, part in record["basis"].items() if name != "examples"}
    (out / "record.json").write_text(json.dumps({**half, "basis": streamed}))
    assert cli.main(same) == 0, "of which a sample is known: they were read from disk"
    (out / "record.json").write_text(json.dumps({name: part for name, part in half.items() if name != "basis"}))
    assert cli.main([*same, "--keep-learners"]) == 0, "of an earlier version"
    assert "No learners are kept of finetune, finished without" in " ".join(capsys.readouterr().err.split())
    assert json.loads((out / "record.json").read_text())["basis"] == record["basis"]


def test_a_report_that_has_no_place_takes_no_result_away(tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"

    def write(folders):
        (out / "report").mkdir()
        (out / "report" / "notes.txt").write_text("mine")
        return writing.write(folders)

    monkeypatch.setattr(report, "write", write)
    named = ["compare", "--methods", "finetune", "--seeds", "1", "--tasks", "2", *SMALL, "--quiet", "--out", str(out)]
    assert cli.main(named) == 1
    printed = capsys.readouterr()
    assert "finetune" in printed.out
    assert "The run is complete, but not its report" in " ".join(printed.err.split())
    assert json.loads((out / "record.json").read_text())["complete"]


def test_a_loss_that_is_not_finite_ends_with_1_and_names_the_place(tmp_path, capsys):
    out = tmp_path / "run"
    assert (
        cli.main(["run", "finetune", "--seeds", "1", *SMALL, "--learning-rate", "1e30", "--out", str(out), "--quiet"])
        == 1
    )
    words = " ".join(capsys.readouterr().err.split())
    assert words.startswith("cljax: The loss of finetune turned non-finite in round 0: task 0, phase 'train', epoch 0")
    assert (out / "config.json").exists()
    assert not (out / "record.json").exists()


@pytest.mark.parametrize(
    ("stop", "code", "words"),
    [
        (ReadError("Example 3 could not be read."), 1, "cljax: Example 3 could not be read."),
        (KeyboardInterrupt(), 130, "cljax: Stopped. The same command with --resume goes on from the last checkpoint."),
    ],
)
def test_what_ends_a_run_is_one_paragraph(stop, code, words, tmp_path, capsys, monkeypatch):
    def drive(*arguments, **options):
        raise stop

    monkeypatch.setattr(driver, "drive", drive)
    out = tmp_path / "run"
    command = ["run", "finetune", "--seeds", "1", *SMALL, "--quiet", "--no-cache", "--out", str(out)]
    assert cli.main(command) == code
    assert " ".join(capsys.readouterr().err.split()) == words
    cli.main([*command, "--overwrite"])
    assert " ".join(capsys.readouterr().err.split()) == words.replace(
        "command with", "command without --overwrite with"
    )
    assert (out / "config.json").exists()


def test_class_incremental_permuted_and_multi_task_by_one_method(tmp_path, capsys):
    small = ["--seeds", "2", "--tasks", "2", "--epochs", "3", "--hidden", "8", "--quiet", "--out"]
    arguments = ["--method", "finetune", "--scenario", "class", "--schedule", "multi-task", "--curves-every", "1"]
    assert cli.main(["run", *arguments, *small, str(tmp_path / "a")]) == 0
    found = capsys.readouterr()
    assert "task-IL" in found.out
    assert found.err == ""
    run = json.loads((tmp_path / "a" / "record.json").read_text())["runs"][0]
    assert run["scenario"] == "class"
    assert len(run["schedule"]["task"]) == 6
    assert np.shape(run["rounds"]["accuracy"]) == (2, 6, 2)
    assert np.shape(run["curves"]) == (2, 6, 2)
    assert run["curve_epochs"] == [[number, 0, 1] for number in range(6)]
    np.testing.assert_allclose(run["curves"], run["rounds"]["accuracy"], atol=1e-7)
    assert run["accuracy"][0][-1] == run["rounds"]["accuracy"][0][-1]
    counts = np.reshape(run["confusion"]["counts"], (2, 5, 10))  # the seeds together, [task, class, taken for]
    right = counts[np.arange(10) // 5, np.arange(10) % 5, np.arange(10)].reshape(2, 5).sum(axis=1)
    last = np.mean([seed[-1] for seed in run["rounds"]["accuracy"]], axis=0)
    np.testing.assert_allclose(right / counts.sum(axis=(1, 2)), last, rtol=1e-6)
    assert cli.main(["run", "joint", "--scenario", "permuted", "--vectorize", "yes", *small, str(tmp_path / "b")]) == 0
    assert "permuted pixels, domain-incremental" in capsys.readouterr().out
    run = json.loads((tmp_path / "b" / "record.json").read_text())["runs"][0]
    assert (run["scenario"], run["facts"][1]["kind"], run["bytes_per_task"]) == ("domain", "permuted", 0)
    assert np.shape(run["untrained"]) == (2, 2)


def test_methods_that_do_not_fit_are_left_out_unless_named(tmp_path, capsys):
    options = Options(data=Data(scenario="domain"), training=Training(seeds=(1,), epochs=1))
    made = experiment_of(options, *DEFAULT_METHODS)
    assert (
        [curve.name for curve in made.curves]
        == list(made.methods)
        == ["finetune", "joint", "single_task", "hard_sharing"]
    )
    assert "freezing needs leaves that belong to a task" in made.left_out["freezing"]
    out = tmp_path / "run"
    words = refused(capsys, "run", "freezing", "--scenario", "domain", "--out", str(out), "--no-cache")
    assert "freezing needs leaves that belong to a task" in words
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["run", "finetun"],
            "There is no method 'finetun'. Did you mean 'finetune'? There are: clnp, den, df_cnn, dup",
        ),
        (["run", "lwf+tfm"], "'tfm' cannot be added to a method. What can: ewc,"),
        (["run", "LWF"], "There is no method 'LWF'. Did you mean 'lwf'"),
        (["run", "lwf", "ewc"], "`cljax run` does one method: lwf+ewc adds one to another, and `cljax compare"),
        (["run", "lwf", "--set", "temprature=2"], "Did you mean 'temperature'? lwf has temperature"),
        (["run", "lwff+ewc"], "There is no method 'lwff'. There are: "),
        (["run", "finetune", "--memory", "-1"], "--memory is -1, but must be a whole number"),
        (["compare", "--exemplars", "-5"], "--exemplars is -5, but must be a whole number"),
        (["sweep", "lwf", "strenth", "1"], "Did you mean 'strength'? It has: learning_rate, strength, temp"),
        (["run", "finetune", "--tune", "0"], "--tune is 0.0, but must be a finite number above 0"),
        (["run", "finetune", "--tune", "0.1", "0.1"], "--tune is 0.1 0.1, but must be different learning rates."),
        (["run", "tfm", "--tune", "--set", "candidates=0.1,0.2"], "tfm chooses its own numbers at each visit"),
        (["run", "lwf", "--tune", "--validation", "0"], "which the search of lwf needs"),
        (["sweep", "lwf", "strength", "1", "--tune"], "--tune chooses the numbers that a sweep varies"),
        (["run", "finetune", "--memory-selection", "herding"], "--memory-selection is herding, but must be left out"),
        (["comprae"], "There is no command 'comprae'. Did you mean 'compare'?"),
        (["run", "lwf", "--first-classes", "10"], "--first-classes is 10 of 10, which leaves 0 for 4 other tasks."),
        (
            ["run", "lwf", "--first-classes", "5", "--scenario", "permuted"],
            "--first-classes is 5, but must be left",
        ),
        (["run", "lwf", "--milestones", "0.5", "1"], "--milestones is 1.0, but must be"),
        (["run", "lwf", "--milestones", "0.5", "--cosine"], "must be left out with --milestones"),
        (["compare", "--methods", "joint", "joint"], "joint is named more than once: name it once."),
        (["compare", "--methods", "all", "joint"], "'all' stands alone. There is no method 'all'."),
        (["run", "lwf", "--set", "strength=1", "strength=2"], "--set gives strength twice. Give it once."),
        (["run"], "Which method? For example: cljax run finetune"),
        (["run", "joint", "--method", "finetune"], "Two methods are named"),
        (["run", "finetune", "--data", "digit"], "There is no data set 'digit'"),
        (["run", "finetune", "--tasks", "11"], "more tasks (11) than classes (10)"),
        (["run", "finetune", "--tasks", "0"], "--tasks is 0, but must be a whole number from 1 to 10000."),
        (["run", "finetune", "--learning-rate", "nan"], "--learning-rate is nan, but must be a finite number above 0."),
        (
            ["run", "finetune", "--learning-rate-decay", "-1"],
            "--learning-rate-decay is -1.0, but must be a finite number of at least 0",
        ),
        (
            ["run", "finetune", "--validation", "1"],
            "--validation is 1.0, but must be a finite number of at least 0 and below 1",
        ),
        (
            ["run", "finetune", "--validation", "0", "--patience", "5"],
            "a validation part, for example --validation 0.1",
        ),
        (["run", "finetune", "--division", "one-vs-all", "--tasks", "20"], "--tasks is 20, but must be a whole number"),
        (["run", "finetune", "--seeds", "0"], "--seeds is 0, but must be a whole number from 1 to 100000."),
        (["run", "finetune", "--seeds", "3", "--seed", "7"], "--seeds is 3, but must be left out with --seed."),
        (["run", "finetune", "--seed", "-1"], "--seed is -1, but must be a whole number"),
        (["compare", "--methods"], "--methods names none. Name one or more, or leave it out"),
        (
            ["run", "finetune", "--config", "nowhere.json"],
            "nowhere.json, which cannot be read (No such file",
        ),
        (["sweep", "--seeds", "3"], "What is swept? For example: cljax sweep lwf strength 0.1 1 10."),
        (["run", "finetune", "--seeds", "3", "3"], "--seeds is 3 3, but must be different seeds"),
        (["run", "finetune", "--hidden"], "--hidden is empty, but must be one width or more"),
        (["run", "finetune", "--channels", "32;32"], "--channels is 32;32, but must be such as 32,32 64,64"),
        (["run", "finetune", "--class-order", "0", "1", "77"], "--class-order must name classes 0 to 9"),
        (["run", "joint", "--scenario", "permuted", "--class-order", "random"], "--class-order has no meaning"),
        (["run", "joint", "--scenario", "domain", "--head", "task"], "--head task is for --scenario permuted"),
        (["run", "tfm", "--scenario", "permuted", "--head", "shared"], "tfm needs a head for each task"),
        (["run", "finetune", "--network", "cnn", "--channels", *["4"] * 4], "at least 16x16 pixels"),
        (["run", "finetune", "--network", "mlp", "--channels", "4"], "--channels is 4, but must be left out with"),
        (["run", "finetune", "--network", "mlp", "--pooled"], "--pooled is True, but must be left out with"),
        (["run", "hard_sharing", "--set", "own_layer=1"], "no parameter 'own_layer'. Did you mean 'own_layers'? hard_"),
        (["run", "hard_sharing", "--set", "own_layers=x"], "'own_layers' needs a whole number (by default 1), not 'x'"),
        (["run", "hard_sharing", "--set", "own_layers=1.5"], "'own_layers' needs a whole number"),
        (["run", "tfm", "--set", "growth=a"], "a number, or several (a number each) with commas between, or none"),
        (
            ["run", "joint", "--set", "sampling=all"],
            "'sampling' needs pooled or balanced (by default pooled), not 'all'",
        ),
        (["run", "clnp", "--set", "fine_tune=true"], "'fine_tune' needs a number (by default 0.0), not 'true'"),
        (["run", "finetune", "--data", "./nowhere"], "There is no folder ./nowhere."),
        (["run", "hard_sharing", "--set", "own_layers=9"], "Choose from 1 to 1, or a deeper network"),
        (["run", "hard_sharing", "--set", "own_layers"], "--set takes NAME=VALUE or METHOD.NAME=VALUE"),
        (["run", "joint", "--set", "lwf.strength=1"], "There is no method of this run 'lwf'. There are: joint."),
        (["run", "joint", "--schedule", "multi-task", "--epochs", "1"], "rounds never visit task"),
    ],
)
def test_bad_input_is_one_paragraph_and_leaves_nothing(arguments, words, tmp_path, capsys):
    assert words in refused(capsys, *arguments, "--out", str(tmp_path / "run"), "--no-cache")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "joint", "--sceanrio", "task"], "--scenario"),
        (["run", "joint", "--scenario", "tsk"], "task"),
        (["run", "joint", "--epochs", "x"], "--epochs"),
    ],
)
def test_unreadable_arguments_end_with_2(arguments, words, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert words in found.err


def experiment_of(options, *names):
    """The experiment of these methods, as the command makes it."""
    curves, options = [Curve(name) for name in names], settle(options)
    return make_experiment(curves, options, configuration(curves, options))


@pytest.mark.parametrize(
    ("names", "head", "scenario", "network", "left_out"),
    [
        (("finetune", "lwf", "clnp"), "auto", "domain", "mlp", []),
        (("finetune", "tfm"), "auto", "task", "mlp", []),
        (("finetune", "lwm", "df_cnn"), "auto", "task", "cnn", []),
        (("finetune", "df_cnn"), "auto", "domain", "cnn", []),
        (tuple(sorted(methods.__all__)), "auto", "domain", "cnn", ["tfm"]),
        (("finetune", "clnp"), "task", "task", "mlp", []),
    ],
)
def test_permuted_tasks_share_a_head_unless_a_named_method_needs_its_own(names, head, scenario, network, left_out):
    options = Options(data=Data(scenario="permuted", tasks=2, head=head), training=Training(seeds=(1,)))
    made = experiment_of(options, *names)
    assert (made.seeds[0][1].scenario, set(made.left_out) >= set(left_out)) == (scenario, True)
    assert left_out or not made.left_out
    assert [curve.method for curve in made.curves] == [name for name in names if name not in made.left_out]
    assert {facts["name"] for facts in made.networks.values()} == {network}
    assert [bool(method.per_task) for method in made.methods.values()].count(True) >= (scenario == "task")


def test_tfm_has_its_normalisation_and_its_ablation_is_named():
    asked = lambda **network: Options(training=Training(seeds=(1,)), network=Network(hidden=(5,), **network))
    made = experiment_of(asked(), "freezing", "tfm")
    assert {name: facts["normalization"] for name, facts in made.networks.items()} == {
        "freezing": "none",
        "tfm": "feature",
    }
    assert "norm_0/scale" in made.methods["tfm"].per_task
    assert not made.networks["tfm"]["norm_after"]
    assert made.networks["tfm"]["parameters"] - made.networks["freezing"]["parameters"] == 10
    assert made.differs("tfm") == ""
    for normalization, parameters in (("none", ()), ("feature", ("feature_normalization=false",))):
        options = asked(normalization=normalization)
        options = dataclasses.replace(options, training=dataclasses.replace(options.training, set=parameters))
        made = experiment_of(options, "freezing", "tfm")
        assert (made.differs("tfm"), made.differs("freezing")) == (" without feature normalisation", "")


def test_methods_combine_by_their_names():
    """A part's parameters are set by its own name, in all methods of that name or in one."""
    words = ["strength=2", "ewc.strength=3", "lwf+ewc.ewc.strength=4", "warm_up=0"]
    asked = Options(training=Training(seeds=(1,), set=tuple(words)), network=Network(hidden=(5,)))
    made = experiment_of(asked, "finetune", "ewc", "lwf+ewc", "finetune+ewc")
    assert made.parameters == {
        "finetune": {"warm_up": 0},
        "ewc": {"strength": 3},
        "lwf+ewc": {"strength": 2, "warm_up": 0, "ewc.strength": 4},
        "finetune+ewc": {"warm_up": 0, "ewc.strength": 3},
    }
    hyper = lambda name: made.methods[name].init(jax.random.key(0), Sizes(5, 2, {"train": 3}))[3]
    assert {name: float(value) for name, value in hyper("lwf+ewc").items() if "strength" in name} == {
        "strength": 2,
        "ewc.strength": 4,
    }
    assert [made.methods[name].name for name in made.methods] == ["finetune", "ewc", "lwf+ewc", "finetune+ewc"]
    made = experiment_of(Options(training=Training(seeds=(1,))), "tfm+lwf", "lwf")
    assert {name: facts["normalization"] for name, facts in made.networks.items()} == {
        "tfm+lwf": "feature",
        "lwf": "none",
    }
    assert made.methods["tfm+lwf"].zero_forgetting


def test_every_method_chooses_its_numbers_where_that_is_asked_for():
    asked = Options(training=Training(seeds=(1,), tune=(0.1, 0.02), memory=30, set=("lwf.strength=3",)))
    made = experiment_of(asked, "finetune", "lwf+ewc", "tfm")
    assert {name: (method.strengths, method.search.size) for name, method in made.methods.items()} == {
        "finetune": ((), 2),
        "lwf+ewc": (("strength", "ewc.strength"), 10),
        "tfm": ((), 2),
    }
    assert made.differs("finetune") == " with 30 exemplars tuned"
    offered = experiment_of(Options(training=Training(seeds=(1,), tune=())), "lwf").methods["lwf"].search
    assert offered.size == 3 + 8
    curves = [Curve("finetune")]
    found = [configuration(curves, Options(training=Training(tune=tune)))["training"] for tune in (None, (), (0.1,))]
    assert "tune" not in found[0]
    assert [part.pop("tune") for part in found[1:]] == [[], [0.1]]
    assert found[0] == found[1] == found[2], "as earlier versions have it"


def test_a_memory_for_every_method_that_can_use_one():
    asked = Options(training=Training(seeds=(1,), memory=30, set=("lwf+replay.memory_size=7",)))
    made = experiment_of(asked, "finetune", "joint", "replay", "lwf+replay")
    assert {name: method.memory_size for name, method in made.methods.items()} == {
        "finetune": 30,
        "joint": 0,
        "replay": 30,
        "lwf+replay": 7,
    }
    ends = [made.differs(name) for name in made.methods]
    assert ends == [" with 30 exemplars", "", "", ""]
    curves = [Curve("finetune")]
    with_memory, without = (configuration(curves, Options(training=Training(memory=size))) for size in (3, 0))
    assert with_memory["training"].pop("memory") == 3
    assert with_memory == without, "as earlier versions have it"
    asked = Options(training=Training(memory=30, memory_selection="reservoir"))
    assert configuration(curves, asked)["training"]["memory_selection"] == "reservoir"
    assert parameters_of(["lwf+replay", "replay", "finetune"], asked.training) == {
        "lwf+replay": {"replay.memory_size": 30, "replay.selection": "reservoir"},
        "replay": {"memory_size": 30, "selection": "reservoir"},
        "finetune": {},
    }


def test_a_combination_s_number_is_swept():
    command = cli.parse(["sweep", "lwf", "strength", "1", "--vs", "lwf+ewc.ewc.strength=1,3", "--seed", "1"])
    curves, options = curves_of(command), settle(command.options)
    assert curves[1] == Curve("lwf+ewc", "ewc.strength", (1.0, 3.0))
    make_experiment(curves, options, configuration(curves, options, swept=True))
    wrong = [Curve("lwf+ewc", "lwf.temperature", (1.0, 0.0))], [Curve("lwf+ewc", "ewc.temperature", (1.0,))]
    for one, words in zip(wrong, ("has no hyper-parameter 'lwf.temp", "has no hyper-parameter 'ewc.temp"), strict=True):
        with pytest.raises(ValueError, match=words):
            make_experiment(one, options, configuration(one, options, swept=True))
    one = [Curve("lwf+ewc", "temperature", (1.0, 0.0))]
    with pytest.raises(ValueError, match=r"temperature is 0.0, but must be a finite number above 0"):
        make_experiment(one, options, configuration(one, options, swept=True))


def fake_stream(shape, scenario="task"):
    tables = SimpleNamespace(examples=np.zeros((0, *shape), np.uint8), classes=np.ones((5, 10), bool))
    return SimpleNamespace(tables=tables, scenario=scenario, name="images", mean=0.0, std=1.0)


def test_the_command_can_say_what_the_df_cnn_paper_did(tmp_path):
    """Its network and initialisation, factors, summed loss, histories a task, and a rate that falls with all epochs."""
    words = "--network df_cnn_base --batch-size 10 --optimizer rmsprop_tf1 --rate 1e-4 --rate-decay 2.5e-4 --clip 0"
    words += " --loss-reduction sum --optimizer-state task --epochs 2000 --set df_cnn.sizes=cifar"
    command = tyro.cli(Compare, args=["--methods", "single_task", "df_cnn", *words.split()])
    options = dataclasses.replace(
        settle(command.options), network=dataclasses.replace(command.options.network, normalization="none")
    )
    check_values(options)
    network = making.make_network(options.network, fake_stream((32, 32, 3)))
    params, _ = network.shapes
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 328_426
    assert making.describe(options.network, network) == {
        "name": "df_cnn_base",
        "normalization": "none",
        "parameters": 328_426,
    }
    assert making.make_network(options.network, fake_stream((32, 32, 3), "domain")).per_task == ()
    given = parse_parameters(options.training.set, {"df_cnn": methods.df_cnn})
    method = methods.df_cnn(network, **given["df_cnn"])
    params = jax.eval_shape(lambda key: method.init(key, Sizes(10, 10, {}))[0], jax.random.key(0))
    assert (2, 2, 36) in [leaf.shape for leaf in jax.tree.leaves(params)]
    method = making.amend(method, options.training, streams.lifelong(10, 2000))
    assert float(phase_learning_rate(method, make_clock(round=9, epoch=2000))) == pytest.approx(1 / 6)
    batch = SimpleNamespace(weights=jnp.array([1.0, 1.0, 0.0]))
    assert float(method.adjust_gradients({"w": jnp.float32(3.0)}, None, None, batch)["w"]) == 6.0
    optimizer = making.make_optimizer(options.training)
    assert all("task_slots" in path for path in task_params.leaf_paths(optimizer.init({"w": jnp.zeros(2)})))
    with pytest.raises(UsageError, match=r"is for images of 28x28x1, 32x32x3, 128x128x3.*have shape \(8, 8, 1\)"):
        making.make_network(options.network, fake_stream((8, 8, 1)))
    large = dataclasses.replace(options.network, network="df_cnn_large")
    with pytest.raises(UsageError, match=r"not for 'mnist' \(large\)\. Give --network df_cnn_base"):
        making.make_network(large, fake_stream((28, 28, 1)))
    for setting in ({"hidden": (5,)}, {"channels": ("8",)}, {"dropout": 0.1}):
        wrong = dataclasses.replace(options, network=dataclasses.replace(options.network, **setting))
        with pytest.raises(UsageError, match="left out with --network df_cnn_base"):
            check_values(wrong)


def test_lists(capsys):
    assert cli.main(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(methods.__all__)
    assert {line.split()[0] for line in lines} == set(methods.__all__)
    assert all(len(line.split(maxsplit=1)[1]) > 20 for line in lines)
    assert cli.main(["data"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("digits")
    assert any(line.split()[:2] == ["mnist", "-"] for line in lines)


def test_a_method_is_described_with_its_parameters(capsys):
    assert cli.main(["methods", "lwf"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("lwf: Learning without Forgetting")
    assert "  temperature: a number above 0, 2.0 by default" in lines
    assert "  warm_up: a number at least 0 and below 1, 0.25 by default" in lines
    assert max(map(len, lines)) <= 80
    assert "Did you mean 'lwm' or 'lwf' or 'lfl'?" in refused(capsys, "methods", "lfw")
    assert lines[-2].startswith("Reference: Li and Hoiem, Learning without Forgetting, 2016")
    assert cli.main(["methods", "lwf+ewc"]) == 0
    both = capsys.readouterr().out.splitlines()
    assert both[: len(lines) + 1] == [*lines, ""]
    assert both[len(lines) + 1].startswith("ewc: Elastic weight consolidation: pulls each shared parameter")
    assert "  decay: a number at least 0 and at most 1, 1.0 by default" in both[len(lines) :]
    for name in methods.__all__:
        assert all(one.meaning for one in described(getattr(methods, name))), name


def test_the_rate_falls_as_asked_and_the_first_task_is_as_large():
    method, schedule = methods.finetune(networks.mlp((2,), 2, hidden=(2,))), streams.lifelong(2, 8)
    rate = lambda **chosen: float(
        making.amend(method, Training(**chosen), schedule).phases[0].learning_rate(make_clock(epoch=6))
    )
    assert rate(milestones=(0.5, 0.75)) == pytest.approx(0.01)
    assert rate(cosine=True) == pytest.approx((1 + np.cos(np.pi * 0.75)) / 2, rel=1e-5)
    digits = data.load("digits")
    made = making.make_stream(digits, settle(Options(data=Data(tasks=3, first_classes=6))), 0)
    assert made.tables.classes.sum(axis=1).tolist() == [6, 2, 2]


def test_set_reaches_those_that_have_the_parameter():
    def first(network, *, strength=1.0, layers=2): ...
    def second(network, *, strength=1, flag=False, name="a"): ...

    makers = {"first": first, "second": second}
    given = parse_parameters(["layers=3", "second.strength=4", "flag=true", "name=b"], makers)
    assert given == {"first": {"layers": 3}, "second": {"strength": 4, "flag": True, "name": "b"}}
    for words in (["first.strength=3", "strength=4"], ["strength=4", "first.strength=3"]):
        given = parse_parameters(words, {"first": first, "second": first})
        assert given == {"first": {"strength": 3}, "second": {"strength": 4}}
    given = parse_parameters(["strength=1e2"], {"first": first})
    assert given == {"first": {"strength": 100.0}}
    with pytest.raises(UsageError, match="first has strength, layers; second has strength, flag, name"):
        parse_parameters(["temperature=2"], makers)


def test_words_become_what_a_parameter_takes():
    given = parse_parameters(["candidates=0.3", "growth=0.5,0.1"], {"tfm": methods.tfm})
    assert given == {"tfm": {"candidates": (0.3,), "growth": (0.5, 0.1)}}
    given = parse_parameters(["sizes={'conv_0_0/kernel': (2, 3)}"], {"df_cnn": methods.df_cnn})
    assert given == {"df_cnn": {"sizes": {"conv_0_0/kernel": (2, 3)}}}
    with pytest.raises(UsageError, match=r"needs cifar or .* \{a word: several \(a whole number each\)"):
        parse_parameters(["sizes=3"], {"df_cnn": methods.df_cnn})
    given = parse_parameters(["l1=1e-5,1e-4", "candidates=((1e-5,1e-4),0.1),(2e-5,0.2)"], {"clnp": methods.clnp})
    assert given == {"clnp": {"l1": (1e-5, 1e-4), "candidates": (((1e-5, 1e-4), 0.1), (2e-5, 0.2))}}
    for name in methods.__all__:
        make = getattr(methods, name)
        kinds = typing.get_type_hints(make)
        for parameter, about in list(inspect.signature(make).parameters.items())[1:]:
            assert fits(about.default, kinds[parameter]), (name, parameter)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (Training(optimizer="sgd"), -1.0),
        (Training(optimizer="sgd", clip=0.0), -2.0),
        (Training(optimizer="sgd", clip=0.0, weight_decay=0.5), -4.0),
        (Training(optimizer="momentum", clip=0.0, weight_decay=0.5), -4.0),
        (Training(optimizer="adam", clip=0.0), -1.0),
        (Training(optimizer="adamw", clip=0.0, weight_decay=0.5), -3.0),
        (Training(optimizer="adamw", clip=0.0), -1.0),
        (Training(optimizer="rmsprop", clip=0.0), -1 / math.sqrt(0.1)),
        (Training(optimizer="rmsprop_tf1", clip=0.0), -2 / math.sqrt(0.9 + 0.1 * 4)),
    ],
)
def test_first_update_of_each_optimizer(options, expected):
    """At weight 4 and gradient 2: decay adds 0.5 * 4 to the gradient, or, decoupled, to the update."""
    optimizer = making.make_optimizer(options)
    weight = np.float32(4.0)
    with jax.numpy_dtype_promotion("standard"):  # which Optax's Adam needs
        update, _ = optimizer.update(np.float32(2.0), optimizer.init(weight), weight)
    np.testing.assert_allclose(update, expected, rtol=1e-5)


def test_a_head_on_pooled_maps():
    """Two blocks halve the digits' side of 8 twice: 2 x 2 positions of six maps."""
    stream = conformance.stream()
    for words, width in ((["--pooled", "--hidden"], 6), (["--pooled", "--hidden", "5"], 5), (["--hidden"], 24)):
        options = settle(cli.parse(["run", "lwm", *words, "--channels", "4", "6", "--normalization", "none"]).options)
        network = making.make_network(options.network, stream)
        params, _ = network.shapes
        assert params["head"]["kernel"].shape == (width, 3)
        assert params.get("dense_0", {"kernel": np.zeros([6])})["kernel"].shape[0] == 6
        assert making.describe(options.network, network)["pooled"] is ("--pooled" in words)
    assert settle(cli.parse(["run", "lwm", "--pooled"]).options).network.network == "cnn"


def test_settings_and_configuration():
    assert making.make_settings(Training()).stopping is None
    settings = making.make_settings(Training(patience=7, patience_factor=2.0, patience_restore=True, curves_every=3))
    assert settings.stopping == training.Patience(7, 2.0, 1e-4, True)
    assert settings.curves_every == 3
    changed = Options(output=Output(out="x", quiet=True, overwrite=True, cache=False))
    assert configuration([Curve("joint")], changed) == configuration([Curve("joint")], Options())


def test_of_too_many_classes_none_is_counted_as_taken_for_another():
    images, labels = np.zeros((201, 4, 4, 1), np.float32), np.arange(201)
    stream = streams.split(data.from_arrays(images, labels, images, labels), tasks=3, scenario="class", validation=0.0)
    assert confusion(methods.finetune(networks.mlp((4, 4, 1), 67, hidden=(2,))), [stream], []) is None


def test_xla_flags_only_for_the_version_that_knows_them(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    process.set_xla_flags()
    assert "XLA_FLAGS" not in os.environ  # JAX has been imported here
    for version, users, expected in (
        ("0.10.2", None, process.CONVOLUTION_THREADS),
        ("0.12.0.1", None, None),
        ("0.10.2", "--mine", "--mine"),
    ):
        with monkeypatch.context() as patch:
            patch.delitem(sys.modules, "jax")
            patch.setattr(process.importlib.metadata, "version", lambda name, version=version: version)
            patch.delenv("XLA_FLAGS", raising=False)
            if users:
                patch.setenv("XLA_FLAGS", users)
            process.set_xla_flags()
            assert os.environ.get("XLA_FLAGS") == expected


def test_progress_line():
    event = Event("joint", 3, 1, 1, "train", 4, 20, 0.12345, 0.987, 24, 100)
    expected = "seed 3, task 2/5, train 4/20, loss 0.123, validation 98.7%"
    assert progress.describe(event, 5) == expected
    assert progress.describe(event._replace(seeds=5, validation_accuracy=math.nan), 5).endswith("loss 0.123")
    assert "seed 3 and 4 more" in progress.describe(event._replace(seeds=5), 5)
