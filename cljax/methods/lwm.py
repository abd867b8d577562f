"""Learning without Memorizing: the student sees old classes with the teacher's scores, and where the teacher does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax

from cljax import losses, task_params
from cljax.attention import grad_cam
from cljax.losses import Distance
from cljax.methods.common import (
    check_network,
    flatten_heads,
    mean,
    one_head_labels,
    outputs_of,
    place_labels,
    plain,
    require_own_leaves,
    seen_tasks,
    update_masks,
)
from cljax.methods.teacher import old_tasks, renew_teacher, snapshot
from cljax.numbers import real
from cljax.types import Array, Batch, Clock, Learner, Method, Network, Output, Sizes, Tree

Classification = Literal["bce_new", "bce_all", "ce_new", "ce_all"]
Distilled = Literal["all", "top"]

CLASSIFICATIONS = {  # the classes in L_C: of the current task or all seen; a label: one class, or yes or no of each
    "bce_new": ("new", "binary"),
    "bce_all": ("seen", "binary"),
    "ce_new": ("new", "softmax"),
    "ce_all": ("seen", "softmax"),
}


def lwm(
    network: Network,
    *,
    classification: Classification = "bce_new",
    distilled: Distilled = "all",
    distance: Distance = "l1",
    beta: float = 1.0,
    gamma: float = 1.0,
) -> Method:
    r"""Learning without Memorizing: classification, distillation of scores, distillation of attention.

    $$ L = L_C + \beta L_D + \gamma L_{AD} $$
    $$ L_D = -\sum_{k \in \mathrm{old}} p_k \log q_k + (1 - p_k) \log (1 - q_k), \quad p = \sigma(t), \; q = \sigma(z);
    \qquad L_{AD} = \Big\| \frac{Q'_b}{\|Q'_b\|_2} - \frac{Q_b}{\|Q_b\|_2} \Big\|_1 $$
    with the logits t and the attention Q' of the teacher, the network as it was just before the visit, in evaluation
    mode; b is the old class of the student's largest logit, for both networks; Q_b is the Grad-CAM of the last maps. On
    the first task there is L_C alone. The maps are those of the training step; the importance of a map is taken from
    the head in evaluation mode, without dropout. The configurations compared in the paper: fine-tuning (0, 0), LwF-MC
    (beta, 0), LwM (beta, gamma), attention alone (0, gamma). The paper gives neither number.

    The classes in L_C, and what a label says:

    | classification | classes | label |
    |---|---|---|
    | `bce_new` | of the current task | yes or no of each: the sum of binary cross-entropies |
    | `bce_all` | all seen | the same |
    | `ce_new` | of the current task | one of them: the cross-entropy of a softmax |
    | `ce_all` | all seen | the same |

    The paper's baseline is iCaRL's LwF-MC, and with 'bce_new' this is LwF-MC and L_AD: at gamma 0 it is
    `lwf_mc(push_unseen=False)`. Over 'all' classes L_C pushes every old output down, since no example is of an old
    class, against L_D. A softmax over one class is always 1: of a task of one class 'ce_new' learns nothing. Float
    labels (multi-label) are yes or no of each class in every row.

    Args:
      network: an ordinary network with feature maps `[B, H, W, C]`, best with a head on globally average-pooled maps
        (`networks.cnn(..., dense=(), pooled=True)`). Its `per_task` leaves are parameters of the head: a block of
        outputs for each task, one growing head together.
      classification: L_C, a row of the table.
      distilled: the old classes in L_D: 'all' as in equation 1, or 'top', b alone, as section 5.3 may be read.
      distance: of the attention maps of unit length: 'l1', the one that the paper chose, or 'l2', squared.
      beta: strength of L_D.
      gamma: strength of L_AD.

    Returns:
      The method. Its metrics are `classification`, `distillation` (nats) and `attention`, before their strengths.

    Raises:
      ValueError: for an unknown option, or a number out of range; where nothing belongs to a task, or something that is
        no parameter; where the network's maps have no positions; for 'ce_new' where every task has one class.

    Example:
      >>> from cljax import networks
      >>> lwm(networks.cnn((8, 8, 1), 2, dense=(), pooled=True)).name
      'lwm'

    Reference: Dhar et al., Learning without Memorizing, 2019, equations 1 to 3 and 6, table 3. In print,
    equation 1 leaves out the second term of L_D.
    """
    check_network(network)
    options = {
        "classification": (classification, Classification),
        "distilled": (distilled, Distilled),
        "distance": (distance, Distance),
    }
    for name, (value, kind) in options.items():
        if value not in get_args(kind):
            raise ValueError(f"lwm's {name} is {value!r}, but must be one of {', '.join(get_args(kind))}.")
    if classification == "ce_new" and network.outputs == 1:
        raise ValueError(
            "lwm's classification is 'ce_new', but each task has one class, and a softmax over one class is always 1: "
            "nothing would be learned. Choose 'bce_new'."
        )
    among, labelled = CLASSIFICATIONS[classification]
    beta, gamma = real("lwm's beta", beta, least=0), real("lwm's gamma", gamma, least=0)
    _check_network(network)
    base = plain("lwm", network)

    def init(key: Array, sizes: Sizes) -> tuple[Tree, Tree, Tree, dict[str, Array]]:
        params, collections, _, _ = base.init(key, sizes)
        hyper = {"beta": jnp.float32(beta), "gamma": jnp.float32(gamma)}
        return params, collections, {"teacher": snapshot(params, collections)}, hyper

    def run(params: Tree, collections: Tree, learner: Learner, clock: Clock, inputs: Array, key: Array | None):
        """One encoding, all heads: the output, logits `[T, B, K]`; and the flat logits as a function of maps."""
        train = key is not None
        encode_key, decode_key = (None, None) if key is None else tuple(jax.random.split(key))
        own = task_params.take_row(params, clock.task, learner.rows)
        maps, lower, collections = network.encode(own, collections, inputs, train=train, key=encode_key)

        def heads(maps: Array, *, train: bool, key: Array | None) -> Output:
            def one(params: Tree) -> Output:
                (logits, features), upper, updated = network.decode(params, collections, maps, train=train, key=key)
                return Output(logits, features, maps, {**lower, **upper}, updated)

            axes, out = task_params.row_axes(params, learner.rows), Output(0, 0, 0, 0, None)  # type: ignore[arg-type]
            return jax.vmap(one, in_axes=(axes,), out_axes=out)(params)

        decode: Callable[[Array], Array] = lambda maps: flatten_heads(heads(maps, train=False, key=None).logits)
        return maps, heads(maps, train=train, key=decode_key), decode

    def loss(params: Tree, learner: Learner, clock: Clock, batch: Batch, key: Array | None):
        maps, output, decode = run(params, learner.collections, learner, clock, batch.inputs, key)
        teacher = lax.stop_gradient(learner.method_state["teacher"])
        teacher_maps, taught, teacher_decode = run(
            teacher["params"], teacher["collections"], learner, clock, batch.inputs, None
        )
        logits, teacher_logits = flatten_heads(output.logits), flatten_heads(taught.logits)
        old_rows = old_tasks(learner, clock)
        seen = seen_tasks(learner, clock)
        old = outputs_of(clock, old_rows)
        learned = outputs_of(clock, seen & ~old_rows if among == "new" else seen)
        labels = (place_labels if labelled == "binary" else one_head_labels)(batch, clock)
        top = jnp.argmax(losses.mask_logits(logits, old), axis=-1).astype(jnp.int32)
        kept = old if distilled == "all" else old[None, :] & jax.nn.one_hot(top, old.shape[0], dtype=jnp.bool_)
        attention = losses.attention_distillation(
            grad_cam(decode, maps, top), grad_cam(teacher_decode, teacher_maps, top), distance=distance
        )
        attention = attention * jnp.any(old).astype(attention.dtype)
        terms = {
            "classification": losses.cross_entropy(logits, labels, classes=learned),
            "distillation": losses.sigmoid_distillation(logits, teacher_logits, classes=kept),
            "attention": attention,
        }
        metrics = {name: mean(each, batch.weights) for name, each in terms.items()}
        beta, gamma = (learner.hyper[name].astype(logits.dtype) for name in ("beta", "gamma"))
        value = metrics["classification"] + beta * metrics["distillation"] + gamma * metrics["attention"]
        return value, (output, metrics)

    return base._replace(
        init=init,
        begin_task=renew_teacher,
        loss=loss,
        update_mask=lambda learner, clock: update_masks(learner, seen_tasks(learner, clock), True),
        end_phase=renew_teacher,
        stacked=network.per_task,
    )


def _check_network(network: Network) -> None:
    require_own_leaves("lwm", network)
    params, collections = jax.eval_shape(network.init, jax.random.key(0))
    if stray := [path for path in network.per_task if path in task_params.leaf_paths(collections)]:
        raise ValueError(
            f"lwm reads all heads from one encoding, so that only parameters of the head may belong to a task, but "
            f"per_task names '{stray[0]}', which is in the network's collections. Let tasks share it: leave it out of "
            f"per_task."
        )
    inputs = jax.ShapeDtypeStruct((1, *network.inputs), jnp.float32)
    encode = lambda params, collections, inputs: network.encode(params, collections, inputs, train=False, key=None)[0]
    maps = jax.eval_shape(encode, params, collections, inputs)
    if maps.ndim != 4:
        raise ValueError(
            f"lwm compares where two networks look, which needs feature maps [B, H, W, C], but this network's have the "
            f"shape [B, {', '.join(map(str, maps.shape[1:]))}]. Take a convolutional one, such as networks.cnn(..., "
            f"dense=(), pooled=True), or cut a model of your own at its last maps (encode_method and decode_method of "
            f"networks.from_linen and networks.from_nnx)."
        )
