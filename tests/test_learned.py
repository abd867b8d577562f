"""`--add-task`, `--from` and `cljax predict`: what a run has kept is gone on from, and asked."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

from cljax import cli, data, streams
from cljax.cli import main, making
from cljax.cli.learned import kept, standardised
from cljax.cli.options import settle
from cljax.cli.past import added, options_of
from tests import conformance
from tests.shared import bits

SMALL = [
    "--hidden",
    "8",
    "--epochs",
    "1",
    "--seeds",
    "3",
    "4",
    "--optimizer",
    "adam",
    "--lr",
    "0.01",
    "--quiet",
    "--no-cache",
]


def command(*words):
    return main(list(map(str, words)))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A run of two tasks that kept its learners; one that went on with a folder of images; and the images."""
    place = tmp_path_factory.mktemp("learned")
    few = conformance.digits()
    for split, images, labels in (
        ("train", few.train_images, few.train_labels),
        ("test", few.test_images, few.test_labels),
    ):
        for number in np.flatnonzero(labels >= 7):
            folder = place / "late" / split / f"digit {labels[number]}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[number, ..., 0]).save(folder / f"{number}.png")
    words = ("freezing", *SMALL, "--tune", 0.01, "--class-order", 0, 1, 2, 3, "--tasks", 2, "--keep-learners")
    assert command("run", *words, "--out", place / "first") == 0
    went = command(
        "run",
        "--from",
        place / "first",
        "--add-task",
        place / "late",
        "--fraction",
        "0.3",
        "--keep-learners",
        "--quiet",
        "--no-cache",
        "--out",
        place / "second",
    )
    assert went == 0
    return place


def record_of(folder):
    return json.loads((folder / "record.json").read_text())["runs"][0]


def test_a_run_goes_on_with_a_task_that_nobody_had_planned(folders):
    first, second = (record_of(folders / name) for name in ("first", "second"))
    assert second["seeds"] == [3, 4]
    assert second["schedule"]["task"] == [0, 1, 2]
    for old, new in zip(first["accuracy"], second["accuracy"], strict=True):
        assert [row[:2] for row in new[:2]] == old
        assert [row[2] for row in new[:2]] == [None, None]
        assert new[2][:2] == old[1]  # nothing is forgotten
    assert second["zero_forgetting"] is True
    assert second["facts"][0]["classes"] == [["0", "1"], ["2", "3"], ["digit 7", "digit 8", "digit 9"]]
    old, new = (kept(str(folders / name), "freezing", 4).learner for name in ("first", "second"))
    np.testing.assert_array_equal(new.params["head"]["kernel"][:2, :, :2], old.params["head"]["kernel"])
    np.testing.assert_array_equal(new.params["dense_0"]["kernel"], old.params["dense_0"]["kernel"])


def test_images_are_standardised_as_they_were_whatever_part_of_them_is_read(folders):
    """By the first seed's numbers, as the one network of all seeds has been trained."""
    stream = streams.split(data.load("digits"), tasks=2, class_order=range(4), seed=3, validation=0.1)
    runs = [kept(str(folders / name), "freezing", seed) for name in ("first", "second") for seed in (3, 4)]
    assert {(run.stream.mean, run.stream.std) for run in runs} == {(stream.mean, stream.std)}
    images = stream.tables.examples[:9]
    for first, second in zip(runs[:2], runs[2:], strict=True):
        old, new = (run.method.predict(run.learner, images, 1)[:, :2] for run in (first, second))
        assert bits(old) == bits(new)


def test_tasks_that_are_learned_keep_their_schedule(folders, tmp_path):
    """Random rounds follow from the epochs and the first seed of the run that they were planned for."""
    config = json.loads((folders / "first" / "config.json").read_text())
    config["data"]["schedule"], config["training"] = "multi-task", {**config["training"], "epochs": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    planned = settle(options_of(str(tmp_path)))
    later = dataclasses.replace(
        planned,
        data=dataclasses.replace(planned.data, past=str(tmp_path)),
        training=dataclasses.replace(planned.training, epochs=6, seeds=(4, 3)),
    )
    alone = dataclasses.replace(later, data=planned.data)
    first, second, other = (making.make_schedule(options).task.tolist() for options in (planned, later, alone))
    assert first == second != other


def test_a_sweep_s_folder_has_options_as_any(folders, tmp_path):
    config = json.loads((folders / "second" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "sweep": [["lwf.strength", [1.0]]]}))
    found, other = options_of(str(tmp_path)), options_of(str(folders / "second"))
    assert (found.data, found.training, found.network) == (other.data, other.training, other.network)


def test_what_was_added_before_stays(folders):
    options = options_of(str(folders / "second"))
    assert added(options) == ((str(folders / "late"), options),)
    assert options.training.seeds == (3, 4)
    assert options.data.past == str(folders / "first")


def test_what_was_learned_has_the_epochs_and_the_fraction_of_its_own_run(folders):
    """Of a third run, which has others."""
    second = settle(options_of(str(folders / "second")))
    third = dataclasses.replace(
        second,
        data=dataclasses.replace(second.data, past=str(folders / "second"), fraction=(0.5,)),
        training=dataclasses.replace(second.training, epochs=7),
    )
    stream = making.add_tasks(making.make_stream(making.load_data(third, "scan"), third, 3), third, 3)
    first = streams.split(data.load("digits"), tasks=2, class_order=range(4), seed=3, validation=0.1)
    late = data.load(str(folders / "late"))
    added_first, added_now = (streams.split(late, tasks=1, seed=3, validation=0.1, fraction=f) for f in (0.3, 0.5))
    sizes = [one.tables.train.size.tolist() for one in (first, added_first, added_now)]
    assert stream.tables.train.size.tolist() == [size for own in sizes for size in own]
    assert stream.schedule.epochs.tolist() == [1, 1, 1, 7]


def test_a_learner_is_made_with_its_own_settings_among_those_of_others(folders, tmp_path):
    shutil.copytree(folders / "first", tmp_path / "both")
    config = json.loads((tmp_path / "both" / "config.json").read_text())
    training = {**config["training"], "set": ["lwf.strength=2", "strength=3"]}
    (tmp_path / "both" / "config.json").write_text(
        json.dumps({**config, "methods": ["freezing", "lwf"], "training": training})
    )
    assert kept(str(tmp_path / "both"), "freezing", 3).method.name == "freezing"
    again = cli.parse(["run", "freezing", "--from", str(tmp_path / "both"), "--add-task", "x"])
    assert again.options.training.set == ("strength=3",), "which is refused where the method has none"


def test_a_network_that_is_begun_with_standardises_as_it_was_trained(folders):
    options = options_of(str(folders / "first"))
    place = str(folders / "first" / "learners" / "freezing" / "seed-4")
    begun = dataclasses.replace(options, training=dataclasses.replace(options.training, init=place))
    trained, other = kept(str(folders / "first"), "freezing", 3).stream, streams.split(data.load("digits"), tasks=5)
    ((_, found),) = standardised([(0, other)], begun, "freezing")
    assert (found.mean, found.std) == (trained.mean, trained.std) != (other.mean, other.std)
    coloured = other._replace(mean=(0.5, 0.5, 0.5), std=(0.1, 0.1, 0.1))
    ((_, found),) = standardised([(0, coloured)], begun, "freezing")
    assert (found.mean, found.std) == (coloured.mean, coloured.std)


def test_predict_prints_the_classes_of_a_task(folders, capsys):
    images = sorted((folders / "late" / "test" / "digit 8").glob("*.png"))[:2]
    assert command("predict", folders / "second", *images, "--task", 2, "--top", 2) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    learner, method, *_ = kept(str(folders / "second"), "freezing", 3)
    for path, line in zip(images, lines, strict=True):
        logits = np.asarray(method.predict(learner, np.asarray(Image.open(path))[None, ..., None], 2))[0, :3]
        shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        best = np.argsort(-shares)[:2]
        assert line == f"{path}  " + "  ".join(f"digit {7 + place} {100 * shares[place]:.1f}%" for place in best)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("predict", "second", "IMAGE", "--task", "3"), "--task is 3, but must be a whole number from 0 to 2"),
        (("predict", "second", "IMAGE"), "Which task? Give --task and its number: 0: 0, 1; 1: 2, 3; 2: digit 7"),
        (("predict", "second", "IMAGE", "--task", "0", "--seed", "9"), "There is no learner in"),
        (("predict", "second", "IMAGE", "--task", "0", "--method", "lwf"), "There is no learner in"),
        (("predict", "permuted", "IMAGE", "--task", "0"), "permute the pixels, each in its own way"),
        (("predict", "domain", "IMAGE"), "Which task? Give --task and its number: 0: 0, 1; 1: 2, 3; 2: digit 7"),
        (("predict", "second", "--task", "0"), "Of which images? Name them: cljax predict"),
        (("predict", "nowhere", "IMAGE", "--task", "0"), "has no learners. Run a method there with --keep-learners"),
        (("predict", "second", "second/config.json", "--task", "0"), "config.json"),
        (("run", "--from", "nowhere", "--add-task", "late"), "--from is nowhere/config.json, which cannot be read"),
        (("run", "--from", "first"), "--add-task is empty, but must be given with --from, and only then"),
        (("run", "freezing", "--add-task", "late"), "--add-task is"),
        (("run", "lwf", "--from", "first", "--add-task", "late"), "There is no learner in"),
        (("run", "--from", "first", "--add-task", "late", "--hidden", "9"), "--hidden is 9, but was 8 in"),
        (
            ("run", "--from", "first", "--add-task", "late", "--class-order", "random"),
            "--class-order is random, but was",
        ),
        (
            ("run", "--from", "first", "--add-task", "late", "--scenario", "class"),
            "--scenario is class, but was task in",
        ),
        (("run", "--from", "first", "--add-task", "late", "--init", "x"), "--init is x, but was not given in"),
        (
            ("sweep", "ewc", "strength", "1", "2", "--from", "untuned", "--add-task", "late"),
            "A sweep learns all tasks anew",
        ),
        (("run", "--from", "first", "--add-task", "late", "--optimizer", "sgd"), "--optimizer is sgd, but was adam in"),
        (
            ("run", "--from", "first", "--add-task", "late", "--norm-after"),
            "--norm-after is True, but was not given in",
        ),
        (("run", "--from", "first", "--add-task", "late", "--clip", "0"), "--clip is not given, but was 1.0 in"),
        (("run", "--from", "first", "--add-task", "late", "--driver", "host"), "Give --driver scan"),
        (("run", "--from", "each", "--add-task", "late"), "begin with --normalize first"),
        (("predict", "each", "IMAGE", "--task", "0"), "by the numbers of its data set (--normalize each)"),
    ],
)
def test_what_cannot_be_is_told_in_a_line(folders, words, told, monkeypatch, capsys):
    monkeypatch.chdir(folders)
    changes = {"permuted": {"scenario": "permuted"}, "domain": {"scenario": "domain"}}
    changes |= {"each": {"normalize": "each", "data": ["digits", "digits"]}, "untuned": {}}
    for name in changes.keys() & words:  # a run told so would have kept the same
        shutil.copytree("second", name, dirs_exist_ok=True)
        path = pathlib.Path(name) / "config.json"
        config = json.loads(path.read_text())
        config["data"] |= changes[name]
        config["training"]["tune"] = None if name == "untuned" else config["training"]["tune"]
        path.write_text(json.dumps(config))
    image = str(next((folders / "late" / "test" / "digit 8").glob("*.png")))
    assert (
        command(*(image if word == "IMAGE" else word for word in words), *(["--quiet"] if words[0] == "run" else []))
        == 2
    )
    assert told in " ".join(capsys.readouterr().err.split())
