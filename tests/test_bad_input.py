"""What is of the wrong kind or form is named, with the cure, before anything is compiled."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

from cljax import methods, metrics, networks, streams, task_params, training
from cljax.data import combine, from_arrays, load
from cljax.training.evaluation import evaluate
from cljax.training.step import make_train_step
from cljax.types import Schedule, Term, make_clock

IMAGES, LABELS = np.zeros((8, 2, 2, 1), np.uint8), np.arange(8) % 4
STREAM = streams.split(from_arrays(IMAGES, LABELS, IMAGES, LABELS), tasks=2)
METHOD = methods.finetune(networks.mlp((2, 2, 1), 2, hidden=(3,)))
GIVEN = {"dense_0/kernel": np.ones((4, 3), np.float32), "dense_0/bias": np.ones(3, np.float32)}
SGD = optax.sgd(1.0)


def train_table(**leaves):
    tables = STREAM.tables
    return STREAM._replace(tables=tables._replace(train=tables.train._replace(**leaves)))


@pytest.mark.parametrize(
    ("seeds", "options", "words"),
    [
        ([0, 1], {}, r"seeds is \[0, 1\], but must be pairs of a seed and its stream"),
        (5, {}, "seeds is 5, but"),
        (STREAM, {}, "seeds is Stream"),
        ([(STREAM, 0)], {}, "The stream is 0, but"),
        (None, {"hypers": {"learning_rate": 0.1}}, "hypers must be 1 mappings"),
        (None, {"starts": GIVEN}, "starts must be 1 mappings"),
        (None, {"report": True}, "report is True, but must be a function"),
        (None, {"checkpoints": "folder"}, "checkpoints is 'folder', but must be storage.checkpoints.Saving"),
        (None, {"past": 3}, "past is 3, but must be an outcome of drive, or a Past"),
        (None, {"past": [3]}, r"past is \[3\], but must be an outcome of drive, or a Past"),
    ],
)
def test_drive_names_arguments_of_another_kind(seeds, options, words):
    with pytest.raises(ValueError, match=words):
        training.drive(METHOD, SGD, [(0, STREAM)] if seeds is None else seeds, **options)


@pytest.mark.parametrize(
    ("stream", "words"),
    [
        (STREAM._replace(schedule=[(0, 1), (1, 1)]), r"schedule is \[.*\], but must be of streams.lifelong"),
        (STREAM._replace(schedule=Schedule(np.arange(2), np.array([1]), np.array([True, True]))), r"shapes \(2,\)"),
        (train_table(labels=STREAM.tables.train.labels + 7), "train table .* has a label 8: not"),
        (train_table(index=STREAM.tables.train.index + 99), "has an example 1[0-9]+: not of 0 to 15"),
    ],
)
def test_a_stream_made_by_hand_is_checked(stream, words):
    with pytest.raises(ValueError, match=words):
        training.make_run(METHOD, SGD, stream)
    with pytest.raises(ValueError, match="The schedule is 'lifelong', but must be of"):
        streams.with_schedule(STREAM, "lifelong")


def test_a_batch_size_may_be_numpy_s_and_augmentation_must_be_a_function():
    table = STREAM.tables.train
    zero = jnp.int32(0)
    assert streams.sequential(STREAM.tables, table, zero, zero, np.int64(2)).labels.shape == (2,)
    with pytest.raises(ValueError, match=r"augment is 'flip', but must be a function, such as augmentation.flip"):
        training.make_run(METHOD, SGD, STREAM, training.Settings(augment="flip"))


def test_a_run_names_what_is_no_key_and_no_table_of_its_own():
    run, key = training.make_run(METHOD, SGD, STREAM), jax.random.key(0)
    with pytest.raises(ValueError, match=r"A run needs one key, such as jax.random.key\(0\), not 0\."):
        run(0, STREAM.tables)
    with pytest.raises(ValueError, match=r"tables is Stream.*, but must be a stream's: stream.tables"):
        run(key, STREAM)
    other = STREAM.tables._replace(examples=np.zeros((8, 3, 3, 1), np.uint8))
    with pytest.raises(ValueError, match=r"shape \(2, 2, 1\), but those of the tables given have shape \(3, 3, 1\)"):
        run(key, other)
    with pytest.raises(ValueError, match=r"'params' is none of finetune's: give what training.given_params gives"):
        run(key, STREAM.tables, {"params": GIVEN})


@pytest.mark.parametrize(
    ("method", "params", "words"),
    [
        (methods.finetune, GIVEN, "The method is <function finetune .*, but must be one of cljax.methods, built"),
        (METHOD, "file.safetensors", "params is 'file.safetensors', .*load_params reads them"),
        (METHOD, GIVEN | {"dense_0/bias": np.full(3, np.nan)}, "The given leaf 'dense_0/bias' holds NaN or infinity"),
    ],
)
def test_given_parameters_are_checked(method, params, words):
    with pytest.raises(ValueError, match=words):
        training.given_params(method, params)


@pytest.mark.parametrize(
    ("base", "terms", "words"),
    [
        (methods.finetune, [methods.pull()], "The base is <function finetune .*, but must be a method, built"),
        (METHOD, [methods.pull], r"A term is <function pull .*such as methods.distillation\(\)"),
        (METHOD, [METHOD], "A term is Method"),
        (METHOD, ["lwf"], r"A term is 'lwf'.*methods.build takes names"),
        (METHOD, [Term("")], "A term's name is ''"),
        (METHOD, [Term("mine", memory_size=-1)], "mine's memory_size is -1"),
    ],
)
def test_what_cannot_be_combined_is_named(base, terms, words):
    with pytest.raises(ValueError, match=words):
        methods.combine(base, *terms)
    with pytest.raises(ValueError, match="The method is <function finetune"):
        methods.with_memory(methods.finetune, 5)


def test_a_term_has_the_numbers_that_it_names_as_strengths():
    without = methods.combine(METHOD, Term("mine", lambda learner, sizes: ({}, {}), strengths=("strength",)))
    with pytest.raises(ValueError, match="'strength', a strength of the term 'mine', is none of its numbers"):
        training.make_run(without, SGD, STREAM)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (METHOD._replace(loss=lambda *given: jnp.float32(0)), r"loss of finetune gives .*\(scalar, \(output, metrics"),
        (METHOD._replace(loss=lambda *given: (jnp.ones(2), ({}, {}))), r"loss of finetune has shape \(2,\)"),
        (methods.combine(METHOD, Term("mine", loss=lambda *given: jnp.float32(0))), "loss of the term 'mine' gives"),
        (methods.combine(METHOD, Term("mine", loss=lambda *given: (jnp.ones(2), {}))), "term 'mine' has shape"),
        (METHOD._replace(after_step=lambda *given: None), "after_step of finetune returned None"),
    ],
)
def test_a_loss_or_a_hook_of_another_form_is_named(method, words):
    tables = jax.device_put(STREAM.tables)
    step = make_train_step(method, SGD)
    zero = jnp.int32(0)

    def one(key):
        learner = training.make_learner(method, SGD, tables, 0.1, key)
        batch = streams.sequential(tables, tables.train, zero, zero, 2)
        clock = make_clock(task=0, classes=tables.classes)
        learner = task_params.focus(learner, clock.task)
        mask = method.update_mask(learner, clock)
        return step(learner, mask, clock, batch, key)[1]

    with pytest.raises(TypeError, match=words):
        jax.eval_shape(one, jax.random.key(0))


def test_logits_of_another_shape_are_named():
    method = METHOD._replace(predict=lambda learner, inputs, task: jnp.zeros((len(inputs), 7)))
    tables = jax.device_put(STREAM.tables)
    with pytest.raises(TypeError, match=r"predict of finetune gives shape \(256, 7\), .*\(256, 2\)"):
        jax.eval_shape(lambda: evaluate(method, None, tables))


MLP, CNN = networks.mlp((8, 8, 1), 2, hidden=(3,)), networks.cnn((8, 8, 1), 2, channels=((4,),), dense=())


@pytest.mark.parametrize(
    ("make", "network", "options", "words"),
    [
        (methods.hat, MLP, {"binarize": "false"}, "hat's binarize is 'false', but must be True or False"),
        (methods.hat, MLP, {"binarize": np.nan}, "hat's binarize is nan"),
        (methods.icarl, MLP, {"flips": np.ones(2, bool)}, "icarl's flips is .*, but must be True or False"),
        (methods.icarl, MLP, {"distillation": None}, "icarl's distillation is None"),
        (methods.lwf_mc, MLP, {"push_unseen": 1}, "lwf_mc's push_unseen is 1"),
        (methods.joint, MLP, {"own_part": 0.5}, "joint's own_part is 0.5"),
        (methods.joint, MLP, {"shares": 5}, r"joint's shares is 5, but must be a number a task, such as \(5, 1\)"),
        (methods.tfm, MLP, {"candidates": 0.5}, "tfm's candidates is 0.5, but must be several numbers"),
        (methods.tfm, MLP, {"zero_init_new_to_old": "no"}, "tfm's zero_init_new_to_old is 'no'"),
        (methods.clnp, MLP, {"candidates": (1, 2)}, "One of clnp's candidates is 1, but must be pairs of l1 and"),
        (methods.clnp, MLP, {"thresholds": 0.5}, "clnp's thresholds is 0.5, but must be several numbers"),
        (methods.df_cnn, CNN, {"sizes": 3}, "df_cnn's sizes is 3, but must be {leaf path: sizes}"),
        (methods.df_cnn, CNN, {"sizes": {"conv_0_0/kernel": 3}}, "sizes of 'conv_0_0/kernel' is 3, but must be one to"),
        (methods.tensor_factorization, CNN, {"ranks": {"conv_0_0/kernel": 3}}, "ranks of 'conv_0_0/kernel' is 3"),
        (methods.lwf, None, {"own_layers": 1}, "The network is None, but must be one of cljax.networks, built"),
        (methods.ewc, MLP, {"fisher": np.arange(2)}, r"ewc's fisher is \[0 1\], but must be one of exact, sampled"),
    ],
)
def test_options_of_another_kind(make, network, options, words):
    with pytest.raises((TypeError, ValueError), match=words):
        make(network, **options)


@pytest.mark.parametrize(
    ("word", "options"),
    [("ewc", {}), ("ewc", {"ewc.penalty": "separate"}), ("mas", {}), ("si", {}), ("l2_constraint", {})],
)
def test_a_penalty_on_what_tasks_share_needs_something_shared(word, options):
    method = methods.build(f"single_task+{word}", METHOD.network, options)
    with pytest.raises(ValueError, match=f"{word} holds what tasks share, but here each leaf belongs to a task"):
        training.check(method, STREAM, training.Settings())


def test_labels_with_gaps_are_no_numbers_of_classes():
    with pytest.raises(ValueError, match=r"train_labels go up to 30, but none is 1.*numpy.unique"):
        from_arrays(IMAGES, LABELS * 10, IMAGES, LABELS * 10)
    assert len(from_arrays(IMAGES, LABELS, IMAGES, LABELS, classes=list("abcde")).classes) == 5


@pytest.mark.parametrize(
    ("asked", "read", "words"),
    [
        ({}, lambda teacher: teacher.respond(None), r"'mine' reads teacher.respond.*: Term\(..., teacher=True\)"),
        ({}, lambda teacher: teacher.params, "teacher=True, or anchor=True"),
        ({"anchor": True}, lambda teacher: teacher.respond(None), "'mine' reads teacher.respond"),
    ],
)
def test_a_teacher_must_be_asked_for(asked, read, words):
    mine = Term("mine", loss=lambda *given: (read(given[-1]), {}), **asked)
    asking = methods.features()  # another term's teacher is not this one's
    for terms in ([mine], [asking, mine]):
        method, key = methods.combine(METHOD, *terms), jax.random.key(0)
        tables = jax.device_put(STREAM.tables)
        learner = training.make_learner(method, SGD, tables, 0.1, key)
        learner = task_params.focus(learner, jnp.int32(0))
        batch = streams.sequential(tables, tables.train, jnp.int32(0), jnp.int32(0), 2)
        clock = make_clock(task=0, classes=tables.classes)
        with pytest.raises(TypeError, match=words):
            jax.eval_shape(method.loss, learner.params, learner, clock, batch, key)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: streams.append(3, STREAM), "The stream is 3, but must be one of cljax.streams"),
        (lambda: streams.append(STREAM, None), "The stream to append is None, but must be one of cljax.streams"),
        (lambda: streams.forget([STREAM]), "The stream is .*, but must be one of cljax.streams"),
        (lambda: streams.pad("digits", tasks=3, examples=9), "The stream is 'digits', but must be one of"),
        (lambda: training.extend(3, 4), "The longer stream's learner is 3, but must be a learner"),
        (lambda: networks.vgg16_reduced((32, 32, 3), 2, width=float("nan")), "width is nan, but"),
    ],
)
def test_what_grows_and_what_scales_names_an_argument_of_another_kind(call, words):
    with pytest.raises(ValueError, match=words):
        call()


DIGITS = from_arrays(IMAGES, LABELS, IMAGES, LABELS)


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(2)(x.reshape(len(x), -1))


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.head = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(x.reshape(len(x), -1))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: from_arrays(IMAGES, LABELS), r"test_labels are missing. Give .*two pairs, \(X, y\), \(X_test, y_test"),
        (lambda: load(5), "name is 5, but must be the name of a data set, such as 'digits', or the path of a folder"),
        (lambda: combine(DIGITS), "datasets is one data set, but must be a list of one data set or more"),
        (lambda: combine([]), r"datasets is \[\], but must be a list"),
        (lambda: combine(["digits"]), "datasets has 'digits', which is no data set. Load it with data.load"),
        (lambda: combine([DIGITS], normalize="all"), "normalize is 'all', but must be 'first' or 'each'"),
    ],
)
def test_data_of_another_form(call, words):
    with pytest.raises((TypeError, ValueError), match=words):
        call()


def test_bfloat16_images_are_floats():
    images = np.linspace(0, 1, 16, dtype=np.float32).reshape(8, 2).astype(jnp.bfloat16)
    made = from_arrays(images, LABELS, images, LABELS)
    np.testing.assert_array_equal(made.images[:8], images.astype(np.float32))
    with pytest.raises(ValueError, match="train_images hold NaN or infinity in 8 of 8 examples"):
        from_arrays(np.full_like(images, np.inf), LABELS, images, LABELS)


def test_two_pairs_are_a_data_set():
    pairs = from_arrays((IMAGES, LABELS), [IMAGES, LABELS])
    np.testing.assert_array_equal(pairs.labels, DIGITS.labels)
    assert pairs.train_size == DIGITS.train_size


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: streams.split(DIGITS, tasks=2, sizes=4), "sizes is 4, but must be a list of numbers of classes"),
        (
            lambda: streams.split(DIGITS, tasks=2, class_order=3),
            "class_order is 3, but must be None, 'random', 'icarl'",
        ),
        (lambda: streams.from_tasks([]), r"tasks is \[\], but must be a list of \(train_images"),
        (lambda: streams.relabelled(DIGITS, DIGITS.labels), r"labels of task 0 are 0, .*a list with an array for each"),
        (lambda: streams.relabelled(DIGITS, [LABELS]), "images of 'arrays' hold 16 examples, but the labels of task 0"),
        (lambda: streams.relabelled(DIGITS, [np.eye(4)[DIGITS.labels]]), "add up to 1 .*argmax"),
    ],
)
def test_tasks_of_another_form(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: networks.mlp(64, 2), r"inputs is 64, but must be the shape of one example, such as \(8, 8, 1\)"),
        (lambda: networks.mlp((8, 0), 2), "A side of inputs is 0, but must be a whole number from 1"),
        (
            lambda: networks.mlp((4,), 2, per_task=("haed",)),
            "per_task names 'haed', which does not exist. There are: de",
        ),
        (lambda: networks.mlp((4,), 2, per_task="head"), r"per_task is a sequence of paths, not the string 'head'"),
        (
            lambda: networks.cnn((64,), 2),
            r"inputs is \(64,\), but must be the shape of an image, \(height, width, chan",
        ),
        (lambda: networks.cnn((3, 32, 32), 2), r"inputs is \(3, 32, 32\), but must be .*: channels last"),
        (lambda: networks.vgg16((3, 32, 32), 2), "channels last"),
        (lambda: networks.alexnet(64, 2), "inputs is 64, but must be the shape of one"),
        (lambda: networks.lenet((784,), 2), r"inputs is \(784,\), but must be the shape of an image"),
        (lambda: networks.resnet18((784,), 2), r"inputs is \(784,\), but must be the shape of an image"),
        (
            lambda: networks.cnn((8, 8, 1), 2, channels=(32, 64)),
            r"channels is \(32, 64\), but must be a list of blocks",
        ),
        (lambda: networks.cnn((8, 8, 1), 2, channels=32), "channels is 32, but must be a list of blocks"),
        (lambda: networks.cnn((8, 8, 1), 2, kernel=0), "kernel is 0, but must be a whole number from 1"),
        (lambda: networks.cnn((8, 8, 1), 2, pool=2), r"pool is 2, but must be a Pool, such as Pool\(2, 2\)"),
        (lambda: networks.cnn((8, 8, 1), 2, pooled="no"), "pooled is 'no', but must be True or False"),
        (lambda: networks.mlp((4,), 2, norm_after="no"), "norm_after is 'no', but must be True or False"),
        (lambda: networks.alexnet(outputs=2, norm_after="no"), "norm_after is 'no', but must be True or False"),
        (lambda: networks.resnet32(bottleneck="no"), "bottleneck is 'no', but must be True or False"),
        (
            lambda: networks.resnet((8, 8, 1), 2, blocks=(1, 1), channels=(6, 4), shortcut="padding"),
            "Padding cannot make 6 features 4: choose shortcut='projection'",
        ),
        (lambda: networks.from_linen(Linen, (4,), outputs=2), "module is <class .*but must be a Flax Linen module"),
        (lambda: networks.from_linen(Nnx(nnx.Rngs(0)), (4,), outputs=2), "module is Nnx.*networks.from_nnx takes"),
        (
            lambda: networks.from_linen(linen.Dense(2), (4,), outputs=2),
            "Dense takes no argument 'train', which .* Give train_argument=None where",
        ),
        (
            lambda: networks.from_nnx(nnx.Sequential(nnx.Linear(4, 2, rngs=nnx.Rngs(0))), (4,), outputs=2),
            "no submodule 'head' where head='...' looks for its last layer. There are: layers",
        ),
        (lambda: networks.from_linen(Linen(), 4, outputs=2), "inputs is 4, but must be the shape of one example"),
        (lambda: networks.from_nnx(Linen(), (4,), outputs=2), r"model is Linen\(\).*networks.from_linen takes a Linen"),
        (lambda: networks.from_nnx(None, (4,), outputs=2), "model is None, but must be an nnx.Module, or a function"),
        (lambda: methods.finetune(Linen()), r"The network is Linen\(\), .*networks.from_linen\(...\) and from_nnx"),
        (lambda: networks.export_task(METHOD, None, 0), "learner is None, but must be a learner at rest"),
    ],
)
def test_networks_of_another_form(call, words):
    with pytest.raises((TypeError, ValueError), match=words):
        call()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda run: run(rounds=3), "rounds is 3, but must be a pair: the first round, and that before which to end"),
        (lambda run: run(rounds=(0, 3)), "The second of rounds is 3, but must be a whole number from 1 to 2"),
        (lambda run: run(rounds=(1, 1)), "The second of rounds is 1, but must be a whole number from 2 to 2"),
        (lambda run: run(rounds=(2, 3)), "The first of rounds is 2, but must be a whole number from 0 to 1"),
        (lambda run: run(past=5), "past is 5, but must be a result of the run, a Past, or None"),
        (lambda run: run(params=5), "params is 5, but must be what training.given_params gives"),
        (lambda run: training.given_params(METHOD, 5), "params is 5, but must be arrays by name"),
        (
            lambda run: training.given_params(METHOD, {"head/bias": jnp.full(2, jnp.nan, jnp.bfloat16)}),
            "The given leaf 'head/bias' holds NaN or infinity",
        ),
        (lambda run: training.given_params(METHOD, Linen()), r"params is Linen\(\), but must be arrays by name"),
        (
            lambda run: training.evaluate(METHOD, None, STREAM),
            "tables is Stream.*, but must be a stream's: stream.tables",
        ),
        (lambda run: training.make_learner(METHOD, SGD, STREAM.tables, 0.1, 0), "key is 0, but must be one key"),
        (
            lambda run: training.make_run(METHOD, SGD, STREAM, max_examples=5),
            "max_examples is 5, but must be numbers of",
        ),
        (
            lambda run: training.make_run(METHOD, SGD, STREAM, max_examples={"training": 5}),
            "max_examples is {'training': 5}, but must be numbers of train, validation or test",
        ),
    ],
)
def test_a_run_s_arguments_of_another_form(call, words):
    run = functools.partial(training.make_run(METHOD, SGD, STREAM), jax.random.key(0), STREAM.tables)
    with pytest.raises(ValueError, match=words):
        call(run)


@pytest.mark.parametrize("metric", [metrics.average_accuracy, metrics.forgetting, metrics.backward_transfer])
def test_a_metric_of_a_whole_result_is_told_which_part(metric):
    with pytest.raises(ValueError, match=r"takes accuracies, such as result.evaluation.accuracy, not a whole Stream"):
        metric(STREAM)
