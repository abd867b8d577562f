"""Learning without Memorizing: the student sees old classes with the teacher's scores, and where the teacher does."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp

from cljax import losses, task_params
from cljax.attention import activation_map, grad_cam
from cljax.losses import Distance
from cljax.methods.combine import combine
from cljax.methods.common import mean, outputs_of
from cljax.methods.distilling import old_tasks, own_output
from cljax.methods.growing_head import Classification, growing_head
from cljax.methods.terms import numbers
from cljax.numbers import check_option, real
from cljax.task_params import flatten_heads
from cljax.types import Array, Batch, Clock, Learner, Method, Network, Output, Teacher, Term, Tree

Distilled = Literal["all", "top"]
AttentionMap = Literal["grad_cam", "activation"]


def attention(
    *,
    beta: float = 1.0,
    gamma: float = 1.0,
    distilled: Distilled = "all",
    distance: Distance = "l1",
    attention_map: AttentionMap = "grad_cam",
) -> Term:
    r"""Learning without Memorizing's term: keeps the scores of old classes, and where the network looks for them.

    $$ \beta L_D + \gamma L_{AD}, \qquad
    L_D = -\sum_{k \in \mathrm{old}} p_k \log q_k + (1 - p_k) \log (1 - q_k), \qquad
    L_{AD} = \Big\| \frac{Q'_b}{\|Q'_b\|_2} - \frac{Q_b}{\|Q_b\|_2} \Big\|_1 $$
    with $p = \sigma(t)$ of the teacher's logits, $q = \sigma(z)$; b is the old class of the student's largest logit,
    for both networks; $Q_b$ is the Grad-CAM of the current task's last maps. The maps are those of the training step;
    their importance is taken from the heads in evaluation mode.

    Args:
      beta: strength of L_D, the number `beta`.
      gamma: strength of L_AD, the number `gamma`.
      distilled: the old classes in L_D: 'all', or 'top', b alone.
      distance: of the attention maps of unit length: 'l1', or 'l2', squared.
      attention_map: Q, the 'grad_cam' of b; or 'activation', the sum of the squared maps, for no class in particular.

    Returns:
      The term `lwm`; metrics `distillation` (nats) and `attention`, before their strengths.

    Raises:
      ValueError: for an unknown option, or a number out of range; in training, for maps without positions.

    Example:
      >>> from cljax.methods import attention
      >>> attention(beta=0.0).name
      'lwm'

    Reference: Dhar et al., Learning without Memorizing, 2019, equations 1 to 3 and 6; for 'activation', Zagoruyko and
    Komodakis, Paying More Attention to Attention, 2017, equation 2, there by 'l2'.
    """
    check_option("lwm's distilled", distilled, Distilled)
    check_option("lwm's distance", distance, Distance)
    check_option("lwm's attention_map", attention_map, AttentionMap)
    strengths = {"beta": real("lwm's beta", beta, least=0), "gamma": real("lwm's gamma", gamma, least=0)}

    def map_of(params: Tree, collections: Tree, teacher: Teacher, clock: Clock, maps: Array, top: Array) -> Array:
        if attention_map == "activation":
            return activation_map(maps)
        base, learner = teacher.base, teacher.learner

        def head(params: Tree, collections: Tree, task: Array, maps: Array) -> Array:
            shown = base.view(params, collections, learner.method_state, task, clock.newest)
            return base.network.decode(*shown, maps, train=False, key=None)[0][0]

        axes = (task_params.row_axes(tree, learner.rows) for tree in (params, collections))
        tasks = jnp.arange(learner.rows.tasks, dtype=jnp.int32)
        heads = jax.vmap(head, in_axes=(*axes, 0, None))
        return grad_cam(lambda maps: flatten_heads(heads(params, collections, tasks, maps)), maps, top)

    def loss(params, learner: Learner, clock: Clock, batch: Batch, key, student: Output, teacher: Teacher):
        taught = teacher.respond(batch)
        maps, taught_maps = (own_output(output, clock).maps for output in (student, taught))
        if maps.ndim != 4:
            raise ValueError(f"lwm compares where two networks look, but their maps are [B, {maps.shape[1:]}].")
        logits, old = flatten_heads(student.logits), outputs_of(clock, old_tasks(learner, clock))
        top = jnp.argmax(losses.mask_logits(logits, old), axis=-1).astype(jnp.int32)
        kept = old if distilled == "all" else old[None, :] & jax.nn.one_hot(top, old.shape[0], dtype=jnp.bool_)
        looks = losses.attention_distillation(
            map_of(params, learner.collections, teacher, clock, maps, top),
            map_of(teacher.params, teacher.learner.collections, teacher, clock, taught_maps, top),
            distance=distance,
        )
        each = {
            "distillation": losses.sigmoid_distillation(logits, flatten_heads(taught.logits), classes=kept),
            "attention": looks * jnp.any(old).astype(looks.dtype),
        }
        found = {name: mean(values, batch.weights) for name, values in each.items()}
        beta, gamma = (learner.hyper[name].astype(logits.dtype) for name in strengths)
        return beta * found["distillation"] + gamma * found["attention"], found

    init = numbers(**strengths)
    return Term("lwm", init, loss=loss, all_heads=True, teacher=True, strengths=tuple(strengths))


def lwm(
    network: Network,
    *,
    classification: Classification = "bce_new",
    distilled: Distilled = "all",
    distance: Distance = "l1",
    attention_map: AttentionMap = "grad_cam",
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
    the head in evaluation mode, without dropout. The configurations compared in the paper, by beta and gamma:
    fine-tuning (0, 0), LwF-MC (beta, 0), LwM (beta, gamma), L_C + L_AD (0, gamma). The paper gives neither number.

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
      attention_map: Q, the 'grad_cam' of b; or 'activation', the sum of the squared maps, for no class in particular.
      beta: strength of L_D.
      gamma: strength of L_AD.

    Returns:
      The method. Its metrics are `classification`, `distillation` (nats) and `attention`, before their strengths.

    Raises:
      ValueError: for an unknown option, or a number out of range; where nothing belongs to a task, or something that is
        no parameter; where the network's maps have no positions; for 'ce_new' where every task has one class.

    Example:
      >>> from cljax import networks
      >>> from cljax.methods import lwm
      >>> lwm(networks.cnn((8, 8, 1), 2, dense=(), pooled=True)).name
      'lwm'

    Reference: Dhar et al., Learning without Memorizing, 2019, equations 1 to 3 and 6, table 3. In print,
    equation 1 leaves out the second term of L_D. For 'activation': Zagoruyko and Komodakis, Paying More Attention to
    Attention, 2017.
    """
    base = growing_head("lwm", network, classification=classification)
    if classification == "ce_new" and network.outputs == 1:
        raise ValueError(
            "lwm's classification is 'ce_new', but each task has one class, and a softmax over one class is always 1: "
            "nothing would be learned. Choose 'bce_new'."
        )
    _check_network(network)
    options: dict[str, Any] = {"distilled": distilled, "distance": distance, "attention_map": attention_map}
    term = attention(beta=beta, gamma=gamma, **options)
    return combine(base, term, name="lwm")


def _check_network(network: Network) -> None:
    params, collections = network.shapes
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
