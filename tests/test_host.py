"""Data read as a run goes on: the same steps on the same batches as with data on the device."""

from __future__ import annotations

import functools
import gc
import time
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cljax import data, methods, streams, task_params, training
from cljax.cli.experiment import choose_driver
from cljax.cli.options import Data, Options, Training, UsageError
from cljax.data.builders import silence
from cljax.data.on_demand import ReadError, batches
from cljax.data.statistics import statistics_of_rows
from cljax.training import bounds, streaming
from cljax.training.driver import drive
from cljax.training.engine import make_engine
from cljax.training.loop import Entry, agenda, make_programs
from cljax.training.start import NOTHING
from cljax.training.streaming import Streamed, sequence
from cljax.types import Memory
from tests import conformance
from tests.shared import assert_close, bits, small
from tests.zero_forgetting import leaving

MOMENTUM, RATE = conformance.OPTIMIZERS["momentum"]
SETTINGS = training.Settings(batch_size=8, learning_rate=RATE, evaluation_batch=8, validate=True)


def lazily(array, name="few digits"):
    return data.Images([array], array.shape[1:], name=name)


def lazy_stream(stream):
    """The same stream, its examples read on demand."""
    return stream._replace(tables=stream.tables._replace(examples=lazily(np.asarray(stream.tables.examples))))


def engine_of(method, stream, settings=SETTINGS, optimizer=MOMENTUM):
    return make_engine(
        method, optimizer, settings, scenario=stream.scenario, max_examples=streams.max_examples(stream.tables)
    )


def programs_of(method, stream, settings=SETTINGS, optimizer=MOMENTUM):
    """The engine, a run's programs and the streamed ones, its entries, tables on the device and read lazily."""
    engine = engine_of(method, stream, settings, optimizer)
    programs = make_programs(method, engine, stream.schedule)
    entries = [Entry(*map(np.int32, entry)) for entry in agenda(method, stream.schedule)]
    tables = jax.tree.map(jnp.asarray, stream.tables)
    read = tables._replace(examples=lazily(stream.tables.examples))
    return engine, programs, Streamed(programs, settings), entries, tables, read


@functools.cache
def finetuned():
    """Fine-tuning with patience, at the beginning of its first task."""
    stream = conformance.stream()
    settings = SETTINGS._replace(stopping=training.Patience())
    made = programs_of(methods.finetune(small(stream, hidden=(3,))), stream, settings)
    key = jax.random.key(3)
    return *made, key, jax.jit(made[1].start)(key, made[4], NOTHING)


def copied(tree):
    return jax.tree.map(jnp.array, tree)


def nothing(run):
    del run


def test_each_step_is_the_engine_s_and_an_epoch_that_of_the_scan(monkeypatch):
    engine, programs, streamed, entries, tables, read, key, run = finetuned()
    told = []
    with monkeypatch.context() as patch:
        patch.setattr(streaming, "STEPS", 1)
        tell = lambda run: told.append(copied(run.state))
        after = Streamed(programs, engine.settings).epoch(copied(run), entries[0], read, key, tell)
    scanned = jax.jit(programs.epoch)(run, entries[0], tables, key)
    assert_close(after.visit, scanned.visit, 1e-5)
    assert_close(after.state.learner, scanned.state.learner, 1e-5)
    assert_close(after.state.best, scanned.state.best, 1e-5)
    assert int(after.state.epoch) == 1
    assert bits(after.state.learner.hyper) == bits(run.state.learner.hyper)

    epoch = jax.jit(programs.open)(run, entries[0], tables, key)
    assert [int(state.progress.step) for state in told] == list(range(1, int(epoch.steps) + 1))
    now = epoch.clock._replace(progress=jnp.float32(0.0))
    draw = jax.jit(streams.draw, static_argnums=5)
    batch = draw(tables, tables.train, epoch.order, epoch.examples, jnp.int32(0), SETTINGS.batch_size)
    state = run.state
    stepped, loss, _ = engine.step(state.learner, state.mask, now, batch, jax.random.fold_in(epoch.key, 1))
    assert_close(told[0].learner, stepped, 1e-5)
    np.testing.assert_allclose(told[0].progress.total / told[0].progress.weight, loss, rtol=1e-5)
    assert float(told[-1].progress.weight) == float(epoch.examples)
    in_chunks = streamed.epoch(copied(run), entries[0], read, key, nothing)
    assert_close(in_chunks.state.learner, after.state.learner, 1e-5)


def test_nothing_is_left_of_programs_that_are_no_longer_used():
    """What JAX keeps of a traced callback must not hold the feed, whose programs hold what was traced."""
    stream = lazy_stream(conformance.stream())
    method = methods.finetune(small(stream))
    streamed = Streamed(make_programs(method, engine_of(method, stream), stream.schedule), SETTINGS)
    tables = jax.device_put(stream.tables._replace(examples=None))._replace(examples=stream.tables.examples)
    streamed.start(jax.random.key(0), tables, NOTHING)
    feed = weakref.ref(streamed._feed)
    assert feed() is not None
    del streamed
    gc.collect()
    assert feed() is None


def test_weights_that_are_not_finite_are_noted():
    """In a place that the loss does not see: the logit of a class that the task does not have."""
    _, _, streamed, entries, _, read, key, run = finetuned()
    tables = read._replace(classes=read.classes.at[:, 2].set(False))
    run = copied(run)
    run.state.learner.params["head"]["bias"] = run.state.learner.params["head"]["bias"].at[2].set(jnp.nan)
    learner = run.state.learner
    if hasattr(learner, "classes"):
        run = run._replace(state=run.state._replace(learner=learner._replace(classes=tables.classes)))
    labels = tables.train.labels % 2
    tables = tables._replace(train=tables.train._replace(labels=labels))
    tables = tables._replace(validation=tables.validation._replace(labels=tables.validation.labels % 2))
    after = streamed.epoch(run, entries[0], tables, key, nothing)
    assert np.isfinite(after.visit.epochs.loss[0, 0])
    steps = -(-int(read.train.size[0]) // SETTINGS.batch_size)
    assert [int(value) for value in after.state.failure] == [0, 0, 0, 0, steps - 1, 2]
    assert bool(after.state.done)


def test_fifty_steps_in_float64_are_those_of_the_scan():
    stream = conformance.stream()
    method = methods.finetune(small(stream))
    settings = SETTINGS._replace(batch_size=1, validate=False)
    _, programs, streamed, entries, tables, read = programs_of(method, stream, settings)
    key = jax.random.key(1)
    run = jax.jit(programs.start)(key, tables, NOTHING)
    assert stream.tables.train.size[0] >= 50
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        double = lambda leaf: leaf.astype(jnp.float64) if leaf.dtype == jnp.float32 else leaf
        learner = run.state.learner
        parts = {part: jax.tree.map(double, getattr(learner, part)) for part in task_params.PARTS}
        run = run._replace(state=run.state._replace(learner=learner._replace(**parts)))
        fed = streamed.epoch(copied(run), entries[0], read, key, nothing)
        scanned = jax.jit(programs.epoch)(run, entries[0], tables, key)
    assert {leaf.dtype for leaf in jax.tree.leaves(fed.state.learner.params)} == {np.dtype(np.float64)}
    assert_close(fed.state.learner.params, scanned.state.learner.params, 1e-9)


@pytest.mark.parametrize("stop", [0, 2, -1])
def test_an_epoch_taken_up_in_its_middle_ends_with_the_same_bits(stop):
    _, _, _, entries, _, read, key, run = finetuned()
    kept = []
    hold = lambda run: kept.append(jax.tree.map(np.array, run))  # as a checkpoint does: on the host, by value
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "STEPS", 2)
        whole = streamed_in_twos().epoch(copied(run), entries[0], read, key, hold)
        again = streamed_in_twos().epoch(jax.tree.map(jnp.asarray, kept[stop]), entries[0], read, key, nothing)
    assert bits(again) == bits(whole)


def test_an_epoch_without_jit_is_the_same():
    """A chunk's first step is not 0 where Python's own loop does the steps."""
    _, _, _, entries, _, read, key, run = finetuned()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "STEPS", 2)
        whole = streamed_in_twos().epoch(copied(run), entries[0], read, key, nothing)
        with jax.disable_jit():
            found = streamed_in_twos().epoch(copied(run), entries[0], read, key, nothing)
    assert_close(found.state.learner.params, whole.state.learner.params, 1e-4)


@functools.cache
def streamed_in_twos():
    """The programs of `finetuned`, compiled for chunks of two steps."""
    engine, programs = finetuned()[:2]
    return Streamed(programs, engine.settings)


def probing(network, memory_size):
    """A method that learns nothing, and notes each batch of an epoch with some bits of its key."""
    base = methods.finetune(network)

    def init(key, sizes):
        notes = {name: jnp.full((40, 8), -9, jnp.int32) for name in ("labels", "tasks", "position", "weights")}
        seen = {"inputs": jnp.zeros((40, 8, *network.inputs), jnp.uint8), "key": jnp.zeros(40, jnp.uint32)}
        return {"place": jnp.zeros(())}, {"key": jnp.zeros((), jnp.uint32)}, {**notes, **seen}, {}

    def loss(params, learner, clock, batch, key):
        collections = learner.collections if key is None else {"key": jax.random.bits(key)}
        return params["place"] * jnp.sum(batch.weights), (leaving(collections), {})

    def after_step(previous, learner, clock, batch, gradients):
        place = previous.params["place"].astype(jnp.int32)
        found = {**batch._asdict(), "key": learner.collections["key"]}
        note = lambda name, notes: notes.at[place].set(found[name].astype(notes.dtype))
        state = {name: note(name, notes) for name, notes in learner.method_state.items()}
        return learner._replace(params={"place": previous.params["place"] + 1}, method_state=state)

    return base._replace(
        init=init,
        loss=loss,
        after_step=after_step,
        predict=lambda learner, inputs, task: inputs.reshape(len(inputs), -1)[:, :10].astype(jnp.float32),
        per_task=(),
        train_on="seen",
        memory_size=memory_size,
    )


def test_batches_and_keys_are_exactly_those_of_the_scan():
    """Drawn from seen tasks and from memory, a last partial batch wrapping around; with validation on seen tasks."""
    stream = streams.permuted(data.from_arrays(*(part[:51] for part in digit_parts())), tasks=3)
    method = probing(small(stream), memory_size=6)
    stream = stream._replace(schedule=streams.visits([(0, 1), (1, 1), (2, 1), (1, 1)]))
    _, programs, streamed, entries, tables, read = programs_of(method, stream, optimizer=optax.sgd(1.0))
    key, entry = jax.random.key(0), entries[1]
    run = jax.jit(programs.start)(key, tables, NOTHING)
    number = jnp.arange(6, dtype=jnp.int32)
    exemplars = jnp.broadcast_to(number.astype(jnp.uint8)[:, None, None, None], (6, 8, 8, 1))
    learner = run.state.learner._replace(memory=Memory(exemplars, number, number % 2, number != 2))
    run = run._replace(state=run.state._replace(learner=learner))
    fed = streamed.epoch(copied(run), entry, read, key, nothing)
    scanned = jax.jit(programs.epoch)(run, entry, tables, key)
    assert_close(fed.visit, scanned.visit, 1e-6)
    fed, scanned = fed.state, scanned.state
    assert bits(fed.learner.method_state) == bits(scanned.learner.method_state)
    notes = jax.tree.map(np.asarray, fed.learner.method_state)
    expected = 2 * int(stream.tables.train.size[0]) + 5
    assert (notes["weights"] == 1).sum() == expected
    assert expected % 8 != 0
    assert len(set(notes["key"].tolist())) == int(np.ceil(expected / 8)) + 1
    remembered = (notes["position"] == -1) & (notes["weights"] == 1)
    assert sorted(notes["labels"][remembered].tolist()) == [0, 1, 3, 4, 5]
    np.testing.assert_array_equal(notes["inputs"][remembered][:, 3, 3, 0], notes["labels"][remembered])


def digit_parts():
    digits = conformance.digits()
    return digits.train_images, digits.train_labels, digits.test_images, digits.test_labels


def test_a_whole_stream_is_that_of_the_scan():
    """With folds that call back, exemplars, a revisit and class-incremental reading."""
    stream = conformance.stream(schedule=streams.visits([(0, 1), (1, 1), (0, 1)]), scenario="class")
    method = methods.icarl(small(stream), memory_size=20)
    settings = SETTINGS._replace(validate=False)
    scanned = drive(method, MOMENTUM, [(5, stream)], settings)
    fed = drive(method, MOMENTUM, [(5, lazy_stream(stream))], settings)
    assert (fed.traces, scanned.share_waiting) == (1, None)
    assert fed.flops == scanned.flops
    assert 0 <= fed.share_waiting[0] <= 1
    assert fed.evaluation.accuracy.shape == (1, 3, 3)
    np.testing.assert_allclose(fed.evaluation.accuracy, scanned.evaluation.accuracy, rtol=1e-6)
    np.testing.assert_allclose(fed.evaluation.task_il_accuracy, scanned.evaluation.task_il_accuracy, rtol=1e-6)
    for one, other in zip(fed.epochs, scanned.epochs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4)
    learners = (fed.learners[0], scanned.learners[0])
    assert_close(*((one.params, one.collections, one.method_state) for one in learners), 1e-4)
    assert bits(learners[0].memory) == bits(learners[1].memory)


def test_seeds_side_by_side_and_drivers_that_do_not_fit_are_refused():
    stream = lazy_stream(conformance.stream())
    method = methods.finetune(small(stream))
    with pytest.raises(ValueError, match=r"seeds cannot run side by side.*vectorize=False"):
        drive(method, MOMENTUM, [(0, stream)], SETTINGS, vectorize=True)
    with pytest.raises(ValueError, match=r"'few digits' are read on demand.*training.drive.*data.load"):
        training.make_run(method, MOMENTUM, stream, SETTINGS)


class Failing:
    """A source of digits that has lost one."""

    def __init__(self, images, lost):
        self.images, self.lost = images, lost

    def __repr__(self):
        return "folder 'digits'"

    def __len__(self):
        return len(self.images)

    def __getitem__(self, row):
        if row == self.lost:
            raise FileNotFoundError(f"there is no file {row}.png")
        return self.images[row]


def test_an_example_lost_during_a_run_is_named_in_epochs_and_in_hooks():
    _, _, streamed, entries, tables, _, key, run = finetuned()
    images = np.asarray(tables.examples)
    lost = int(tables.train.index[int(tables.train.start[0]) + 3])
    broken = data.Images([Failing(images, lost)], images.shape[1:], name="few digits")
    words = f"Example {lost} of folder 'digits' in the data set 'few digits' could not be read.*no file {lost}.png"
    with pytest.raises(ReadError, match=words):
        streamed.epoch(copied(run), entries[0], tables._replace(examples=broken), key, nothing)

    stream = conformance.stream()
    method = methods.finetune(small(stream))
    shown = lambda total, batch: total + jnp.sum(batch.inputs.astype(jnp.float32).sum((1, 2, 3)) * batch.weights)

    def begin_task(learner, clock, fold, key):
        total = fold(shown, jnp.float32(0.0)) + fold(shown, jnp.float32(0.0), "validation")
        return learner._replace(hyper={**learner.hyper, "learning_rate": total})

    _, _, streamed, _, tables, read = programs_of(method._replace(begin_task=begin_task), stream)
    begin = lambda tables: float(streamed.start(key, tables, NOTHING).state.learner.hyper["learning_rate"])
    parts = (stream.tables.train, stream.tables.validation)
    index = np.concatenate([part.index[part.start[0] : part.start[0] + part.size[0]] for part in parts])
    assert begin(read) == images[index].sum()
    with pytest.raises(ReadError, match=words):
        begin(tables._replace(examples=broken))
    assert begin(read) == images[index].sum()


def test_the_share_of_waiting_is_measured():
    _, _, streamed, entries, tables, read, key, run = finetuned()

    class Slow(Failing):
        def __getitem__(self, row):
            time.sleep(0.01)
            return self.images[row]

    slow = data.Images([Slow(np.asarray(tables.examples), None)], (8, 8, 1), name="slow")
    fractions = []
    for examples in (read.examples, slow):
        before = streamed.reading
        streamed.epoch(copied(run), entries[0], tables._replace(examples=examples), key, nothing)
        waiting, running = streamed.reading - before
        fractions.append(waiting / running)
    assert 0 <= fractions[0] <= 1
    assert 0.5 < fractions[1] <= 1


@functools.cache
def tiny_images(count):
    return np.random.default_rng(count).integers(0, 256, (count, 4, 3, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with a small data set as TFDS prepares it: ArrayRecord files of PNG images."""
    import tensorflow_datasets as tfds
    from PIL import Image

    class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = "tiny"
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {"image": tfds.features.Image(shape=(4, 3, 3)), "label": tfds.features.ClassLabel(num_classes=3)}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(count) for split, count in (("train", 30), ("test", 11))}

        def _generate_examples(self, count):
            for number, image in enumerate(tiny_images(count)):
                yield number, {"image": Image.fromarray(image), "label": number % 3}

    folder = tmp_path_factory.mktemp("tfds")
    with silence():
        Tiny(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


def test_opened_data_are_loaded_data_read_on_demand(prepared):
    opened = data.open("tiny", prepared)
    labels_file = prepared / "tiny" / "1.0.0" / "cljax-labels.npz"
    assert labels_file.exists()
    loaded = data.load("tiny", prepared)
    np.testing.assert_array_equal(opened.images.take(range(41)), loaded.images)
    np.testing.assert_array_equal(opened.test_images.take([10, 0, 0]), loaded.test_images[[10, 0, 0]])
    np.testing.assert_array_equal(opened.images[3], loaded.images[3])
    assert (opened.labels.tolist(), opened.labels.dtype) == (loaded.labels.tolist(), np.int32)
    assert opened._replace(images=0, labels=0) == loaded._replace(images=0, labels=0)
    assert (opened.images.shape, opened.images.nbytes, opened.test_images.shape) == ((41, 4, 3, 3), 1476, (11, 4, 3, 3))
    assert data.decoded_bytes("tiny", prepared) == 1476
    assert data.decoded_bytes("another", prepared) == 0
    resized = data.open("tiny", prepared, image_size=(2, 5))
    assert resized.images.shape == (41, 2, 5, 3)
    np.testing.assert_array_equal(resized.images.take(range(41)), data.load("tiny", prepared, image_size=(2, 5)).images)
    for file in (labels_file, labels_file.with_name("cljax-decoded.npz")):
        np.testing.assert_array_equal(data.open("tiny", prepared).labels, loaded.labels)
        file.unlink()


def test_a_stream_of_opened_data_is_that_of_loaded_data(prepared):
    opened, loaded = data.open("tiny", prepared), data.load("tiny", prepared)
    tasks = lambda d: [(d.train_images, d.train_labels, d.test_images, d.test_labels)] * 2
    for build in (
        lambda d: streams.split(d, tasks=3, seed=1),
        lambda d: streams.permuted(d, tasks=2),
        lambda d: streams.from_tasks(tasks(d)),
    ):
        lazy, plain = build(opened), build(loaded)
        assert (lazy.mean, lazy.std, lazy.facts) == (plain.mean, plain.std, plain.facts)
        for one, other in zip(jax.tree.leaves(lazy.tables)[1:], jax.tree.leaves(plain.tables)[1:], strict=True):
            np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(
            lazy.tables.examples.take(plain.tables.train.index), plain.tables.examples[plain.tables.train.index]
        )
    assert streams.align([build(opened), build(opened)])[1].tables.examples == lazy.tables.examples
    with pytest.raises(ValueError, match="hold different examples"):
        streams.align([build(opened), build(data.open("tiny", prepared))])


def test_a_method_that_prunes_forgets_nothing_on_opened_data_and_is_that_of_the_scan(prepared):
    """Folds under a condition; the fingerprints of one driver agree with one another."""
    stream, other = (streams.split(of("tiny", prepared), tasks=2, epochs=2) for of in (data.open, data.load))
    method = methods.clnp(small(stream), margin=0.1)
    fed = drive(method, MOMENTUM, [(0, stream)], SETTINGS)
    scanned = drive(method, MOMENTUM, [(0, other)], SETTINGS)
    np.testing.assert_allclose(fed.evaluation.accuracy, scanned.evaluation.accuracy, rtol=1e-6)
    for one, another in zip(fed.epochs, scanned.epochs, strict=True):
        np.testing.assert_allclose(one, another, rtol=1e-4)
    assert_close(fed.learners[0].params, scanned.learners[0].params, 1e-5)
    assert bits(fed.learners[0].method_state.owner) == bits(scanned.learners[0].method_state.owner)
    prints = fed.evaluation.fingerprint[0]
    assert prints[1, 0] == prints[0, 0]
    assert prints[1, 1] != prints[0, 1]


def test_files_that_vanish_during_a_run_are_named(prepared, tmp_path):
    import shutil

    shutil.copytree(prepared / "tiny", tmp_path / "tiny")
    data.open("tiny", tmp_path)  # keeps the labels, so that the next reads nothing, and holds no file open
    opened = data.open("tiny", tmp_path)
    for file in (tmp_path / "tiny" / "1.0.0").glob("*train.array_record*"):
        file.unlink()
    with pytest.raises(ReadError, match=r"the split 'train' in .*tiny/1.0.0 in the data set 'tiny' could not be read"):
        opened.images.take([0, 40])
    np.testing.assert_array_equal(opened.test_images.take([0]).shape, (1, 4, 3, 3))


def test_images_are_no_array_and_know_their_rows():
    images = lazily(conformance.digits().images)
    assert images[5:9][1:].take([2]).tolist() == [conformance.digits().images[8].tolist()]
    for wrong in (-1, len(images)):
        with pytest.raises(IndexError, match=f"has the rows 0 to {len(images) - 1}, not"):
            images.take([0, wrong])
    with pytest.raises(ValueError, match="no slices with a step"):
        images[::2]
    for convert in (np.asarray, jnp.asarray):
        with pytest.raises(TypeError, match=r"'few digits' are read on demand and are no array.*data.load"):
            convert(images)
    floats = data.Images([np.zeros((2, 2, 2, 1))], (2, 2, 1), name="floats")
    with pytest.raises(ReadError, match=r"float64 of shape \(2, 2, 1\), not uint8"):
        floats.take([1])


def test_statistics_of_many_images_are_those_of_a_sample(monkeypatch):
    monkeypatch.setattr(data.on_demand, "STATISTICS", 300)
    values = np.arange(1000).astype(np.uint8)[:, None, None, None]
    pieces = np.concatenate(list(lazily(values).pieces()))[:, 0, 0, 0]
    np.testing.assert_array_equal(pieces, values[np.linspace(0, 999, 300).round().astype(int), 0, 0, 0])


def test_each_image_is_read_once_for_mean_and_deviation():
    values, read = np.random.default_rng(0).integers(0, 256, (3000, 2, 2, 1)).astype(np.uint8), []

    class Source(list):
        def __getitem__(self, row):
            read.append(row)
            return super().__getitem__(row)

    rows = np.arange(3, 2503, 2)
    images = data.Images([Source(values)], (2, 2, 1), name="noted")
    assert statistics_of_rows(images, rows) == statistics_of_rows(values, rows)
    assert sorted(read) == rows.tolist()


def test_batches_come_in_order_and_end_where_they_are_left():
    order = np.arange(40).reshape(10, 4)
    seen = []

    def read(rows):
        time.sleep(0.002 * (rows[0] % 3))
        seen.append(int(rows[0]))
        return rows

    np.testing.assert_array_equal(np.concatenate(list(batches(read, order, ahead=jnp.asarray))), order.ravel())
    assert sorted(seen) == order[:, 0].tolist()
    left = batches(read, np.tile(order, (100, 1)))
    assert next(left).tolist() == [0, 1, 2, 3]
    left.close()
    time.sleep(0.05)
    count = len(seen)
    time.sleep(0.05)
    assert len(seen) == count < 200


def test_the_command_reads_on_demand_where_data_are_half_of_the_memory(prepared, monkeypatch):
    options = Options(data=Data(data=("tiny",), data_dir=str(prepared)))
    assert choose_driver(options) == "scan"
    for memory, driver in ((1476 * 2, "host"), (1476 * 2 + 1, "scan"), (None, "scan")):
        monkeypatch.setattr(bounds, "available_memory", lambda memory=memory: memory)
        assert choose_driver(options) == driver
    assert choose_driver(Options(training=Training(driver="host"))) == "host"
    with pytest.raises(UsageError, match="--vectorize yes needs the data on the device"):
        choose_driver(Options(training=Training(driver="host", vectorize="yes")))
    assert sequence(conformance.stream().tables.test, 1, 8).shape[1] == 8
