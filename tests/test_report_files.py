"""What `cljax report` writes, against numbers worked by hand; the page, as a browser would read it."""

import csv
import html.parser
import json
import re
import struct

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto import event_pb2

from cljax import cli, data, methods, networks, report, streams
from cljax.cli.building import make_optimizer, make_settings
from cljax.cli.options import Training
from cljax.report import files, sections, tensorboard
from cljax.report import record as records
from cljax.training.driver import drive
from tests.records import FIRST, SECOND, make_capacity, make_run, save

HALF = 12.706204736432095 / 2
"""A pair x, y has the half-width HALF |x - y| of a 95% interval."""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The report of a run folder with two methods and one left out: the folder and what it holds."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    runs = make_run("finetune", FIRST), make_run("tfm", SECOND, capacity=make_capacity())
    save(folder, *runs, left_out={"clnp": "it has <no> gates"})
    return report.write([folder]).parent


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


class Reader(html.parser.HTMLParser):
    """Collects elements with their attributes, the text, and checks that tags are closed in order."""

    VOID = frozenset({"meta", "link", "br", "image", "use", "path", "rect"})

    def __init__(self, text):
        super().__init__()
        self.elements, self.text, self.open = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, words):
        self.text.append(words)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def test_the_files_of_a_report(written):
    names = sorted(str(path.relative_to(written)) for path in written.rglob("*") if path.is_file())
    own = [f"plots/{kind}-{name}.png" for kind in ("accuracy_matrix", "task_accuracy") for name in ("finetune", "tfm")]
    side = ["accuracy_against_forgetting", "average_accuracy", "learning_curves", "training_loss"]
    files = ["report.html", "results.csv", "summary.csv", "table.md", "plots/capacity-tfm.png"]
    assert names == sorted([*files, *own, *(f"plots/{name}.png" for name in side)])
    with Image.open(written / "plots" / "average_accuracy.png") as image:
        assert min(image.size) > 200


def test_markdown_by_hand(written):
    lines = (written / "table.md").read_text().splitlines()
    assert lines[0] == "## digits, 2 tasks, task-incremental"
    head = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert head[:5] == ["method", "average accuracy", "backward transfer", "forgetting", "against finetune"]
    assert lines[4] == "| finetune | 65 ±64 | -30 ±127 | 30 ±127 | - | 1.50 | 1.45M | 17.2k |"
    assert lines[5] == "| tfm | 79 ±25 | 0.0 ±0.0 | 0.0 ±0.0 | +14 ±38 | 1.50 | 1.45M | 17.2k |"
    assert lines[7].endswith("clnp is left out: it has <no> gates")


def test_csv_by_hand(written):
    found = rows(written / "results.csv")
    assert len(found) == 2 * 2 * 2 * 2
    assert found[0] == {
        "data": "digits",
        "scenario": "task",
        "tasks": "2",
        "folder": "first",
        "method": "finetune",
        "seed": "0",
        "after_task": "1",
        "task": "1",
        "accuracy": "0.9",
        "task_aware": "0.9",
    }
    for row in found:
        matrix = {"finetune": FIRST, "tfm": SECOND}[row["method"]]
        value = matrix[int(row["seed"])][int(row["after_task"]) - 1][int(row["task"]) - 1]
        assert float(row["accuracy"]) == value
    first, second = rows(written / "summary.csv")
    numbers = {name: float(first[name]) for name in first if name.endswith(("mean", "ci95")) and first[name]}
    expected = {"average_accuracy_mean": 0.65, "average_accuracy_ci95": HALF * 0.1, "forgetting_mean": 0.3}
    expected |= {"forgetting_ci95": HALF * 0.2, "backward_transfer_mean": -0.3, "backward_transfer_ci95": HALF * 0.2}
    assert numbers == pytest.approx(expected, rel=1e-5)
    assert (first["seeds"], first["forgets_nothing"], second["forgets_nothing"]) == ("2", "False", "True")
    assert first["task_aware_accuracy_mean"] == ""


def test_the_page_is_whole_and_needs_nothing_else(written):
    text = (written / "report.html").read_text()
    page = Reader(text)
    assert "http" not in text.replace("http-equiv", "")
    assert not re.search(r'(?:src|href)="(?!data:|#)', text)
    assert not re.search(r"@import|url\((?!#)", text)
    words = " ".join(page.text)
    for said in ("finetune", "tfm", "digits, 2 tasks, task-incremental", "it has <no> gates", "training.rate", "0.05"):
        assert said in words
    figures = page.all("svg")
    assert len(figures) == 9
    assert all(figure["role"] == "img" and len(figure["aria-label"]) > 30 for figure in figures)
    assert figures[0]["aria-label"].endswith("finetune 65 ±64; tfm 79 ±25.")
    names = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(names) == len(set(names))
    wanted = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    assert wanted
    assert wanted <= set(names)


def test_the_page_has_both_themes(written):
    text = (written / "report.html").read_text()
    light, dark = re.search(
        r":root\{(--c.*?)\}\n@media \(prefers-color-scheme: dark\)\{:root\{(--c.*?)\}\}", text
    ).groups()
    light, dark = ([part.split(":") for part in theme.split(";")] for theme in (light, dark))
    assert [name for name, _ in light] == [name for name, _ in dark]
    assert all(one != other for (_, one), (_, other) in zip(light, dark, strict=True))
    drawn = text[text.index("<body>") :]
    used = set(re.findall(r"var\((--c[0-9a-f]{6})\)", drawn))
    assert {"--c0072b2", "--cd55e00", "--c24292e"} <= used <= {name for name, _ in light}
    assert not any(f"#{name[3:]}" in drawn for name, _ in light)


def test_the_table_is_a_table_and_sorts_by_its_keys(written):
    text = (written / "report.html").read_text()
    table = Reader(text[text.index('<table class="sortable">') : text.index("</table>") + 8])
    assert len(table.all("caption")) == 1
    assert all(attributes["scope"] == "col" for attributes in table.all("th")[:9])
    assert [attributes["type"] for attributes in table.all("button")] == ["button"] * 9
    keys = [attributes["data-key"] for tag, attributes in table.elements if "data-key" in attributes]
    first, second = keys[:9], keys[9:]
    assert (first[0], second[0]) == ("finetune", "tfm")
    assert first[4] == ""  # the difference of fine-tuning to itself
    numbers = [[float(key or 0) for key in row[1:]] for row in (first, second)]
    assert numbers[0] == pytest.approx([65, -30, 30, 0, 1.5, 1_445_551, 17160, 1], rel=1e-5)
    assert numbers[1] == pytest.approx([79, 0, 0, 14, 1.5, 1_445_551, 17160, 0], rel=1e-5, abs=1e-9)
    script = text[text.index("<script>") :]
    assert "dataset.key" in script
    assert "aria-sort" in script


def test_several_folders_side_by_side_and_in_sections(tmp_path):
    config = {**make_run("lwf", FIRST)["config"], "training": {"seeds": [0, 1], "rate": 0.1}}
    first = save(tmp_path / "first", make_run("finetune", FIRST), make_run("lwf", SECOND))
    second = save(tmp_path / "second", make_run("lwf", FIRST, config=config), make_run("ewc", SECOND, config=config))
    other = save(tmp_path / "other", make_run("finetune", FIRST, "class"))
    same, apart = report.gather([first, second, other])
    assert [sections.label(run) for run in same.runs] == ["finetune", "lwf (first)", "lwf (second)", "ewc"]
    assert same.notes == ["second differs from first in training.rate (0.05 in first, 0.1 in second)."]
    assert (apart.title, len(apart.runs)) == ("digits, 2 tasks, class-incremental", 1)
    assert [run["place"] for run in (*same.runs, *apart.runs)] == [0, 1, 2, 3, 0]
    differences = [line.split(" | ")[4] for line in report.markdown(same.runs).splitlines()[2:]]
    assert differences == ["-", "+14 ±38", "0.0 ±0.0", "+14 ±38"]
    twin = save(tmp_path / "again" / "first", make_run("lwf", FIRST))
    labels = [sections.label(run) for section in report.gather([first, twin]) for run in section.runs]
    assert labels == ["finetune", f"lwf ({first})", f"lwf ({twin})"]
    swept = save(tmp_path / "swept", *(make_run("lwf", FIRST, label=f"lwf={value}") for value in (1, 2)))
    assert [sections.label(run) for run in report.gather([swept])[0].runs] == ["lwf=1", "lwf=2"]


def test_an_unfinished_run_says_what_is_missing(tmp_path):
    folder = save(tmp_path / "run", make_run("finetune", FIRST), complete=False)
    assert report.gather([folder])[0].notes == ["The run is not finished: tfm is missing."]


def test_hard_records_are_written_whole(tmp_path):
    """One seed with an unknown accuracy and one task; class-incremental; revisits."""
    single = save(tmp_path / "single", make_run("finetune", [[[None]]], epochs=make_run("a", [[[1.0]]])["epochs"]))
    rounds = {"accuracy": [[[0.9, 0.1], [0.5, 0.7], [0.8, 0.6]]], "task_aware": [[[1.0, 0.1], [1.0, 0.7], [1.0, 0.6]]]}
    schedule = {"task": [0, 1, 0], "epochs": [2] * 3, "evaluate": [True] * 3}
    wide = [[[0.9, 0.1], [0.8, 0.6]]]
    again = make_run("joint", wide, "class", task_aware=[[[1.0, 0.1], [1.0, 0.6]]], rounds=rounds, schedule=schedule)
    again["epochs"] = make_run("joint", [[[0.0] * 3] * 3])["epochs"]
    revisited = save(tmp_path / "revisited", again)
    place = report.write([single, revisited], tmp_path / "out").parent
    text = (place / "table.md").read_text()
    assert "## digits, 1 task, task-incremental" in text
    assert "| finetune | - | 0.0 | 0.0 | - | 1.00 |" in text
    assert "| joint | 70.0 | 80.0 | -10.0 | 10.0 | 1.00 |" in text
    visits = rows(place / "visits.csv")
    assert [(row["visit"], row["of_task"], row["task"], row["accuracy"]) for row in visits][3:5] == [
        ("2", "2", "2", "0.7"),
        ("3", "1", "1", "0.8"),
    ]
    assert rows(place / "results.csv")[0]["accuracy"] == ""
    assert not (place / "plots" / "1-accuracy_matrix-finetune.png").exists()
    assert (place / "plots" / "2-task_aware_accuracy.png").exists()
    Reader((place / "report.html").read_text())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing", "cannot be read (it is not there). Name a run folder"),
        ("begun", "has no record yet: no method has finished"),
        ("empty", "has no run yet: no method has finished"),
        ("broken", "is not a run's record: it is no JSON"),
        ("list", "is not a run's record: it has no 'runs'"),
    ],
)
def test_no_record_is_one_paragraph(name, words, tmp_path, capsys):
    save(tmp_path / "empty")
    for folder, text in (("begun", None), ("broken", "{"), ("list", "[]")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text("{}")
        if text:
            (tmp_path / folder / "record.json").write_text(text)
    assert cli.main(["report", str(tmp_path / name)]) == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert words in " ".join(found.err.split())


def test_the_command_refuses_what_is_no_report_and_what_is_named_twice(tmp_path, capsys):
    folder = save(tmp_path / "run", make_run("finetune", FIRST[:1]))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    refusals = {
        (str(folder), "--out", str(tmp_path / "mine")): "holds something else than a report. Choose another",
        (str(folder), str(folder / "record.json")): "is named twice",
        (): "Of which run? Name its folder",
    }
    for arguments, words in refusals.items():
        assert cli.main(["report", *arguments]) == 2
        assert words in " ".join(capsys.readouterr().err.split())
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    assert not (folder / "report").exists()


def test_the_command_writes_and_replaces_a_report(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(files, "draw", lambda section: iter(()))
    folder, out = save(tmp_path / "run", make_run("finetune", [[[0.5]]])), tmp_path / "out"
    (out / "plots").mkdir(parents=True)
    (out / "report.html").write_text("earlier")
    (out / "plots" / "old.png").write_text("")
    assert cli.main(["report", str(folder), "--out", str(out)]) == 0
    assert capsys.readouterr().out.split() == ["Report:", str(out / "report.html")]
    assert "finetune" in (out / "report.html").read_text()
    assert not (out / "plots" / "old.png").exists()


@pytest.fixture(scope="module")
def driven(tmp_path_factory):
    """TFM driven over two tasks with two seeds and a sink: what it was given, the outcome, the event files' folder."""
    place = tmp_path_factory.mktemp("tensorboard")
    seeds = [(seed, streams.split(data.load("digits"), tasks=2, seed=seed, epochs=2)) for seed in (3, 1)]
    network = networks.mlp((8, 8, 1), 5, hidden=(6,), mean=seeds[0][1].mean, std=seeds[0][1].std)
    method = methods.tfm(network)
    options = Training(epochs=2, batch_size=64)
    with tensorboard.Sink(place, method, seeds[0][1].schedule) as sink:
        optimizer, settings = make_optimizer(options), make_settings(options)
        outcome = drive(method, optimizer, seeds, settings, vectorize=True, visited=sink.visited)
    return method, seeds, outcome, place


def read_events(folder):
    """`{tag: {step: value}}` of the one event file in a folder: records of a length, a check sum, data, a check sum."""
    (path,) = folder.iterdir()
    content, place, found = path.read_bytes(), 0, {}
    while place < len(content):
        (length,) = struct.unpack_from("<Q", content, place)
        event = event_pb2.Event.FromString(content[place + 12 : place + 12 + length])
        place += length + 16
        for value in event.summary.value:
            found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


def test_event_files_hold_what_the_record_holds(driven):
    _, seeds, outcome, place = driven
    for member, (seed, _) in enumerate(seeds):
        found = read_events(place / "tfm" / f"seed-{seed}")
        for name, values in outcome.epochs._asdict().items():
            assert found[f"epoch/{name}"] == dict(zip(range(1, 5), values[member].ravel().tolist(), strict=True))
        accuracy = outcome.evaluation.accuracy[member]
        for task in range(2):
            expected = {2: float(accuracy[0, task]), 4: float(accuracy[1, task])}
            assert found[f"accuracy/task-{task + 1}"] == expected
        expected = {2: float(accuracy[0, 0]), 4: float(accuracy[1].mean())}
        assert found["accuracy/tasks-so-far"] == pytest.approx(expected, rel=1e-6)


def test_without_the_package_the_command_says_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tensorboard, "PACKAGE", "no_such_package")
    out = tmp_path / "run"
    assert cli.main(["run", "finetune", "--tensorboard", "--no-cache", "--out", str(out)]) == 2
    words = " ".join(capsys.readouterr().err.split())
    assert "--tensorboard needs the package no_such_package, which is not installed. Install it with pip" in words
    assert not out.exists()


def test_the_record_has_the_capacity_of_owned_features(driven):
    method, seeds, outcome, _ = driven
    found = records.capacity(method.network, outcome.learners)
    assert list(found) == ["dense_0"]
    for seed, learner in enumerate(outcome.learners):
        owner = np.asarray(learner.method_state.owner["dense_0"])
        for task in range(2):
            parts = {name: float(value[seed, task]) for name, value in found["dense_0"].items()}
            assert parts["used"] == pytest.approx((owner <= task).mean())
            assert parts["new"] == pytest.approx((owner == task).mean())
            assert parts["free"] == pytest.approx((owner > task).mean())
            # Every weight is drawn at random, so all older features feed the newer task.
            assert parts["reused"] == pytest.approx((owner < task).mean())
    network = {"name": "mlp"}
    config = {"training": {"curves_every": 0}}
    run = report.run_record(method, seeds, outcome, network=network, config=config)
    assert run["capacity"] == report.plain(found)
    json.dumps(run, allow_nan=False)
    free = outcome.learners[0]._replace(method_state=())
    assert records.capacity(method.network, [free]) is None
