"""Gates are refused where closed features reach open ones; where they do not, old tasks keep their bits."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cljax import methods, networks, task_params
from cljax.networks import check_gates, from_linen, make_network
from cljax.networks.linen import head_wires, layer_wires
from cljax.types import Batch, Learner, Sizes, make_clock

KEY = jax.random.key(0)


class Apply(nn.Module):
    """A function without parameters as a submodule."""

    fn: Any

    @nn.compact
    def __call__(self, values):
        return self.fn(values)


class Cosine(nn.Module):
    """A layer whose kernel is normalised over its inputs."""

    features: int

    @nn.compact
    def __call__(self, values):
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (values.shape[-1], self.features))
        return values @ (kernel / jnp.linalg.norm(kernel, axis=0, keepdims=True))


class Chain(nn.Module):
    """Two layers d0 and d1, each with something before its gate (n0, n1) or behind its nonlinearity; then the head."""

    before: Any = None
    behind: Any = None
    layer: Any = partial(nn.Dense, 5)
    activation: Any = nn.relu

    @nn.compact
    def __call__(self, values):
        for index in range(2):
            values = self.layer(name=f"d{index}")(values)
            values = values if self.before is None else self.before(name=f"n{index}")(values)
            values = self.activation(values)
            values = values if self.behind is None else self.behind(values)
        return nn.Dense(2, name="head")(values.reshape(values.shape[0], -1))


def build(module, *, gate=None):
    gate = gate or ("n" if module.before is not None else "d")
    inputs = (4, 4, 1) if module.layer is CONVOLUTION else (4,)
    return from_linen(module, inputs, outputs=2, train_argument=None, gates=(f"{gate}0", f"{gate}1"))


CONVOLUTION = partial(nn.Conv, 6, (3, 3))
FUNCTIONS = {
    "L2": lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True),
    "softmax": nn.softmax,
    "largest feature": lambda x: x / x.max(-1, keepdims=True),
    "smallest feature": lambda x: x - x.min(-1, keepdims=True),
    "cumulative sum": lambda x: jnp.cumsum(x, -1),
    "two winners": lambda x: jnp.where(x >= jnp.sort(x, -1)[..., -2, None], x, 0.0),
    "sorted": lambda x: jnp.sort(x, -1),
    "limited length": lambda x: x * jnp.minimum(1, 100 / jnp.linalg.norm(x, axis=-1, keepdims=True)),
    "attention": lambda x: jnp.einsum("bij,bj->bi", nn.softmax(x[:, :, None] * x[:, None, :]), x),
}
MIXING = {
    "LayerNorm": Chain(nn.LayerNorm),
    "LayerNorm without affine": Chain(partial(nn.LayerNorm, use_scale=False, use_bias=False)),
    "RMSNorm": Chain(nn.RMSNorm),
    "GroupNorm of two channels": Chain(partial(nn.GroupNorm, num_groups=None, group_size=2), layer=CONVOLUTION),
    **{name: Chain(partial(Apply, fn)) for name, fn in FUNCTIONS.items()},
}


@pytest.mark.parametrize("kind", MIXING)
def test_what_mixes_features_before_they_are_gated_is_refused(kind):
    with pytest.raises(ValueError, match=r"open features of the gate 'n0' depend on weights.*networks\.FeatureNorm"):
        build(MIXING[kind])


BEHIND = {
    "two places on": lambda x: jnp.roll(x, 2, -1),
    "two features exchanged": lambda x: x[..., jnp.array([0, 3, 2, 1, 4])],
    "one feature copied": lambda x: x.at[..., 3].add(x[..., 1]),
    "mean taken off": lambda x: x - x.mean(-1, keepdims=True),
    "sigmoid": nn.sigmoid,
    "softmax": nn.softmax,
}


@pytest.mark.parametrize("kind", BEHIND)
def test_what_opens_a_closed_feature_behind_its_gate_is_refused(kind):
    with pytest.raises(ValueError, match=r"'(d1|head)' still reads features that the gate '(d0|d1)' has closed"):
        build(Chain(behind=BEHIND[kind]))


def test_a_kernel_normalised_over_its_inputs_and_a_mixing_convolution_are_refused():
    with pytest.raises(ValueError, match=r"'d1' still reads .* a kernel that is normalised over its inputs"):
        build(Chain(layer=partial(Cosine, 5)))
    backwards = lambda x: x.transpose(0, 3, 1, 2)  # channels first before flattening
    with pytest.raises(ValueError, match=r"'head' still reads features that the gate 'd1' has closed"):
        from_linen(_Turned(backwards), (4, 4, 1), outputs=2, train_argument=None, gates=("d1",))


class _Turned(nn.Module):
    turn: Any

    @nn.compact
    def __call__(self, values):
        values = self.turn(nn.relu(CONVOLUTION(name="d1")(values)))
        return nn.Dense(2, name="head")(values.reshape(values.shape[0], -1))


class _Frozen(nn.Module):
    """Normalisation by a stored mean over all features, which training moves or not."""

    moves: bool

    @nn.compact
    def __call__(self, values, train: bool):
        mean = self.variable("running", "mean", jnp.zeros, (1, 1))
        hidden = nn.Dense(5, name="d0")(values)
        if train and self.moves and not self.is_initializing():
            mean.value = 0.9 * mean.value + 0.1 * hidden.mean(keepdims=True)
        return nn.Dense(2, name="head")(nn.relu(Apply(lambda x: x - mean.value, name="n0")(hidden)))


@pytest.mark.parametrize("method", [methods.tfm, methods.clnp])
def test_a_collection_that_all_tasks_train_is_refused(method):
    network, still = (from_linen(_Frozen(moves), (4,), outputs=2, gates=("n0",)) for moves in (True, False))
    with pytest.raises(ValueError, match=r"'running/mean', which tasks share and training changes"):
        method(network)
    assert method(network._replace(per_task=(*network.per_task, "running/mean"))).zero_forgetting
    assert method(still).zero_forgetting


KEEPING = {
    "feature": Chain(networks.FeatureNorm),
    "groups of one": Chain(partial(nn.GroupNorm, num_groups=None, group_size=1), layer=CONVOLUTION),
    "rms behind": Chain(behind=nn.RMSNorm(use_scale=False), activation=nn.gelu),
}


@pytest.mark.parametrize("kind", KEEPING)
def test_what_keeps_features_apart_is_taken_and_forgets_no_bit(kind):
    """Three tasks by plain gradient descent, each with its own head and, where it has one, its own feature norm."""
    network = build(KEEPING[kind])
    method = methods.tfm(network, growth=0.3)
    images = jax.random.normal(KEY, (8, *network.inputs))
    single = task_params.resting([])

    @jax.jit
    def begin(learner, clock):
        learner = method.begin_task(learner, clock, None, KEY)
        return learner, method.update_mask(learner, clock)[0]

    @jax.jit
    def descend(learner, clock, mask, labels):
        batch = Batch(images, labels, jnp.zeros(8, jnp.int32), jnp.arange(8), jnp.ones(8))

        def step(_, params):
            gradients = jax.grad(lambda p: method.loss(p, learner, clock, batch, None)[0])(params)
            return jax.tree.map(lambda p, g, m: jnp.where(m == 0, p, p - 0.5 * g), params, gradients, mask)

        return jax.lax.fori_loop(0, 5, step, learner.params)

    logits = jax.jit(lambda learner, task: method.predict(learner._replace(rows=single), images, task))
    params, collections, state, hyper = method.init(KEY, Sizes(3, 2, {}))
    stacks = task_params.resting(method.per_task, tasks=3)
    learner = Learner(params, collections, (), state, hyper, None, stacks)
    heads, seen = [], []
    for task in range(3):
        learner, mask = begin(learner, make_clock(task=task))
        labels = jnp.asarray(np.random.default_rng(task).integers(0, 2, 8), jnp.int32)
        trained = descend(learner, make_clock(task=task, classes=np.ones([3, 2], bool)), mask, labels)
        changed = [np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (trained, learner.params)), strict=True)]
        assert all(changed), "each leaf has weights of the task's own"
        learner = learner._replace(params=trained)
        own = {path: leaf for path, leaf in trained.items() if f"{path}/bias" in method.per_task}
        heads.append(own)
        seen.append(logits(learner, jnp.int32(task)))
        for old in range(task):
            before = learner._replace(params={**trained, **heads[old]})
            np.testing.assert_array_equal(logits(before, jnp.int32(old)), seen[old])


OWN = {
    "mlp": lambda: networks.mlp((5,), 2, hidden=(6, 1, 5), normalization="batch", norm_after=True),
    "cnn": lambda: networks.cnn((8, 8, 2), 2, channels=((3, 4), (6,)), dense=(5,), normalization="feature"),
    "pooled": lambda: networks.cnn((4, 4, 1), 2, channels=((3,), (4,)), dense=(), pooled=True, normalization="batch"),
    "alexnet": lambda: networks.alexnet((67, 67, 1), 2, width=1 / 64, normalization="feature", norm_after=True),
}


@pytest.mark.parametrize("name", OWN)
def test_the_package_s_own_networks_pass(name):
    network = OWN[name]()
    check_gates(network)
    wrong = [wire._replace(outputs=None) if wire.path.endswith("0/bias") else wire for wire in network.wiring]
    check_gates(network._replace(wiring=tuple(wrong)))  # a leaf without a gate is a method's to refuse


def test_a_shift_behind_the_gate_is_found_in_one_s_own_module_too():
    class Own(nn.Module):
        closes: bool

        def setup(self):
            self.hidden, self.head = nn.Dense(5), nn.Dense(2)

        def encode(self, inputs, gates, frozen, *, train):
            values = nn.relu(self.hidden(inputs))
            values = values * gates["hidden"][None] if self.closes else values + gates["hidden"][None]
            return values, {"hidden": values}

        def decode(self, maps, gates, frozen, *, train):
            return (self.head(maps), maps), {}

        def __call__(self, inputs, gates, frozen, *, train):
            return self.decode(self.encode(inputs, gates, frozen, train=train)[0], gates, frozen, train=train)

    wiring = [*layer_wires("hidden", None, inputs=None, outputs="hidden"), *head_wires("hidden")]
    make_network(Own(True), (4,), 2, gates={"hidden": 5}, wiring=wiring)
    with pytest.raises(ValueError, match="'head' still reads features that the gate 'hidden' has closed"):
        make_network(Own(False), (4,), 2, gates={"hidden": 5}, wiring=wiring)


class Remat(nn.Module):
    """Gated layers within rematerialised blocks."""

    lift: Any

    @nn.compact
    def __call__(self, values):
        class Block(nn.Module):
            @nn.compact
            def __call__(self, values):
                return nn.relu(nn.Dense(5, name="inner")(values))

        for index in range(2):
            values = self.lift(Block)(name=f"block_{index}")(values)
        return nn.Dense(2, name="head")(values)


def test_gates_reach_into_rematerialised_blocks():
    """Activations used to leak out of `nn.remat`, and gave an UnexpectedTracerError."""
    plain, lifted = (
        from_linen(Remat(lift), (5,), outputs=2, train_argument=None, gates=("block_0/inner", "block_1/inner"))
        for lift in (lambda block: block, nn.remat)
    )
    assert plain.wiring == lifted.wiring
    inputs = jax.random.normal(KEY, (3, 5))
    params, collections = jax.jit(lifted.init)(KEY)
    collections["gates"]["block_0/inner"] = jnp.array([1.0, 0.0, 1.0, 1.0, 0.0])

    def found(network):
        def loss(params):
            output = network.apply(params, collections, inputs)
            return jnp.sum(output.logits**2) + jnp.sum(output.activations["block_0/inner"] ** 2), output

        return jax.jit(jax.grad(loss, has_aux=True))(params)

    for ours, theirs in zip(*map(jax.tree.leaves, map(found, (lifted, plain))), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert (found(lifted)[1].activations["block_0/inner"][:, [1, 4]] == 0).all()
    stacked = lambda block: nn.vmap(block, variable_axes={"params": None}, split_rngs={"params": False})
    with pytest.raises(ValueError, match=r"activations of the gate 'block_0/inner' cannot be had.*nn\.vmap"):
        from_linen(Remat(stacked), (5,), outputs=2, train_argument=None, gates=("block_0/inner", "block_1/inner"))
