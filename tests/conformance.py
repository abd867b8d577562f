"""The conformance table: one row a method, and the small real streams every row is run on.

A new method adds one line to `TABLE`; the properties of `test_conformance.py` then hold for it, or say what is wrong.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import optax
from sklearn.datasets import load_digits

from cljax import data, methods, networks, streams
from cljax.types import Method, Network, Stream

TASKS = 3
TWO = (16, 12)
"""Hidden layers for what looks at them: which units feed which, which layers are shared, or grow."""


class Row(NamedTuple):
    """A method of the table: how to build it for a network, and what is particular about it.

    `rounding`: how far, relatively, two programs of one run may come apart.
    """

    build: Callable[[Network], Method]
    normalization: str | None = "batch"
    hidden: tuple[int, ...] = (16,)
    dropout: float = 0.2
    rounding: float = 1e-4


def _convolutional(make: Callable[[Network], Method], network: Network) -> Method:
    convolutional = networks.cnn(
        network.inputs,
        network.outputs,
        channels=((3,),),
        dense=(),
        dropout=0.2,
        normalization="batch",
    )
    return make(convolutional)


def _clnp_single_head(network: Network) -> Method:
    return methods.clnp(network._replace(per_task=()), margin=0.05)


def _lwm(network: Network, **options: Any) -> Method:
    pooled = networks.cnn(
        network.inputs,
        network.outputs,
        channels=((6,),),
        dense=(),
        pooled=True,
        normalization="batch",
        dropout=0.2,
    )
    return methods.lwm(pooled, **options)


TABLE = {
    "finetune": Row(methods.finetune),
    "duplicate_and_finetune": Row(methods.duplicate_and_finetune, hidden=TWO),
    "feature_extraction": Row(functools.partial(methods.feature_extraction, hidden=8), hidden=TWO),
    "freezing": Row(methods.freezing),
    "joint": Row(methods.joint),
    "joint_in_shares": Row(functools.partial(methods.joint, shares=(2, 1), own_part=True)),
    "l2_constraint": Row(methods.l2_constraint),
    "single_task": Row(methods.single_task),
    "hard_sharing": Row(methods.hard_sharing, hidden=TWO),
    "clnp": Row(functools.partial(methods.clnp, margin=0.05), hidden=TWO),
    "clnp_graceful": Row(
        functools.partial(methods.clnp, margin=0.05, candidates=((1e-4, 0.05), (1e-3, 0.02)), fine_tune=0.5),
        normalization=None,
        hidden=TWO,
    ),
    "clnp_single_head": Row(_clnp_single_head, hidden=TWO),
    "den": Row(functools.partial(methods.den, expansion=2), normalization=None, hidden=TWO),
    "df_cnn": Row(functools.partial(_convolutional, methods.df_cnn)),
    "ewc": Row(functools.partial(methods.ewc, penalty="separate", fisher="sampled")),  # the other penalty is `mas`'s
    "lfl": Row(methods.lfl),
    "imm": Row(methods.imm),
    "mas": Row(methods.mas),
    "replay": Row(functools.partial(methods.replay, memory_size=20)),
    "si": Row(methods.si),
    "lwf+l2_constraint": Row(functools.partial(methods.build, "lwf+l2_constraint")),
    "hat": Row(methods.hat, normalization=None, hidden=TWO),
    "hat_binarized": Row(functools.partial(methods.hat, binarize=True), hidden=TWO),
    "lwf+replay": Row(
        functools.partial(
            methods.build, "lwf+replay", parameters={"replay.memory_size": 20, "replay.selection": "reservoir"}
        )
    ),
    "icarl": Row(functools.partial(methods.icarl, memory_size=20)),
    "lwf": Row(methods.lwf),
    "lwf_mc": Row(methods.lwf_mc),
    "lwf_tuned": Row(lambda network: methods.tuned(methods.lwf(network), learning_rates=(0.05, 0.02), tries=2)),
    "lwm": Row(_lwm),
    "lwm_by_activation": Row(functools.partial(_lwm, beta=0.0, attention_map="activation")),
    "network_expansion": Row(methods.network_expansion, hidden=TWO),
    "packnet": Row(methods.packnet, hidden=TWO),
    "progressive": Row(methods.progressive, hidden=TWO),
    "superposition": Row(methods.superposition, hidden=TWO),
    "tensor_factorization": Row(functools.partial(_convolutional, methods.tensor_factorization)),
    "tfm": Row(functools.partial(methods.tfm, candidates=(0.2, 0.4, 0.6)), normalization="feature", hidden=TWO),
    "tfm_binary": Row(
        functools.partial(methods.tfm, connections="binary", growth=(0.4, 0.3)), normalization=None, hidden=TWO
    ),
    "tfm_into_new": Row(
        functools.partial(methods.tfm, connections="into_new", feature_normalization=False),
        normalization="feature",
        hidden=TWO,
    ),
}
HOSTED = ("clnp", "finetune", "icarl", "joint", "lwf", "tfm")
"""Rows that differ in what a driver does for them: draw, remember, fold, keep rows. The step is the same function."""
FORGETS_NOTHING = (
    "duplicate_and_finetune",
    "feature_extraction",
    "freezing",
    "single_task",
    "clnp",
    "clnp_graceful",
    "clnp_single_head",
    "hat_binarized",
    "network_expansion",
    "packnet",
    "progressive",
    "tfm",
    "tfm_binary",
    "tfm_into_new",
)

OPTIMIZERS = {
    "momentum": (optax.chain(optax.add_decayed_weights(1e-3), optax.sgd(1.0, momentum=0.9)), 0.05),
    "adam": (optax.adam(1.0), 0.003),
    "adamw": (optax.adamw(1.0, weight_decay=0.1), 0.003),
    "rmsprop": (optax.rmsprop(1.0, momentum=0.9), 0.003),
}


@functools.cache
def digits() -> data.Dataset:
    """Two hundred and forty of scikit-learn's digits for training, a hundred for testing."""
    found = load_digits()
    images = np.round(found.images * 255 / 16).astype(np.uint8)[..., None]
    labels = found.target.astype(np.int32)
    return data.from_arrays(images[:240], labels[:240], images[240:340], labels[240:340], name="few digits")


def stream(*, seed: int = 0, epochs: int = 1, scenario: str = "task", schedule=None) -> Stream:
    """Three tasks of 3, 2 and 2 classes of digits: unequal sizes and numbers of classes, a last partial batch."""
    return streams.split(
        digits(),
        tasks=TASKS,
        sizes=(3, 2, 2),
        class_order=[4, 9, 1, 7, 0, 3, 8],
        seed=seed,
        epochs=epochs,
        scenario=scenario,
        schedule=schedule,
    )


def network(row: Row, like: Stream) -> Network:
    """A small network for the row on a stream."""
    shape, outputs = like.tables.examples.shape[1:], like.tables.classes.shape[1]
    return networks.mlp(
        shape,
        outputs,
        hidden=row.hidden,
        normalization=row.normalization,
        dropout=row.dropout,
        mean=like.mean,
        std=like.std,
    )


def build(name: str, like: Stream) -> Method:
    """The method of a row, for a stream."""
    return TABLE[name].build(network(TABLE[name], like))
