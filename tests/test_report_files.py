"""What `cljax report` writes, against numbers worked by hand; the page, as a browser would read it."""

import csv
import functools
import html.parser
import json
import os
import re
import struct
import sys
import types

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from tensorboardX.proto import event_pb2

from cljax import cli, data, methods, networks, report, streams
from cljax.cli.making import make_optimizer, make_settings
from cljax.cli.options import Training
from cljax.report import record as records
from cljax.report import schema, sections, series, tensorboard, weights_and_biases, writing
from cljax.report.figures import Drawing, draw
from cljax.training.driver import drive
from cljax.training.outcome import Results
from tests.records import FIRST, SECOND, make_attention, make_run, make_usage, save

HALF = 12.706204736432095 / 2
"""A pair x, y has the half-width HALF |x - y| of a 95% interval."""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The report of a run folder with two methods and one left out: the folder and what it holds."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    runs = make_run("finetune", FIRST), make_run("tfm", SECOND, feature_usage=make_usage(), attention=make_attention())
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
    plots = [f"{kind}-{name}" for kind in ("accuracy_matrix", "task_accuracy") for name in ("finetune", "tfm")]
    plots += [
        "accuracy_against_forgetting",
        "attention-tfm",
        "average_accuracy",
        "feature_usage-tfm",
        "learning_curves",
        "seen_accuracy",
    ]
    plots = [f"plots/{name}.{form}" for name in (*plots, "training_loss") for form in ("png", "svg", "pdf")]
    assert names == sorted(["report.html", "results.csv", "summary.csv", "table.md", "table.tex", *plots])
    assert (written / "plots" / "average_accuracy.pdf").read_bytes().startswith(b"%PDF")
    with Image.open(written / "plots" / "average_accuracy.png") as image:
        assert min(image.size) > 200


def test_markdown_by_hand(written):
    lines = (written / "table.md").read_text().splitlines()
    assert lines[0] == "## digits, 2 tasks, task-incremental"
    head = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert head[:4] == ["method", "average accuracy", "backward transfer", "forgetting"]
    assert head[4:6] == ["average incremental accuracy", "against finetune"]
    assert lines[4] == "| finetune | 65 ±64 | -30 ±127 | 30 ±127 | 75.0 ±0.0 | - | 1.50 | 1.45M | 17.2k |"
    assert lines[5] == "| tfm | 79 ±25 | 0.0 ±0.0 | 0.0 ±0.0 | 82 ±19 | +14 ±38 | 1.50 | 1.45M | 17.2k |"
    assert lines[7].endswith(r"clnp is left out: it has \<no\> gates")
    line = r"tfm & 79 $\pm$25 & 0.0 $\pm$0.0 & 0.0 $\pm$0.0 & 82 $\pm$19 & +14 $\pm$38 & 1.50 & 1.45M & 17.2k \\"
    assert line in (written / "table.tex").read_text().splitlines()


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
        "task_il_accuracy": "0.9",
    }
    for row in found:
        matrix = {"finetune": FIRST, "tfm": SECOND}[row["method"]]
        value = matrix[int(row["seed"])][int(row["after_task"]) - 1][int(row["task"]) - 1]
        assert float(row["accuracy"]) == value
    first, second = rows(written / "summary.csv")
    numbers = {name: float(first[name]) for name in first if name.endswith(("mean", "ci95")) and first[name]}
    expected = {"average_accuracy_mean": 0.65, "average_accuracy_ci95": HALF * 0.1, "forgetting_mean": 0.3}
    expected |= {"forgetting_ci95": HALF * 0.2, "backward_transfer_mean": -0.3, "backward_transfer_ci95": HALF * 0.2}
    expected |= {"average_incremental_accuracy_mean": 0.75, "average_incremental_accuracy_ci95": 0.0}
    assert numbers == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert (first["seeds"], first["zero_forgetting"], second["zero_forgetting"]) == ("2", "False", "True")
    assert first["task_il_accuracy_mean"] == ""


def test_the_page_is_whole_and_needs_nothing_else(written):
    text = (written / "report.html").read_text()
    page = Reader(text)
    assert "http" not in text.replace("http-equiv", "")
    assert not re.search(r'(?:src|href)="(?!data:|#)', text)
    assert not re.search(r"@import|url\((?!#)", text)
    words = " ".join(page.text)
    for said in (
        "finetune",
        "tfm",
        "digits, 2 tasks, task-incremental",
        "it has <no> gates",
        "training.learning_rate",
        "0.05",
    ):
        assert said in words
    figures = page.all("svg")
    assert len(figures) == 11
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
    assert all(attributes["scope"] == "col" for attributes in table.all("th")[:10])
    assert [attributes["type"] for attributes in table.all("button")] == ["button"] * 10
    keys = [attributes["data-key"] for tag, attributes in table.elements if "data-key" in attributes]
    first, second = keys[:10], keys[10:]
    assert (first[0], second[0]) == ("finetune", "tfm")
    assert first[5] == ""  # the difference of fine-tuning to itself
    numbers = [[float(key or 0) for key in row[1:]] for row in (first, second)]
    assert numbers[0] == pytest.approx([65, -30, 30, 75, 0, 1.5, 1_445_551, 17160, 1], rel=1e-5)
    assert numbers[1] == pytest.approx([79, 0, 0, 82, 14, 1.5, 1_445_551, 17160, 0], rel=1e-5, abs=1e-9)
    script = text[text.index("<script>") :]
    assert "dataset.key" in script
    assert "aria-sort" in script


def test_runs_on_other_divisions_of_the_classes_are_noted(tmp_path):
    """For a seed that both have; another seed may well have another division."""
    divided = lambda *tasks: [{"kind": "split", "classes": list(tasks)}] * 2
    first = {**make_run("finetune", FIRST), "facts": divided(["0", "1"], ["2"])}
    same = {**make_run("lwf", SECOND), "facts": divided(["0", "1"], ["2"])}
    other = {**make_run("ewc", SECOND), "facts": divided(["0", "2"], ["1"])}
    (section,) = report.gather([save(tmp_path / "one", first, same, other)])
    assert section.notes == [
        "ewc has learned other classes than finetune, in other tasks: their numbers are not to be compared."
    ]
    (section,) = report.gather([save(tmp_path / "two", first, {**other, "seeds": [7, 8]})])
    assert section.notes == []


def test_several_folders_side_by_side_and_in_sections(tmp_path):
    config = {**make_run("lwf", FIRST)["config"], "training": {"seeds": [0, 1], "learning_rate": 0.1}}
    first = save(tmp_path / "first", make_run("finetune", FIRST), make_run("lwf", SECOND))
    second = save(tmp_path / "second", make_run("lwf", FIRST, config=config), make_run("ewc", SECOND, config=config))
    other = save(tmp_path / "other", make_run("finetune", FIRST, "class"))
    same, apart = report.gather([first, second, other])
    assert [sections.label(run) for run in same.runs] == ["finetune", "lwf (first)", "lwf (second)", "ewc"]
    assert same.notes == ["second differs from first in training.learning_rate (0.05 in first, 0.1 in second)."]
    assert (apart.title, len(apart.runs)) == ("digits, 2 tasks, class-incremental", 1)
    assert [run["place"] for run in (*same.runs, *apart.runs)] == [0, 1, 2, 3, 0]
    differences = [line.split(" | ")[5] for line in report.markdown(same.runs).splitlines()[2:]]
    assert differences == ["-", "+14 ±38", "0.0 ±0.0", "+14 ±38"]
    twin = save(tmp_path / "again" / "first", make_run("lwf", FIRST))
    labels = [sections.label(run) for section in report.gather([first, twin]) for run in section.runs]
    assert labels == ["finetune", f"lwf ({first})", f"lwf ({twin})"]
    swept = save(tmp_path / "swept", *(make_run("lwf", FIRST, label=f"lwf={value}") for value in (1, 2)))
    assert [sections.label(run) for run in report.gather([swept])[0].runs] == ["lwf=1", "lwf=2"]


def test_an_unfinished_run_says_what_is_missing(tmp_path):
    folder = save(tmp_path / "run", make_run("finetune", FIRST), complete=False)
    assert report.gather([folder])[0].notes == ["The run is not finished: tfm is missing."]


def test_hard_records_are_written_whole(tmp_path, monkeypatch):
    """One seed with an unknown accuracy and one task; class-incremental; revisits."""
    monkeypatch.setattr(writing, "FORMS", ("svg",))  # all of them: `test_the_files_of_a_report`
    single = save(tmp_path / "single", make_run("finetune", [[[None]]], epochs=make_run("a", [[[1.0]]])["epochs"]))
    rounds = {
        "accuracy": [[[0.9, 0.1], [0.5, 0.7], [0.8, 0.6]]],
        "task_il_accuracy": [[[1.0, 0.1], [1.0, 0.7], [1.0, 0.6]]],
    }
    schedule = {"task": [0, 1, 0], "epochs": [2] * 3, "evaluate": [True] * 3}
    wide = [[[0.9, 0.1], [0.8, 0.6]]]
    again = make_run(
        "joint", wide, "class", task_il_accuracy=[[[1.0, 0.1], [1.0, 0.6]]], rounds=rounds, schedule=schedule
    )
    again["epochs"] = make_run("joint", [[[0.0] * 3] * 3])["epochs"]
    revisited = save(tmp_path / "revisited", again)
    place = report.write([single, revisited], tmp_path / "out").parent
    text = (place / "table.md").read_text()
    assert "## digits, 1 task, task-incremental" in text
    assert "| finetune | - | 0.0 | 0.0 | - | - | 1.00 |" in text
    assert "| joint | 70.0 | 80.0 | -10.0 | 10.0 | 80.0 | 1.00 |" in text
    visits = rows(place / "visits.csv")
    assert [(row["visit"], row["of_task"], row["task"], row["accuracy"]) for row in visits][3:5] == [
        ("2", "2", "2", "0.7"),
        ("3", "1", "1", "0.8"),
    ]
    assert rows(place / "results.csv")[0]["accuracy"] == ""
    assert not (place / "plots" / "1-accuracy_matrix-finetune.svg").exists()
    assert (place / "plots" / "2-task_il_accuracy.svg").exists()
    Reader((place / "report.html").read_text())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing", "cannot be read (it is not there). Name a run folder"),
        ("begun", "has no record yet: no method has finished"),
        ("empty", "has no run yet: no method has finished"),
        ("broken", "is not strict JSON"),
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
    mine = {"thesis.txt": "my thesis", "report.html": "<html>my own</html>"}
    for name, words in mine.items():
        (tmp_path / name[:6]).mkdir()
        (tmp_path / name[:6] / name).write_text(words)
    refusals = {
        (str(folder), "--out", str(tmp_path / "thesis")): "holds something else than a report. Choose another",
        (str(folder), "--out", str(tmp_path / "report")): "does not list the files of a report: it is one",
        (str(folder), "--out", str(tmp_path / ("x" * 256))): "cannot be written (File name too long)",
        (str(folder), "--out", str(folder / "record.json")): "is a file, not a folder",
        (str(folder), "--out", "~nobody-there/x"): "no such home folder is known",
        (str(folder), str(folder / "record.json")): "is named twice",
        (): "Of which run? Name its folder",
    }
    for arguments, words in refusals.items():
        assert cli.main(["report", *arguments]) == 2
        assert words in " ".join(capsys.readouterr().err.split())
    for name, words in mine.items():
        assert {path.name: path.read_text() for path in (tmp_path / name[:6]).iterdir()} == {name: words}
    assert not (folder / "report").exists()


@pytest.fixture
def unplotted(monkeypatch):
    """Reports with one figure a method and section, a pixel, so that writing takes no time."""

    def draw(section):
        for run in section.runs:
            yield Drawing("accuracy", sections.label(run), "words", Figure(figsize=(0.1, 0.1), dpi=10))

    monkeypatch.setattr(writing, "draw", draw)


def there(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_report_replaces_its_own_files_and_no_other(tmp_path, capsys, unplotted):
    out = tmp_path / "out"
    folder = save(
        tmp_path / "run", make_run("finetune", [[[0.5]]]), make_run("a/b", [[[0.5]]]), make_run("a b", [[[0.5]]])
    )
    assert cli.main(["report", str(folder), "--out", str(out)]) == 0
    assert capsys.readouterr().out.split() == ["Report:", str(out / "report.html")]
    plots = {f"plots/accuracy-{name}.{form}" for name in ("finetune", "a-b", "a-b-1") for form in writing.FORMS}
    assert there(out).keys() == {"report.html", "results.csv", "summary.csv", "table.md", "table.tex", *plots}
    mine = {"visits.csv": b"mine", "plots/mine.png": b"mine", ".table.md-mydraft0": b"mine", "notes": b"mine"}
    for name, content in mine.items():
        (out / name).write_bytes(content)
    save(folder, make_run("lwf", [[[0.5]]]))
    report.write([folder], out)
    assert "lwf" in (out / "report.html").read_text()
    found = {"report.html", "results.csv", "summary.csv", "table.md", "table.tex"}
    found |= {f"plots/accuracy-lwf.{form}" for form in writing.FORMS}
    assert there(out).keys() == found | mine.keys() - {".table.md-mydraft0"}
    del mine[".table.md-mydraft0"]  # the name of a draft of the report's own
    assert {name: there(out)[name] for name in mine} == mine
    rounds = {"accuracy": [[[0.5], [0.5]]], "task_il_accuracy": [[[0.5], [0.5]]]}
    schedule = {"task": [0, 0], "epochs": [2, 2], "evaluate": [True, True]}
    epochs = make_run("a", [[[0.0] * 2] * 2])["epochs"]
    save(folder, make_run("lwf", [[[0.5]]], rounds=rounds, schedule=schedule, epochs=epochs))
    before = there(out)
    with pytest.raises(ValueError, match=r"visits.csv is not of the report in .*Move it away"):
        report.write([folder], out)
    assert there(out) == before


def test_a_report_killed_anywhere_is_written_anew(tmp_path, monkeypatch, unplotted):
    first = save(tmp_path / "first", make_run("finetune", [[[0.5]]]), make_run("old", [[[0.5]]]))
    second = save(tmp_path / "second", make_run("finetune", [[[0.75]]]), make_run("new", [[[0.5]]]))
    expected = there(report.write([second], tmp_path / "expected").parent)
    whole = writing.files.write_bytes
    for killed_at in range(len(expected) + 1):
        out = tmp_path / str(killed_at)
        (out / "plots").mkdir(parents=True) if killed_at == 0 else report.write([first], out)
        (out / "plots").rmdir() if killed_at == 0 else None
        writes = iter(range(100))

        def write(path, content, writes=writes, killed_at=killed_at):
            if next(writes) == killed_at:
                (path.parent / f".{path.name}-0123abcd").write_bytes(content[:10])
                raise KeyboardInterrupt
            whole(path, content)

        with monkeypatch.context() as patch:
            patch.setattr(writing.files, "write_bytes", write)
            with pytest.raises(KeyboardInterrupt):
                report.write([second], out)
        report.write([second], out)
        assert there(out) == expected


@pytest.mark.parametrize("name", ["plots", "table.md", "report.html"])
def test_a_report_goes_around_nothing_in_its_way(name, tmp_path, unplotted):
    folder, out = save(tmp_path / "run", make_run("finetune", [[[0.5]]])), tmp_path / "out"
    report.write([folder], out)
    target = tmp_path / "elsewhere"
    target.mkdir()
    for path in (out / "plots").iterdir():
        path.unlink()
    (out / "plots").rmdir() if name == "plots" else (out / name).unlink()
    os.mkfifo(out / name) if name == "report.html" else (out / name).symlink_to(target)
    words = "report.html is not a regular file" if name == "report.html" else f"{name} is not of the report"
    with pytest.raises(ValueError, match=words):
        report.write([folder], out)
    assert list(target.iterdir()) == []


def test_the_list_of_a_report_reaches_nothing_else(tmp_path, unplotted):
    folder, out = save(tmp_path / "run", make_run("finetune", [[[0.5]]])), tmp_path / "out"
    report.write([folder], out)
    (tmp_path / "mine.png").write_text("mine")
    page = (out / "report.html").read_text()
    listed = f"../mine.png plots/../../mine.png {tmp_path}/mine.png notes"
    (out / "notes").write_text("mine")
    (out / "report.html").write_text(page.replace("table.md", f"table.md {listed}", 1))
    report.write([folder], out)
    assert (tmp_path / "mine.png").exists()
    assert (out / "notes").exists()


def test_a_full_disk_is_one_paragraph(tmp_path, capsys, monkeypatch, unplotted):
    def full(path, content):
        raise OSError(28, "No space left on device")

    folder = save(tmp_path / "run", make_run("finetune", [[[0.5]]]))
    monkeypatch.setattr(writing.files, "write_bytes", full)
    assert cli.main(["report", str(folder)]) == 2
    assert "cannot be written into" in capsys.readouterr().err


HARD = '_x$^$ [bold]</title>"><b>|`\ud800\x1b[31m\n\u732b :smile: =1'


def test_names_are_no_markup(tmp_path, unplotted):
    run = make_run(HARD, FIRST, data=f"={HARD}", config={"methods": [HARD], HARD: {HARD: [HARD]}}, network={HARD: HARD})
    folder = save(tmp_path / os.fsdecode(b"caf\xe9 [a]*"), run, left_out={HARD: HARD})
    out = report.write([folder]).parent
    text = (out / "report.html").read_text()
    page = Reader(text)
    assert not {"\x1b", "\x00"} & set(text)
    assert page.all("b") == []
    assert len(page.all("title")) == 1
    shown = HARD.replace("\ud800", "\\ud800").replace("\x1b", "\\x1b").replace("\n", "\\n")
    assert f"Continual learning: {shown}" in page.text
    assert shown in page.text
    table = (out / "table.md").read_text().splitlines()
    assert table[0].startswith(r"## =\_x\$^\$ \[bold\]\</title\>")
    assert table[4].startswith(r"| \_x\$^\$ \[bold\]\</title\>" + '"' + r"\>\<b\>\|\`\\ud800")
    assert len(rows(out / "summary.csv")) == 1
    assert rows(out / "summary.csv")[0]["data"] == f"'={shown}"
    assert rows(out / "summary.csv")[0]["folder"] == "caf\\udce9 [a]*"


def places(value, path=()):
    """The path of everything inside a record."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def test_a_changed_record_is_refused_or_reported(monkeypatch):
    """A true record, changed at every place in turn: what is accepted goes through everything but the drawing."""
    rounds = {name: [[[0.9, 0.1], [0.5, 0.7], [0.8, 0.6]]] for name in ("accuracy", "task_il_accuracy")}
    schedule = {"task": [0, 1, 0], "epochs": [1] * 3, "evaluate": [True] * 3}
    points = {"curves": [[[0.9, 0.1], [0.5, 0.7]]], "curve_epochs": [[0, 0, 1], [1, 0, 2]]}
    sweep = {"curve": "lwf.strength", "parameter": "strength", "value": 1.0}
    run = make_run("lwf", FIRST[:1], "class", rounds=rounds, schedule=schedule, sweep=sweep, **points)
    run["feature_usage"] = {"dense_0": {name: values[:1] for name, values in make_usage()["dense_0"].items()}}
    run["epochs"], run["attention"] = make_run("lwf", [[[0.0] * 3] * 3])["epochs"], make_attention()
    record = {
        "format": 1,
        "complete": False,
        "left_out": {"x": "y"},
        "runs": [run, make_run("finetune", FIRST[:1], "class")],
    }
    schema.check(record)
    deep = functools.reduce(lambda inner, _: [inner], range(200), 0)
    wrong = [None, "", "x", -1, 2, 0.5, 10**400, float("nan"), float("inf"), True, [], [[]], [0.5], {}, {"a": 1}, deep]
    changes = [lambda value, new=new: new for new in wrong] + [
        lambda value: value * 2 if isinstance(value, list) else value
    ]
    text, accepted, refused = json.dumps(record), {}, []
    for path in places(record):
        for number, change in enumerate((*changes, None)):
            outer = {"record": json.loads(text)}
            *most, last = ("record", *path)
            holder = functools.reduce(lambda inside, key: inside[key], most, outer)
            if change:
                holder[last] = change(holder[last])
            else:
                del holder[last]
            try:
                schema.check(outer.get("record"))
            except ValueError as error:
                refused.append(str(error))
            else:
                kind = tuple("" if isinstance(key, int) else key for key in path)
                accepted[kind, number] = outer["record"]
    assert len(refused) > 3000
    assert all(5 < len(words) < 300 for words in refused)
    assert len(accepted) > 100
    free = {"config", "network", "versions", "device", "parameters", "left_out", "seconds", "flops", "bytes_per_task"}
    for (kind, _), changed in accepted.items():
        if not changed["runs"] or free & set(kind):
            continue
        monkeypatch.setattr(sections, "read", lambda path, changed=changed: changed)
        for section in report.gather(["x"]):
            writing.summary_rows([section])
            assert all(len(row) == 10 for row in writing.result_rows(section))
            assert all(len(row) == 11 for row in writing.visit_rows(section))
            for run in section.runs:
                visits, accuracy, _ = series.over_stream(run)
                assert accuracy.shape[1] == len(visits)
                for name in ("curves", "loss", "validation_accuracy"):
                    at, values = series.learning_curve(run, name)
                    assert values.shape == (len(run["seeds"]), len(at))


def test_what_is_all_unknown_is_drawn():
    nothing = lambda value: [nothing(item) for item in value] if isinstance(value, list) else None
    run = make_run("lwf", nothing(FIRST))
    run["epochs"] = {name: nothing(values) for name, values in run["epochs"].items()}
    (section,) = [sections.Section("title", [run], [])]
    assert [drawing.name for drawing in draw(section)] == [
        "average_accuracy",
        "seen_accuracy",
        "accuracy_against_forgetting",
        "accuracy_matrix",
        "task_accuracy",
    ]


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


def test_weights_and_biases_get_what_event_files_hold(driven, monkeypatch):
    """By a stand-in for the package, which notes what its runs are given."""
    method, seeds, outcome, place = driven
    begun, logged, ended = [], {}, []

    def init(**given):
        begun.append(given)
        log = lambda values: logged.setdefault(given["name"], []).append(values)
        axis = lambda *names, **named: log({"axis": (*names, named)})
        return types.SimpleNamespace(define_metric=axis, log=log, finish=lambda: ended.append(given["name"]))

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init, __spec__=object()))
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    results = Results(outcome.evaluation, outcome.epochs, None, outcome.failure, None, None)
    with weights_and_biases.Sink(place, method, seeds[0][1].schedule, {"epochs": 2}) as sink:
        for number in range(2):
            sink.visited([3, 1], number, results)
    assert [one["name"] for one in begun] == ended == ["tfm seed 3", "tfm seed 1"]
    assert begun[1]["config"] == {"epochs": 2, "method": "tfm", "seed": 1}
    assert (begun[0]["project"], begun[0]["group"], begun[0]["reinit"]) == ("mine", place.name, "create_new")
    for seed in (3, 1):
        axis, *values = logged[f"tfm seed {seed}"]
        found = {}
        for value in values:
            name, step = next(iter(value)), value["epochs"]
            found.setdefault(name, {})[step] = value[name]
        assert axis == {"axis": ("*", {"step_metric": "epochs"})}
        assert found == read_events(place / "tfm" / f"seed-{seed}")


def test_without_a_key_for_weights_and_biases_nothing_is_begun(tmp_path, capsys, monkeypatch):
    def login():
        raise KeyError("No API key configured.")

    wandb = types.SimpleNamespace(login=login, errors=types.SimpleNamespace(Error=KeyError), __spec__=object())
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    out = tmp_path / "run"
    assert cli.main(["run", "finetune", "--wandb", "--no-cache", "--out", str(out)]) == 2
    words = " ".join(capsys.readouterr().err.split())
    assert "--wandb cannot log in: 'No API key configured.' Or give the key as WANDB_API_KEY" in words
    assert not out.exists()
    monkeypatch.setenv("WANDB_MODE", "offline")
    weights_and_biases.check()


def test_without_the_package_the_command_says_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(tensorboard.PACKAGES, "tensorboard", ("no_such_package", "no_such_package"))
    out = tmp_path / "run"
    assert cli.main(["run", "finetune", "--tensorboard", "--no-cache", "--out", str(out)]) == 2
    words = " ".join(capsys.readouterr().err.split())
    assert "--tensorboard needs the package no_such_package, which is not installed. Install it with pip" in words
    assert not out.exists()


def test_the_record_has_the_capacity_of_owned_features(driven):
    method, _, outcome, _ = driven
    found = records.feature_usage(method.network, outcome.learners)
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
    run = report.run_record(outcome, network=network)
    assert run["feature_usage"] == report.plain(found)
    json.dumps(run, allow_nan=False)
    free = outcome.learners[0]._replace(method_state=())
    assert records.feature_usage(method.network, [free]) is None
