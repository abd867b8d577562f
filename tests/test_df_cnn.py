"""DF-CNN: the paper's parameter counts, who owns what, gradients through the synthesis, and baking."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from cljax import filters, methods, networks, streams, task_params, transforms
from cljax.filters import Sizes
from cljax.methods.df_cnn import (
    CIFAR,
    CIFAR_DIRECT,
    CIFAR_REDUCED,
    CIFAR_REDUCED_MULTI_TASK,
    CIFAR_TC2,
    MNIST_DIRECT_HETEROGENEOUS,
    MNIST_DIRECT_HOMOGENEOUS,
    MNIST_HETEROGENEOUS,
    MNIST_HOMOGENEOUS,
    MNIST_TC2,
    OFFICE_HOME,
    PAPER,
    df_cnn,
)
from cljax.training import with_learning_rate_decay, with_summed_loss
from cljax.training.step import init_shapes, make_learner, make_train_step, phase_learning_rate
from cljax.types import Batch, Phase, Tables, make_clock
from tests.shared import focus
from tests.zero_forgetting import leaving

TASKS, CLASSES = 3, 4
SECOND = make_clock(task=1, classes=np.ones((TASKS, CLASSES), bool))
OPTIMIZER = transforms.per_task(optax.chain(optax.scale(6.0), transforms.rmsprop_tf1()))
SIZES = {"conv_0_0/kernel": Sizes(base=2, basis=3), "conv_1_0/kernel": Sizes(base=3, basis=4)}
network = networks.cnn((8, 8, 1), CLASSES, channels=((3,), (4,)), dense=(5,))


def tables_of(tasks, classes):
    """What `make_learner` needs of a stream: the classes of its tasks."""
    return Tables(None, None, None, None, None, np.ones((tasks, classes), np.bool_))


def learner_of(method, optimizer=OPTIMIZER, tasks=TASKS, classes=CLASSES):
    return lambda key: make_learner(method, optimizer, tables_of(tasks, classes), 1e-2, key)


def count(method, tasks):
    """Parameters of the learner of some tasks, and how many of them are shared; nothing is allocated."""
    learner = jax.eval_shape(learner_of(method, optax.sgd(1.0), tasks, method.network.outputs), jax.random.key(0))
    sizes = {path: math.prod(leaf.shape) for path, leaf in named(learner.params).items()}
    return sum(sizes.values()), sum(
        size for path, size in sizes.items() if not task_params.has_rows(path, learner.rows)
    )


def named(tree):
    return dict(zip(task_params.leaf_paths(tree), jax.tree.leaves(tree), strict=True))


cifar = networks.df_cnn_base("cifar", 10)
office_home = networks.df_cnn_base("office_home", 13)
mnist = networks.df_cnn_base("mnist", 2)
reduced = networks.df_cnn_base("cifar", 10, size="reduced")
binary = {size: networks.df_cnn_base("cifar", 2, size=size) for size in ("base", "reduced")}


@pytest.mark.parametrize(
    ("method", "tasks", "total"),
    [
        (df_cnn(cifar, sizes=CIFAR), 10, 7_963_252),
        (df_cnn(cifar, kind="tc2", sizes=CIFAR_TC2), 10, 2_995_168),
        (df_cnn(cifar, kind="tc2"), 10, 2_995_168),
        (df_cnn(cifar, kind="direct", sizes=CIFAR_DIRECT), 10, 45_673_572),
        (methods.single_task(cifar), 10, 3_284_260),
        (methods.single_task(networks.df_cnn_base("cifar", 10, size="large")), 10, 9_345_860),
        (methods.hard_sharing(cifar), 10, 2_694_148),
        (df_cnn(office_home, sizes=OFFICE_HOME), 10, 201_827_202),
        (methods.single_task(office_home), 10, 26_794_370),
        (methods.hard_sharing(office_home, own_layers=2), 10, 12_274_562),
        (df_cnn(mnist, sizes=MNIST_HETEROGENEOUS), 5, 1_063_574),  # the paper prints 1.1M, 2.6M and 5.0M
        (df_cnn(mnist, sizes=MNIST_HOMOGENEOUS), 10, 2_581_528),
        (df_cnn(mnist, kind="direct", sizes=MNIST_DIRECT_HETEROGENEOUS), 5, 4_972_018),
        (df_cnn(mnist, kind="direct", sizes=MNIST_DIRECT_HOMOGENEOUS), 10, 12_892_652),  # 12.9M
        (df_cnn(mnist, kind="tc2", sizes=MNIST_TC2), 10, 1_182_874),
        (df_cnn(reduced, sizes=CIFAR_REDUCED), 10, 2_799_740),  # 2.80M
        (df_cnn(binary["reduced"], sizes=CIFAR_REDUCED_MULTI_TASK), 10, 2_332_292),  # 2.3M, 1.2M and 22.8M
        (df_cnn(binary["reduced"], sizes=CIFAR_REDUCED_MULTI_TASK), 5, 1_166_302),
        (df_cnn(binary["base"], kind="direct", sizes=CIFAR_DIRECT), 5, 22_834_602),
    ],
)
def test_parameter_counts_of_the_paper(method, tasks, total):
    assert count(method, tasks)[0] == total


def test_only_432_numbers_are_shared():
    assert count(df_cnn(cifar, sizes=CIFAR), 10)[1] == 432 == 4 * (16 + 24 + 32 + 36)


def test_knowledge_bases_have_the_sides_of_the_paper():
    for method, sides in [(df_cnn(cifar, sizes=CIFAR), (2, 2, 2, 2)), (df_cnn(office_home), (6, 3, 2, 2))]:
        params = init_shapes(method)[0]
        bases = [leaf.shape for path, leaf in named(params).items() if path.endswith("knowledge_base")]
        assert [shape[:2] for shape in bases] == [(side, side) for side in sides]


@functools.cache
def setup(kind="df"):
    """A method, its learner at rest, a batch, and (of the first kind) the learner after three steps on task 1."""
    method = df_cnn(network, kind=kind, sizes=SIZES if kind == "df" else None)
    learner = jax.jit(learner_of(method))(jax.random.key(0))
    generator = np.random.default_rng(0)
    batch = Batch(
        generator.integers(0, 256, (6, 8, 8, 1), np.uint8),
        generator.integers(0, CLASSES, 6, np.int32),
        np.ones(6, np.int32),
        np.arange(6, dtype=np.int32),
        np.ones(6, np.float32),
    )
    clock, step = SECOND, make_train_step(method, OPTIMIZER)
    visited = focus(learner, clock.task)
    mask = jax.jit(method.update_mask)(visited, clock)
    for number in range(3 if kind == "df" else 0):
        visited, _, _ = step(visited, mask, clock, batch, jax.random.key(number))
    return method, learner, batch, jax.jit(task_params.write_back)(visited, clock.task)


def test_a_visit_moves_the_knowledge_bases_and_its_own_row_and_no_bit_of_other_rows():
    _, before, _, after = setup()
    for path, old in named(before.params).items():
        old, new = np.asarray(old), np.asarray(named(after.params)[path])
        if path.endswith("knowledge_base"):
            assert (old != new).all(), path
        else:
            assert len(old) == TASKS, path
            assert old[[0, 2]].tobytes() == new[[0, 2]].tobytes(), path
            assert (old[1] != new[1]).any(), path


def test_old_kernels_follow_the_knowledge_base():
    """Their logits change though nothing of their own does: forgetting, or reverse transfer."""
    method, before, batch, after = setup()
    predict = jax.jit(method.predict)
    old, new = (predict(learner, batch.inputs, jnp.int32(0)) for learner in (before, after))
    mixed = after._replace(params=task_params.map_leaves(lambda path, leaf: kept(path, leaf, before), after.params))
    assert float(jnp.max(jnp.abs(new - old))) > 1e-4
    np.testing.assert_array_equal(predict(mixed, batch.inputs, jnp.int32(0)), old)


def kept(path, leaf, learner):
    return named(learner.params)[path] if path.endswith("knowledge_base") else leaf


def test_every_task_has_a_history_of_its_own_for_the_knowledge_base():
    _, _, _, after = setup()
    squares = {path: leaf for path, leaf in named(after.opt_state).items() if path.endswith("knowledge_base")}
    assert len(squares) == 2
    for leaf in squares.values():
        assert (np.asarray(leaf)[[0, 2]] == 1.0).all()
        assert (np.asarray(leaf)[1] < 1.0).all()


def test_gradients_reach_every_factor_by_the_chain_rule():
    r"""dD = sum dW U, dL = conv(dD, V), db = sum dD, dU = sum D dW, from the plain network's gradient dW."""
    method, learner, batch, _ = setup()
    clock = SECOND
    focused = focus(learner, clock.task)
    objective = lambda params, loss: loss(params, focused, clock, batch, None)[0]
    found = jax.jit(jax.grad(lambda params: objective(params, method.loss)))(focused.params)
    plain, _ = jax.jit(lambda learner: networks.export_task(method, learner, 1))(learner)
    outer = jax.jit(jax.grad(lambda params: objective(params, methods.finetune(network).loss)))(plain)

    @jax.jit
    def by_hand(factors, kernel):
        basis = jnp.einsum("yxio,cio->yxc", kernel, factors["contraction"])
        dimensions = ("NHWC", "HWIO", "NHWC")
        base = lax.conv_general_dilated(
            basis[None], factors["deconvolution"], (2, 2), "SAME", dimension_numbers=dimensions
        )[0]
        made = filters.deconvolve(factors["knowledge_base"], factors["deconvolution"], factors["bias"])
        return {
            "knowledge_base": base,
            "bias": jnp.sum(basis, (0, 1)),
            "contraction": jnp.einsum("yxc,yxio->cio", made, kernel),
        }

    for name in ("conv_0_0", "conv_1_0"):
        for leaf, value in by_hand(focused.params[name]["kernel"], outer[name]["kernel"]).items():
            assert np.abs(value).max() > 1e-4
            np.testing.assert_allclose(found[name]["kernel"][leaf], value, rtol=2e-4, atol=1e-6)
        np.testing.assert_allclose(found[name]["bias"], outer[name]["bias"], rtol=1e-4, atol=1e-6)


def test_kernels_are_synthesised_once_a_step(monkeypatch):
    method, learner, batch, _ = setup()
    calls = []
    deconvolve = filters.deconvolve
    monkeypatch.setattr(filters, "deconvolve", lambda *args, **options: calls.append(0) or deconvolve(*args, **options))
    clock = SECOND
    focused = focus(learner, clock.task)
    mask = method.update_mask(focused, clock)
    jax.make_jaxpr(make_train_step(method, OPTIMIZER))(focused, mask, clock, batch, jax.random.key(0))
    assert len(calls) == 2, "two layers, each synthesised once, for any size of the batch"


apply = jax.jit(lambda params, collections, inputs: network.apply(params, collections, inputs).logits)


@pytest.mark.parametrize("kind", ["df", "direct", "tc2"])
def test_a_baked_network_has_the_logits_of_its_task(kind):
    method, _, batch, learner = setup(kind)
    predict, export_task = (
        jax.jit(method.predict),
        jax.jit(lambda learner, task: networks.export_task(method, learner, task)),
    )
    for task in range(TASKS):
        params, collections = export_task(learner, task)
        expected = predict(learner, batch.inputs, jnp.int32(task))
        found = apply(params, collections, batch.inputs)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    like = network.shapes
    assert jax.tree.map(jnp.shape, (params, collections)) == jax.tree.map(jnp.shape, like)


def test_bake_gives_any_plain_method_its_network_and_says_what_differs():
    shape = (8, 8, 1)
    normed = networks.cnn(shape, CLASSES, channels=((3,),), dense=(), normalization="batch")
    method = methods.single_task(normed)
    learner = jax.jit(learner_of(method))(jax.random.key(0))
    params, collections = networks.export_task(method, learner, 2)
    for path, leaf in {**named(params), **named(collections)}.items():
        stack = {**named(learner.params), **named(learner.collections)}[path]
        np.testing.assert_array_equal(leaf, stack[2])
    with pytest.raises(
        ValueError, match=r"cannot be exported: its parameters are not those of the network.*conv_1_0/kernel"
    ):
        networks.export_task(methods.single_task(network), learner, 0)
    wider = networks.cnn(shape, CLASSES, channels=((5,),), dense=(), normalization="batch")
    with pytest.raises(ValueError, match="cannot be exported"):
        networks.export_task(methods.single_task(wider), learner, 0)
    with pytest.raises(TypeError, match="takes the learner's method"):
        networks.export_task(normed, learner, 0)


class Users(nn.Module):
    """A model of a user's own, with a convolution of even side and one of side 1."""

    @nn.compact
    def __call__(self, inputs, train):
        values = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(4, (2, 2))(inputs)))
        values = nn.relu(nn.Conv(3, (1, 1), use_bias=False)(values))
        return nn.Dense(CLASSES)(values.mean((1, 2)))


def test_any_linen_model_with_convolutions():
    users = networks.from_linen(Users(), (8, 8, 1), outputs=CLASSES)
    method = df_cnn(users)
    shared = set(task_params.leaf_paths(init_shapes(method)[0])) - set(method.per_task)
    assert shared == {"Conv_0/kernel/knowledge_base", "Conv_1/kernel/knowledge_base"}
    assert "batch_stats/BatchNorm_0/mean" in method.per_task
    learner = jax.jit(learner_of(method))(jax.random.key(0))
    images = np.ones((2, 8, 8, 1), np.float32)
    baked = jax.jit(lambda learner: users.apply(*networks.export_task(method, learner, 1), images).logits)(learner)
    found = jax.jit(method.predict)(learner, images, jnp.int32(1))
    np.testing.assert_allclose(found, baked, rtol=1e-6, atol=1e-6)


def test_initialisation():
    """Rows are drawn anew, biases of convolutions Glorot-uniform; dense layers keep the network's own initialiser."""
    learner = jax.jit(learner_of(df_cnn(cifar, kind="tc2"), optax.sgd(1.0), 2, 10))(jax.random.key(0))
    for path, leaf in named(jax.tree.map(np.asarray, learner.params)).items():
        if path.endswith("knowledge_base"):
            continue
        if path.startswith("conv_"):
            assert np.ptp(leaf[0]) > 0, path
            assert (leaf[0] != leaf[1]).all(), path
        if path.count("/") == 1 and path.endswith("bias"):
            limit = math.sqrt(6 / (1 + leaf.shape[1]))  # of shape (1, 1, 1, C), as in the code
            found = np.abs(leaf).max()
            assert (0.8 * limit < found <= limit) if path.startswith("conv_") else found == pytest.approx(0.2), path


def test_the_public_codes_steps_by_its_reference_vector():
    """TensorFlow 1's RMSProp at 1e-4 on the sums .5, -.2, .1 of a batch of two, from 0: -4.16376125e-05."""
    base = methods.finetune(network)._replace(
        init=lambda key, sizes: ({"w": jnp.zeros(1)}, {}, {}, {}),
        loss=lambda params, learner, clock, batch, key: (
            params["w"][0] * jnp.sum(batch.inputs * batch.weights) / jnp.sum(batch.weights),
            (leaving(learner.collections), {}),
        ),
        per_task=(),
    )
    found = {}
    for method in (base, with_summed_loss(base)):
        optimizer = transforms.per_task(transforms.rmsprop_tf1())
        learner = make_learner(method, optimizer, tables_of(2, 2), 1e-4, jax.random.key(0))
        learner, clock = task_params.focus(learner, jnp.int32(1)), make_clock(task=1)
        step, mask = make_train_step(method, optimizer), method.update_mask(learner, clock)
        for inputs in ([0.3, 0.2, 9.0], [-0.3, 0.1, 9.0], [0.05, 0.05, 9.0]):
            weights = jnp.array([1.0, 1.0, 0.0])
            none = jnp.zeros(3, jnp.int32)
            batch = Batch(jnp.array(inputs), none, none, none, weights)
            learner, _, _ = step(learner, mask, clock, batch, jax.random.key(0))
        found[method] = float(learner.params["w"][0])
        slots = [
            leaf for leaf in jax.tree.leaves(task_params.write_back(learner, jnp.int32(1)).opt_state) if leaf.ndim == 2
        ]
        assert [leaf[0, 0] for leaf in slots] == [1.0], "the other task's history"
    mean, summed = found.values()
    assert summed == pytest.approx(-4.16376125e-05, rel=1e-5)
    assert mean == pytest.approx(-2.2e-05, rel=0.1), "half of it, at the beginning"


def test_sum_and_mean_differ_not_only_at_the_beginning():
    """Of equal gradients .005, or .05 for a batch of ten, one has nearly forgotten the ones after 50 steps."""
    square, optimizer = {}, transforms.rmsprop_tf1()
    for scale in (1.0, 10.0):
        state = optimizer.init(jnp.zeros(1))
        for _ in range(50):
            update, state = optimizer.update(jnp.array([0.005 * scale]), state)
        square[scale] = float(update[0])
    assert square[1.0] == pytest.approx(-0.0695, rel=0.01)
    assert square[10.0] == pytest.approx(-0.5716, rel=0.01)


def test_the_rate_falls_with_the_epochs_of_all_tasks():
    falling = with_learning_rate_decay(df_cnn(network), streams.lifelong(10, 2000), decay=2.5e-4)
    for round, epoch, expected in [(0, 0, 1.0), (0, 4, 1 / 1.001), (2, 0, 0.5), (9, 2000, 1 / 6)]:
        assert float(phase_learning_rate(falling, make_clock(round=round, epoch=epoch))) == pytest.approx(
            expected, rel=1e-6
        )
    phases = (Phase("a", 0.25, skip_first_task=True), Phase("b", 0.75, lambda clock: jnp.float32(0.1)))
    both = with_learning_rate_decay(df_cnn(network)._replace(phases=phases), streams.lifelong(3, [4, 8, 4]), decay=1.0)
    for round, phase, epoch, expected in [(0, 1, 3, 0.1 / 4), (1, 0, 1, 1 / 6), (1, 1, 0, 0.1 / 7), (2, 0, 0, 1 / 13)]:
        clock = make_clock(round=round, phase=phase, epoch=epoch)
        assert float(phase_learning_rate(both, clock)) == pytest.approx(expected, rel=1e-6)
    for wrong in (-1, float("nan"), float("inf"), "1"):
        with pytest.raises(ValueError, match=r"decay is .*, but must be a finite number of at least 0"):
            with_learning_rate_decay(df_cnn(network), streams.lifelong(2, 1), decay=wrong)


def test_the_papers_sizes_by_name():
    shapes = lambda sizes: init_shapes(df_cnn(cifar, sizes=sizes))[0]
    assert shapes("cifar") == shapes(CIFAR) == shapes({path: tuple(one) for path, one in CIFAR.items()})
    assert (PAPER["cifar_tc2"], PAPER["office_home"]) == (CIFAR_TC2, OFFICE_HOME)


def test_errors_name_the_cure():
    with pytest.raises(ValueError, match=r"this network has none.*--network cnn"):
        df_cnn(networks.mlp((8, 8, 1), 2))
    with pytest.raises(ValueError, match=r"sizes names 'conv_9/kernel'.*Its kernels are: conv_0_0/kernel"):
        df_cnn(network, sizes={"conv_9/kernel": Sizes(2, 2)})
    even = networks.cnn((8, 8, 1), 2, channels=((3,),), kernel=4)
    with pytest.raises(ValueError, match="kernels of side 4 with stride 2"):
        df_cnn(even, sizes={"conv_0_0/kernel": Sizes(2, 2)})
    with pytest.raises(ValueError, match="kind is 'tf', but must be one of df, direct, tc2"):
        df_cnn(network, kind="tf")
    for base, kind, sizes in (
        (cifar, "df", "cifar_direct"),
        (cifar, "tc2", "cifar"),
        (cifar, "df", "mnist_homogeneous"),
    ):
        with pytest.raises(ValueError, match=f"The sizes '{sizes}' are of the kind .*, but this is '{kind}', and the"):
            df_cnn(base, kind=kind, sizes=sizes)
    with pytest.raises(ValueError, match=r"sizes of the DF-CNN paper are cifar, .*there are none of 'imagenet'"):
        df_cnn(network, sizes="imagenet")
    for wrong in ((0, 2), (2.5,), (), (1, 1, 1, 3, 2, 9)):
        with pytest.raises(ValueError, match=r"sizes of 'conv_0_0/kernel'"):
            df_cnn(network, sizes={"conv_0_0/kernel": wrong})
