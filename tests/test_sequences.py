"""Streams of several data sets, of superclasses, and of images labelled anew; orders of classes."""

import chex
import jax
import numpy as np
import optax
import pytest

from cljax import cli, data, methods, networks, streams, training
from cljax.cli import making, rules
from cljax.cli.options import Data, Options, settle
from cljax.data.superclasses import CIFAR100, groups_of


def made(count, classes, shape, name, low=0, high=256, seed=0, dtype=np.uint8):
    """A data set of random images, as many for training as for testing."""
    generator = np.random.default_rng(seed)
    parts = [generator.integers(low, high, (count, *shape)).astype(dtype) for _ in range(2)]
    labels = np.arange(count) % classes
    return data.from_arrays(parts[0], labels, parts[1], labels, name=name)


COLOUR = made(40, 4, (8, 8, 3), "colour")
GREY = made(30, 3, (6, 6, 1), "grey", high=100, seed=1)


def standardised(stream, rows):
    """What a network makes of examples."""
    return (np.asarray(stream.tables.examples[rows], np.float64) / 255 - stream.mean) / stream.std


# Several data sets


def test_a_data_set_after_the_other_by_hand():
    stream = streams.sequence([COLOUR, GREY], validation=0, epochs=3)
    tables = stream.tables
    assert tables.examples.shape == (140, 8, 8, 3)
    np.testing.assert_array_equal(tables.train.index, range(70))
    np.testing.assert_array_equal(tables.train.labels, [*COLOUR.train_labels, *GREY.train_labels])
    np.testing.assert_array_equal(tables.test.index, range(70, 140))
    assert (tables.train.size.tolist(), tables.classes.sum(axis=1).tolist()) == ([40, 30], [4, 3])
    np.testing.assert_array_equal(tables.examples[:40], COLOUR.train_images)
    np.testing.assert_array_equal(tables.examples[70:110], COLOUR.test_images)
    grey = tables.examples[40:70]
    assert (grey == grey[..., :1]).all()
    assert abs(grey.mean() - GREY.train_images.mean()) < 1
    # the first task's normalisation serves all
    plain = streams.split(COLOUR, tasks=1, validation=0)
    assert (stream.mean, stream.std) == (plain.mean, plain.std)
    facts = stream.facts
    assert (facts["kind"], facts["data"], facts["groups"]) == ("sequence", "colour+grey", [["colour"], ["grey"]])
    assert facts["classes"] == [["colour/0", "colour/1", "colour/2", "colour/3"], ["grey/0", "grey/1", "grey/2"]]
    assert stream.schedule.epochs.tolist() == [3, 3]


def test_several_tasks_a_data_set_and_a_schedule():
    schedule = streams.visits([(2, 1), (0, 1), (1, 1), (3, 1)])
    stream = streams.sequence([COLOUR, GREY], tasks=4, schedule=schedule, fraction=(1, 1, 0.5, 1), class_order="random")
    assert stream.facts["groups"] == [["grey"], ["colour"], ["colour"], ["grey"]]
    assert stream.facts["fraction"] == [0.5, 1.0, 1.0, 1.0]
    longer = streams.append(stream, streams.split(COLOUR, tasks=1))
    assert longer.facts["groups"][3:] == [["grey"], ["colour"]]
    turned = streams.with_schedule(longer, streams.visits([(4, 1), (0, 1)]))
    assert turned.facts["groups"][:3] == [["colour"], ["grey"], ["colour"]]
    roomy = streams.pad(stream, tasks=5, examples=len(stream.tables.examples))
    with pytest.raises(ValueError, match=r"has room for tasks to come .*, and pad it then"):
        streams.with_schedule(roomy, schedule)
    assert stream.tables.train.size.tolist() == [10, 18, 18, 9]
    shown = {name for names in stream.facts["classes"][1:3] for name in names}
    assert shown == {f"colour/{label}" for label in range(4)}
    order = np.random.default_rng([0, 0]).permutation(4)  # as split draws it
    assert stream.facts["classes"][1] == [f"colour/{label}" for label in order[:2]]


def test_combined_once_the_seeds_share_the_examples():
    whole = data.combine([COLOUR, GREY])
    built = [streams.sequence(whole, seed=seed) for seed in (0, 1)]
    assert built[0].tables.examples is built[1].tables.examples is whole.images
    _, axes = streams.stack(built)
    assert axes.examples is None
    assert axes.train.index == 0
    chex.assert_trees_all_equal(built[0].tables, streams.sequence([COLOUR, GREY]).tables)


def test_each_data_set_standardised_by_its_own():
    """All values fit, and only rounding is lost."""
    stream = streams.sequence([COLOUR, GREY], normalize="each", validation=0, image_size=6)
    for rows, source in ((slice(0, 40), data.combine([COLOUR], image_size=6)), (slice(40, 70), GREY)):
        found, images = standardised(stream, rows), source.train_images / 255
        expected = (images - images.mean(axis=(0, 1, 2))) / images.std(axis=(0, 1, 2))
        rounding = 0.5 / 255 / np.asarray(stream.std)
        assert (np.abs(found - expected) <= rounding + 1e-9).all()
        np.testing.assert_allclose(found.mean(axis=(0, 1, 2)), 0, atol=0.01)
        np.testing.assert_allclose(found.std(axis=(0, 1, 2)), 1, atol=0.01)
    extremes = data.from_arrays(
        np.array([0, 255, 0, 0], np.uint8).reshape(4, 1, 1, 1), [0, 1, 0, 1], np.zeros((2, 1, 1, 1), np.uint8), [0, 1]
    )
    narrow = data.from_arrays(
        np.array([10, 12, 10, 12], np.uint8).reshape(4, 1, 1, 1),
        [0, 1, 0, 1],
        np.array([255, 0], np.uint8).reshape(2, 1, 1, 1),
        [0, 1],
    )
    both = data.combine([extremes, narrow], normalize="each")
    assert (both.images.min(), both.images.max()) == (0, 255)  # the table of all values is used whole


def test_floats_are_standardised_exactly_and_grey_of_colour_is_the_mean():
    first, second = (made(20, 2, (5,), name, high=high, dtype=np.float32) for name, high in (("a", 10), ("b", 90)))
    both = data.combine([first, second], normalize="each")
    for part in (both.images[:20], both.images[20:40]):
        np.testing.assert_allclose(part.mean(axis=0), 0, atol=1e-6)
        np.testing.assert_allclose(part.std(axis=0), 1, atol=1e-6)
    assert both.statistics == ((0.0,) * 5, (1.0,) * 5)
    backwards = streams.sequence([GREY, COLOUR], image_size=8, validation=0)
    np.testing.assert_array_equal(backwards.tables.examples[30:70, ..., 0], np.rint(COLOUR.train_images.mean(axis=-1)))


def test_a_data_set_may_come_twice():
    both = data.combine([GREY, GREY])
    assert (both.name, both.classes[0], both.classes[3]) == ("grey-0+grey-1", "grey-0/0", "grey-1/0")


@pytest.mark.parametrize(
    ("given", "options", "words"),
    [
        ([COLOUR, GREY], {"tasks": 3}, r"tasks \(3\) must be a multiple of the 2 data sets"),
        ([COLOUR, GREY], {"normalize": "none"}, "normalize is 'none', but must be 'first' or 'each'"),
        ([], {}, r"datasets is \[\], but must be a list of one data set"),
        (COLOUR, {}, "'colour' is one. Give several"),
        ([COLOUR, made(4, 2, (9,), "flat")], {}, r"'flat' are uint8 of shape \(9,\), but those of 'colour'"),
        ([made(4, 2, (9,), "a"), made(4, 2, (8,), "b")], {}, r"Only uint8 images are resized, .* 'b' .* \(8,\)"),
        ([COLOUR, GREY], {"image_size": (1, 2, 3)}, r"image size is \(1, 2, 3\)"),
    ],
)
def test_sequences_that_cannot_be(given, options, words):
    with pytest.raises(ValueError, match=words):
        streams.sequence(given, **options)


def test_read_on_demand_and_multi_label_are_refused():
    lazy = COLOUR._replace(images=data.Images([COLOUR.images], (8, 8, 3), name="colour"))
    many = GREY._replace(labels=np.zeros((60, 3), np.float32))
    for other, words in ((lazy, "read on demand.*data.load"), (many, "multi-label.*from_tasks")):
        with pytest.raises(ValueError, match=words):
            data.combine([COLOUR, other])


# Superclasses and orders


def cifar100(names):
    images = np.zeros((200, 2, 2, 3), np.uint8)
    labels = np.arange(200) % 100
    return data.from_arrays(images, labels, images[:100], labels[:100], classes=names, name="cifar100")


OFFICIAL = sorted(name for names in CIFAR100.values() for name in names)


def test_the_table_of_cifar_100():
    """Twenty superclasses of five, each class in one; those of the first classes as the data set stores them."""
    assert len(CIFAR100) == 20
    assert len(set(OFFICIAL)) == 100
    coarse = {label: number for number, (_, classes) in enumerate(groups_of(OFFICIAL)) for label in classes}
    stored = [4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7]
    assert [coarse[label] for label in range(25)] == stored
    assert groups_of([str(label) for label in range(100)], name="cifar100") == groups_of(OFFICIAL)


def test_superclasses_are_tasks_alone_or_several_together():
    dataset = cifar100(OFFICIAL)
    stream = streams.by_superclass(dataset, validation=0)
    assert stream.tables.classes.shape == (20, 5)
    assert stream.facts["groups"][0] == ["aquatic_mammals"]
    assert stream.facts["classes"][0] == ["beaver", "dolphin", "otter", "seal", "whale"]
    assert stream.facts["class_order"][:5] == [4, 30, 55, 72, 95]
    few = streams.by_superclass(dataset, tasks=6, order="random", seed=3, validation=0)
    drawn = np.random.default_rng([3, 0]).permutation(20)
    names = list(CIFAR100)
    assert few.facts["groups"] == [[names[group] for group in part] for part in np.array_split(drawn, 6)]
    assert few.facts["kind"] == "superclass"
    assert few.tables.train.size.tolist() == [40, 40, 30, 30, 30, 30]
    some = streams.by_superclass(dataset, order=[19, 0], schedule=streams.visits([(1, 1), (0, 1)]))
    assert some.facts["groups"] == [["aquatic_mammals"], ["vehicles_2"]]
    labels = streams.superclass_labels(dataset)
    assert labels[[4, 30, 0]].tolist() == [0, 0, 4]


@pytest.mark.parametrize(
    ("groups", "options", "words"),
    [
        (None, {}, "known of CIFAR-100 only"),
        ({"a": ["0", "x"]}, {}, "'x' of the superclass 'a' is no class"),
        ({"a": [0, 1], "b": ["1"]}, {}, "'1' of the superclass 'b' is in more than one"),
        ({"a": [0], "b": []}, {}, "'b' has no classes"),
        ({"a": [0], "b": [1]}, {"tasks": 3}, r"more tasks \(3\) than superclasses \(2\)"),
        ({"a": [0], "b": [1]}, {"order": [2]}, "superclasses 0 to 1"),
    ],
)
def test_superclasses_that_cannot_be(groups, options, words):
    with pytest.raises(ValueError, match=words):
        streams.by_superclass(GREY, groups=groups, **options)


def uneven():
    """Thirty training and fifteen test images, whose pixels are their numbers, of three classes of different sizes."""
    labels = [0] * 6 + [1] * 9 + [2] * 15, [0] * 3 + [1] * 5 + [2] * 7
    images = np.arange(45, dtype=np.uint8)[:, None, None, None]
    return data.from_arrays(images[:30], labels[0], images[30:], labels[1], classes=["a", "b", "c"], name="uneven")


def test_one_class_against_as_many_of_all_others():
    dataset = uneven()
    stream = streams.one_vs_all(dataset, class_order=[2, 0, 1], validation=0, seed=4)
    assert stream.facts["classes"] == [["others", "c"], ["others", "a"], ["others", "b"]]
    assert (stream.facts["kind"], stream.facts["class_order"]) == ("one_vs_all", [2, 0, 1])
    assert stream.tables.examples is dataset.images
    assert stream.tables.classes.shape == (3, 2)
    for part, sizes, place in ((stream.tables.train, (30, 12, 18), 0), (stream.tables.test, (14, 6, 10), 1)):
        assert part.size.tolist() == list(sizes)
        for task, label in enumerate([2, 0, 1]):
            mine = slice(part.start[task], part.start[task] + part.size[task])
            rows, own = part.index[mine], dataset.labels[part.index[mine]]
            assert len(set(rows.tolist())) == len(rows)
            assert ((rows >= 30) == place).all()
            np.testing.assert_array_equal(part.labels[mine], own == label)
            every = np.flatnonzero((dataset.labels == label) & ((np.arange(45) >= 30) == place))
            assert set(rows[own == label].tolist()) == set(every.tolist())
            assert (own == label).sum() == (own != label).sum()
    others = lambda seed: streams.one_vs_all(dataset, tasks=1, validation=0, seed=seed).tables.train.index.tolist()
    assert others(4) == others(4)
    assert others(4) != others(5)
    few = streams.one_vs_all(dataset, tasks=2, schedule=streams.multi_task(2, 6, seed=0))
    assert few.tables.classes.shape == (2, 2)
    assert set(few.schedule.epochs.tolist()) == {1}
    for options, words in (({"tasks": 4}, "tasks is 4"), ({"scenario": "one"}, "The scenario is 'one'")):
        with pytest.raises(ValueError, match=words):
            streams.one_vs_all(dataset, **options)


def test_others_are_of_the_same_part_of_every_class():
    images = np.arange(1200).reshape(1200, 1, 1, 1).astype(np.float32)
    labels = np.arange(1200) % 3
    dataset = data.from_arrays(images[:900], labels[:900], images[900:], labels[900:])
    tables = streams.one_vs_all(dataset, validation=0.2, fraction=0.1, seed=3).tables
    assert [part.size.tolist() for part in (tables.train, tables.validation, tables.test)] == [
        [2 * size] * 3 for size in (24, 60, 100)
    ]
    for part in (tables.train, tables.validation, tables.test):
        rows = part.index.reshape(3, -1)
        own = [set(rows[task][labels[rows[task]] == task].tolist()) for task in range(3)]
        for task in range(3):
            others = set(rows[task].tolist()) - own[task]
            assert len(others) == len(own[task])
            assert others <= set.union(*own)
    assert not set(tables.train.index.tolist()) & set(tables.validation.index.tolist())
    fractions = [0.1, 1.0, 0.1]
    stream = streams.one_vs_all(dataset, validation=0.2, fraction=fractions, seed=3)
    assert stream.tables.train.size.tolist() == [48, 480, 48]
    assert stream.facts["fraction"] == fractions
    visits = streams.visits([(2, 1), (0, 1), (1, 1)])
    stream = streams.one_vs_all(dataset, validation=0.2, fraction=[0.1, 0.5, 1.0], seed=3, schedule=visits)
    assert stream.facts["fraction"] == [1.0, 0.1, 0.5], "as the tasks, by their first visits"
    assert stream.facts["tasks"] == [2, 0, 1]
    for options, words in (
        ({"fraction": 0.0}, "fraction of training"),
        ({"fraction": [0.1]}, "1 fractions were given"),
    ):
        with pytest.raises(ValueError, match=words):
            streams.one_vs_all(dataset, **options)


def test_the_order_of_1993():
    stream = streams.split(cifar100(OFFICIAL), tasks=10, class_order="icarl", seed=7)
    assert stream.facts["class_order"][:10] == [68, 56, 78, 8, 23, 84, 90, 65, 74, 76]
    shuffled = np.arange(100)
    np.random.RandomState(1993).shuffle(shuffled)
    assert stream.facts["class_order"] == shuffled.tolist()


# Images labelled anew


def test_tasks_that_share_images_with_different_labels():
    fine = COLOUR.labels
    coarse, partly = fine // 2, np.where(fine == 3, -1, fine)
    stream = streams.relabelled(COLOUR, [fine, coarse, partly], names=[list("abcd"), ["ab", "cd"], list("abc")])
    tables = stream.tables
    assert tables.examples is COLOUR.images
    assert tables.classes.sum(axis=1).tolist() == [4, 2, 3]
    assert tables.train.size.tolist() == [36, 36, 27]
    assert tables.validation.size.tolist() == [4, 4, 3]
    rows = [
        tables.train.index[start : start + size]
        for start, size in zip(tables.train.start, tables.train.size, strict=True)
    ]
    np.testing.assert_array_equal(rows[0], rows[1])  # what is validated in one task is trained on in none
    assert set(rows[2].tolist()) < set(rows[0].tolist())
    for task, labels in enumerate((fine, coarse, partly)):
        start, size = tables.test.start[task], tables.test.size[task]
        np.testing.assert_array_equal(
            tables.test.labels[start : start + size], labels[tables.test.index[start : start + size]]
        )
    assert stream.facts["classes"] == [["a", "b", "c", "d"], ["ab", "cd"], ["a", "b", "c"]]
    assert stream.facts["kind"] == "relabelled"
    few = streams.relabelled(COLOUR, [fine, coarse], fraction=0.05)
    assert few.tables.train.size.tolist() == [4, 2]  # one example of each class of the task


def test_multi_label_tasks_of_shared_images_and_a_run():
    wide, narrow = np.zeros((80, 3), np.float32), np.ones((80, 2), np.float32)
    stream = streams.relabelled(COLOUR, [wide, narrow], validation=0)
    assert stream.tables.train.labels.shape == (80, 3)
    assert stream.tables.train.labels[40:].tolist() == [[1, 1, 0]] * 40
    stream = streams.relabelled(COLOUR, [COLOUR.labels, COLOUR.labels // 2], validation=0)
    network = networks.mlp((8, 8, 3), 4, hidden=(3,), mean=stream.mean, std=stream.std)
    run = training.make_run(methods.finetune(network), optax.sgd(1.0), stream, training.Settings(learning_rate=0.01))
    result = run(jax.random.key(0), stream.tables)
    assert run.step.traces == 1
    assert np.isfinite(result.evaluation.accuracy).all()


@pytest.mark.parametrize(
    ("labels", "options", "words"),
    [
        ([COLOUR.labels[:5]], {}, "'colour' hold 80 examples, but the labels of task 0 hold 5"),
        ([COLOUR.labels - 2], {}, "labels of task 0 go down to -2"),
        ([COLOUR.labels, np.full(80, -1)], {}, "Task 1 has no training examples: none has a label from 0, or all"),
        ([np.where(np.arange(80) == 79, 4, COLOUR.labels)], {}, "out of range: example 79 has label 4"),
        ([COLOUR.labels], {"names": [["a"]]}, r"names are of \[1\] classes, but the tasks have \[4\]"),
        ([], {}, "tasks is 0, but must be a whole number from 1"),
    ],
)
def test_labels_that_cannot_be(labels, options, words):
    with pytest.raises(ValueError, match=words):
        streams.relabelled(COLOUR, labels, **options)


# The command


def test_the_command_builds_these_streams(monkeypatch):
    known = {"colour": COLOUR, "grey": GREY, "cifar100": cifar100(OFFICIAL)}
    monkeypatch.setattr(data, "load", lambda name, data_dir=None, image_size=None: known[name])

    def stream(**chosen):
        options = settle(Options(data=Data(**chosen)))
        rules.check_values(options)
        return making.make_stream(making.load_data(options, "scan"), options, 0)

    both = stream(data=("colour", "grey"), normalize="each", fraction=(1.0, 0.5))
    chex.assert_trees_all_equal(
        both.tables, streams.sequence([COLOUR, GREY], normalize="each", fraction=(1, 0.5)).tables
    )
    assert stream(data=("colour", "grey"), tasks=4).facts["groups"] == [["colour"], ["colour"], ["grey"], ["grey"]]
    coarse = stream(data=("cifar100",), division="superclass")
    assert len(coarse.facts["groups"]) == 20
    known["uneven"] = uneven()
    binary = stream(data=("uneven",), division="one-vs-all", tasks=3, validation=0.0)
    chex.assert_trees_all_equal(binary.tables, streams.one_vs_all(uneven(), validation=0).tables)
    assert settle(Options(data=Data(division="one-vs-all"))).data.tasks == 10
    order = stream(data=("cifar100",), tasks=10, class_order="icarl").facts["class_order"]
    assert order[:4] == [68, 56, 78, 8]
    assert settle(Options()).data.tasks == 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "a", "b", "--tasks", "3"], "--tasks is 3, but must be a multiple of the 2 data sets"),
        (["--data", "a", "b", "--scenario", "permuted"], "--scenario is permuted, but must be another"),
        (["--data", "a", "b", "--division", "superclass"], "--division is superclass, but must be class"),
        (["--division", "one-vs-all", "--scenario", "class"], "--scenario is class, but must be task for one-vs-all"),
        (["--normalize", "each"], "--normalize is each, but must be left out"),
        (["--fraction", "0.1", "0.2"], "--fraction is 0.1 0.2, but must be one number, or one a task"),
        (["--fraction", "0"], "--fraction is 0.0, but must be a finite number above 0 and of at most 1"),
        (["--image-size", "0"], "--image-size is 0, but must be a whole number from 1 to 32768"),
        (["--augment", "flip", "flip"], "--augment is flip flip"),
    ],
)
def test_options_are_checked_first(arguments, words):
    options = settle(cli.parse(["run", "finetune", *arguments]).options)
    with pytest.raises(rules.UsageError, match=words):
        rules.check_values(options)


def test_data_prepare_is_a_command_of_its_own(tmp_path, capsys):
    asked = cli.parse(["data", "prepare", "mnist", "--from", "here"]).action
    assert (asked.name, asked.archives, asked.verify, asked.data_dir) == ("mnist", "here", True, None)
    assert cli.main(["data", "prepare", "mnist", "--from", str(tmp_path), "--data-dir", str(tmp_path)]) == 2
    assert "lacks t10k-images-idx3-ubyte.gz" in " ".join(capsys.readouterr().err.split())
    assert cli.main(["data", "--data-dir", str(tmp_path), "prepare", "digits"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "digits" / "1.0.0")


def test_the_command_learns_listed_classes_of_several_data_sets_in_that_order():
    """Their numbers go on from one data set to the next; the tasks need not be a multiple of the sets."""
    chosen = Data(data=("colour", "grey"), class_order=(0, 1, 3, 2, 4, 5), tasks=3, validation=0.0)
    options = settle(Options(data=chosen))
    rules.check_values(options)
    both = data.combine([COLOUR, GREY], image_size=8)
    stream = making.make_stream(both, options, 0)
    names = [both.classes[label] for label in chosen.class_order]
    assert stream.facts["classes"] == [names[:2], names[2:4], names[4:]]
