"""Users' own Flax modules as networks: exact against the module itself, gated, wired, and mistakes named."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cljax.networks import from_linen, from_nnx

MEAN, STD = 0.3, 0.7


class User(nn.Module):
    """A user's network, with dropout and batch normalisation, that has never heard of continual learning."""

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Conv(4, (3, 3))(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.Dense(6)(x.reshape(x.shape[0], -1)))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(3)(x)


class Halves(nn.Module):
    """The seam between two methods, and no head of its own."""

    def setup(self):
        self.lower, self.upper = nn.Conv(4, (3, 3)), nn.Dense(5)
        self.drop = nn.Dropout(0.5)
        self.norm = nn.BatchNorm()

    def maps(self, x, deterministic):
        return nn.relu(self.norm(self.lower(x), use_running_average=deterministic))

    def logits(self, maps, deterministic):
        features = self.drop(maps.mean((1, 2)), deterministic=deterministic)
        return self.upper(features) * 2.0, features

    def __call__(self, x, deterministic):
        return self.logits(self.maps(x, deterministic), deterministic)[0]


def raw(shape=(4, 4, 4, 1), seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8))


def standardized(values, mean=MEAN, std=STD):
    return (values.astype(jnp.float32) / 255 - mean) / std


@pytest.fixture(scope="module")
def user():
    network = from_linen(User(), (4, 4, 1), outputs=3, mean=MEAN, std=STD)
    return network, *jax.jit(network.init)(jax.random.key(0))


def test_evaluation_is_the_module(user):
    network, params, collections = user
    output = jax.jit(network.apply)(params, collections, raw())
    expected = jax.jit(lambda: User().apply({"params": params, **collections}, standardized(raw()), train=False))()
    np.testing.assert_allclose(output.logits, expected, rtol=1e-6, atol=1e-6)
    chex.assert_trees_all_equal(output.collections, collections)
    np.testing.assert_array_equal(output.maps, output.features)
    assert output.features.shape == (4, 6)
    assert network.per_task == ("Dense_1/bias", "Dense_1/kernel")
    assert network.wiring == ()


def test_initialisation_is_the_module_s(user):
    _, params, collections = user
    variables = User().init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)), train=False)
    chex.assert_trees_all_close({"params": params, **collections}, dict(variables), rtol=1e-5)


def test_training_is_the_module_with_the_same_key(user):
    network, params, collections = user
    key = jax.random.key(3)
    extra = {**collections, "mine": jnp.arange(2)}
    output = network.apply(params, extra, raw(), key=key)
    expected, updated = User().apply(
        {"params": params, **collections},
        standardized(raw()),
        train=True,
        rngs={"dropout": jax.random.split(key)[0]},
        mutable=["batch_stats"],
    )
    np.testing.assert_allclose(output.logits, expected, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(output.collections["batch_stats"], updated["batch_stats"], rtol=1e-6)
    assert not np.array_equal(
        output.collections["batch_stats"]["BatchNorm_0"]["mean"], collections["batch_stats"]["BatchNorm_0"]["mean"]
    )
    assert output.collections["mine"] is extra["mine"]


def test_collections_keep_their_dtypes(user):
    """Flax's BatchNorm widens bfloat16 statistics, which no loop can carry."""
    network, *trees = user
    params, collections = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), trees)
    with jax.numpy_dtype_promotion("standard"):
        trained = jax.eval_shape(lambda key: network.apply(params, collections, raw(), key=key), jax.random.key(0))
    chex.assert_trees_all_equal_shapes_and_dtypes(trained.collections, collections)


def test_gradients_are_the_module_s(user):
    network, params, collections = user
    loss = lambda logits: jnp.sum(jnp.square(logits))
    ours = jax.jit(jax.grad(lambda p: loss(network.apply(p, collections, raw()).logits)))(params)
    theirs = jax.jit(
        jax.grad(lambda p: loss(User().apply({"params": p, **collections}, standardized(raw()), train=False)))
    )(params)
    chex.assert_trees_all_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_methods_of_the_module_give_the_seam():
    network = from_linen(
        Halves(),
        (4, 4, 1),
        outputs=5,
        per_task=("upper/kernel", "upper/bias", "batch_stats/norm/mean"),
        train_argument="deterministic",
        encode_method="maps",
        decode_method="logits",
    )
    params, collections = jax.jit(network.init)(jax.random.key(0))
    key = jax.random.key(1)
    output = network.apply(params, collections, raw(), key=key)
    assert output.maps.shape == (4, 4, 4, 4)
    assert network.per_task == ("upper/kernel", "upper/bias", "batch_stats/norm/mean")
    inputs, variables = standardized(raw(), 0.0, 1.0), {"params": params, **collections}
    maps, updated = Halves().apply(variables, inputs, False, method="maps", mutable=["batch_stats"])
    logits, features = Halves().apply(
        variables, maps, False, method="logits", rngs={"dropout": jax.random.split(key)[1]}
    )
    np.testing.assert_allclose(output.maps, maps, rtol=1e-6)
    np.testing.assert_allclose(output.logits, logits, rtol=1e-6)
    np.testing.assert_allclose(output.features, features, rtol=1e-6)
    chex.assert_trees_all_close(output.collections, updated, rtol=1e-6)


def test_gates_of_a_user_s_layers():
    network = from_linen(User(), (4, 4, 1), outputs=3, mean=MEAN, std=STD, gates=("BatchNorm_0", "Dense_0"))
    assert {wire.path: wire[1:] for wire in network.wiring} == {
        "Conv_0/kernel": (None, "BatchNorm_0", 1),
        "Conv_0/bias": (None, "BatchNorm_0", 1),
        "BatchNorm_0/scale": (None, "BatchNorm_0", 1),
        "BatchNorm_0/bias": (None, "BatchNorm_0", 1),
        "Dense_0/kernel": ("BatchNorm_0", "Dense_0", 4),
        "Dense_0/bias": (None, "Dense_0", 1),
        "Dense_1/kernel": ("Dense_0", None, 1),
        "Dense_1/bias": (None, None, 1),
    }
    params, collections = jax.jit(network.init)(jax.random.key(0))
    chex.assert_trees_all_equal(collections["gates"], {"BatchNorm_0": jnp.ones(4), "Dense_0": jnp.ones(6)})
    output = jax.jit(network.apply)(params, collections, raw())
    plain = {"params": params, "batch_stats": collections["batch_stats"]}
    expected = jax.jit(lambda: User().apply(plain, standardized(raw()), train=False))()
    np.testing.assert_allclose(output.logits, expected, rtol=1e-6, atol=1e-6)
    assert {name: value.shape for name, value in output.activations.items()} == {
        "BatchNorm_0": (4, 4, 4, 4),
        "Dense_0": (4, 6),
    }

    mask = jnp.array([1.0, 0.0, 1.0, 0.0])
    gated = {**collections, "gates": {**collections["gates"], "BatchNorm_0": mask}}
    forward = jax.jit(
        lambda kernel: (
            network.apply({**params, "Dense_0": {**params["Dense_0"], "kernel": kernel}}, gated, raw()).logits
        )
    )
    kernel, closed = params["Dense_0"]["kernel"], 1 - jnp.tile(mask, 4)[:, None]
    np.testing.assert_array_equal(forward(kernel), forward(kernel + 3.0 * closed))
    assert not np.array_equal(forward(kernel), forward(kernel + 3.0 * (1 - closed)))


class Leaky(nn.Module):
    """Three ways in which a closed gate would not close: a shift after it, a nonlinearity, a skip connection."""

    kind: str

    @nn.compact
    def __call__(self, x):
        hidden = nn.Dense(4, name="gated")(x)
        if self.kind == "shift":
            hidden = nn.LayerNorm()(hidden)
        if self.kind == "nonlinearity":
            hidden = nn.sigmoid(hidden)
        if self.kind == "skip":
            hidden = hidden + x
        return nn.Dense(2, name="head")(hidden)


@pytest.mark.parametrize("kind", ["shift", "nonlinearity", "skip"])
def test_leaking_gates_are_refused(kind):
    with pytest.raises(ValueError, match="'head' still reads features that the gate 'gated' has closed"):
        from_linen(Leaky(kind), (4,), outputs=2, train_argument=None, gates=("gated",))


class Scaled(nn.Module):
    @nn.compact
    def __call__(self, x):
        return 2.0 * nn.Dense(2)(x)


class Wrapped(nn.Module):
    """A head whose kernel is another than the parameter of that name."""

    @nn.compact
    def __call__(self, x):
        return nn.WeightNorm(nn.Dense(2, name="top"))(x)


def test_mistakes_are_named():
    def build(module=User(), **options):  # noqa: B008
        return from_linen(module, options.pop("inputs", (4, 4, 1)), **{"outputs": 3, **options})

    with pytest.raises(ValueError, match=r"per_task names 'head/kernel'.*Conv_0/kernel.*batch_stats/BatchNorm_0/mean"):
        build(per_task=("head/kernel",))
    with pytest.raises(ValueError, match="not the string 'Dense_1/kernel'"):
        build(per_task="Dense_1/kernel")
    with pytest.raises(ValueError, match=r"shape \(1, 3\), but outputs=10"):
        build(outputs=10)
    with pytest.raises(ValueError, match="gates names 'Dense_1'"):
        build(gates=("Dense_1",))  # the head's outputs are logits
    with pytest.raises(ValueError, match="so the head is not known"):
        build(Scaled(), inputs=(4,), outputs=2, train_argument=None)
    with pytest.raises(ValueError, match="or neither"):
        build(encode_method="maps")
    with pytest.raises(ValueError, match=r"head 'top' does not compute with its own parameters.*nn\.WeightNorm"):
        build(Wrapped(), inputs=(4,), outputs=2, train_argument=None)


class NNXUser(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Conv(1, 4, (3, 3), rngs=rngs), nnx.Linear(64, 6, rngs=rngs)])
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(6, 3, rngs=rngs)

    def maps(self, x):
        return nnx.relu(self.norm(self.layers[0](x)))

    def logits(self, maps):
        return self.head(self.drop(nnx.relu(self.layers[1](maps.reshape(maps.shape[0], -1)))))

    def __call__(self, x):
        return self.logits(self.maps(x))


@pytest.mark.parametrize("methods", [{}, {"encode_method": "maps", "decode_method": "logits"}])
def test_nnx_is_exact(methods):
    model = NNXUser(nnx.Rngs(0))
    network = from_nnx(model, (4, 4, 1), outputs=3, mean=MEAN, std=STD, **methods)
    params, collections = network.init(jax.random.key(5))
    assert set(params) == {"layers", "norm", "head"}
    assert set(params["layers"]) == {"0", "1"}
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves((params, collections)))
    assert network.per_task == ("head/bias", "head/kernel")

    model.eval()
    output = network.apply(params, collections, raw())
    np.testing.assert_array_equal(output.logits, model(standardized(raw())))
    chex.assert_trees_all_equal(output.collections, collections)
    assert output.maps.shape == ((4, 4, 4, 4) if methods else (4, 6))
    assert output.features.shape == (4, 6)

    key = jax.random.key(1)
    trained = [network.apply(params, collections, raw(), key=k) for k in (key, key, jax.random.key(2))]
    np.testing.assert_array_equal(trained[0].logits, trained[1].logits)
    assert not np.array_equal(trained[0].logits, trained[2].logits)
    model.train()
    model.maps(standardized(raw()))
    moved = trained[0].collections["batch_stats"]["norm"]
    np.testing.assert_array_equal(moved["mean"], model.norm.mean.get_value())
    np.testing.assert_array_equal(moved["var"], model.norm.var.get_value())


def test_nnx_trains_under_jit_and_scan():
    network = from_nnx(NNXUser, (4, 4, 1), outputs=3)
    first, _ = network.init(jax.random.key(0))
    params, collections = network.init(jax.random.key(1))
    assert not np.array_equal(first["head"]["kernel"], params["head"]["kernel"])

    def step(carry, key):
        def loss(params, collections):
            output = network.apply(params, collections, raw(), key=key)
            return jnp.mean(jnp.square(output.logits - 1.0)), output.collections

        (value, collections), gradient = jax.value_and_grad(loss, has_aux=True)(*carry)
        return (jax.tree.map(lambda p, g: p - 0.02 * g, carry[0], gradient), collections), value

    _, values = jax.jit(lambda carry, keys: jax.lax.scan(step, carry, keys))(
        (params, collections), jax.random.split(jax.random.key(2), 40)
    )
    assert float(values[-5:].mean()) < 0.7 * float(values[:5].mean())


def test_nnx_mistakes_are_named():
    model = NNXUser(nnx.Rngs(0))
    with pytest.raises(ValueError, match="no submodule 'top'"):
        from_nnx(model, (4, 4, 1), outputs=3, head="top")
    with pytest.raises(ValueError, match="The outputs of 'layers/0' are not the module's logits"):
        from_nnx(model, (4, 4, 1), outputs=3, head="layers/0")
    with pytest.raises(ValueError, match="outputs=10"):
        from_nnx(model, (4, 4, 1), outputs=10)
    with pytest.raises(ValueError, match="per_task names 'top/kernel'"):
        from_nnx(model, (4, 4, 1), outputs=3, per_task=("top/kernel",))
