"""iCaRL: exemplars by herding, old outputs distilled, and classification by the nearest mean of exemplars."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from cljax import memory, task_params
from cljax.methods.combine import combine
from cljax.methods.common import depends_on_own
from cljax.methods.distilling import old_scores, own_output
from cljax.methods.growing_head import growing_head
from cljax.methods.replay import exemplars
from cljax.numbers import check_option, flag, whole
from cljax.types import Array, Batch, Clock, Fold, Learner, Method, Network, Respond, Sizes, Term, Tree

Classifier = Literal["nearest_mean", "network"]
CHUNK = 256
"""Exemplars whose features are computed at once."""


def icarl(
    network: Network,
    *,
    memory_size: int = 200,
    classifier: Classifier = "nearest_mean",
    distillation: bool = True,
    flips: bool = True,
    push_unseen: bool = True,
) -> Method:
    r"""iCaRL: one growing head of sigmoid outputs trains the features, exemplars' means in them are the classifier.

    $$ L = -\sum_k \tilde y_k \log \sigma(z_k) + (1 - \tilde y_k) \log (1 - \sigma(z_k)), \qquad
    \tilde y_k = \begin{cases} \sigma(t_k) & k \text{ an old class} \\ y_k & \text{else} \end{cases} $$
    $$ y(x) = \operatorname*{argmin}_k \| \phi(x) - \mu_k / \|\mu_k\|_2 \|_2, \qquad
    \mu_k = \frac{1}{2 |P_k|} \sum_{p \in P_k} \phi(p) + \phi(\bar p), \qquad \phi = \frac{f}{\|f\|_2} $$
    on the current task's examples and the exemplars P of all classes seen before, as many of each as the memory takes,
    chosen at the end of a visit by herding (see `exemplars`); with the teacher's logits t as of `lwf_mc`, the features
    f that enter the head, and the mirrored image $\bar p$. The means are those of the last visit's end; while a task is
    first visited its own classes have none. Labels are single.

    The paper's ablations: hybrid1 is `classifier='network'`, hybrid2 `distillation=False` (old classes are then learned
    by the exemplars' labels), hybrid3 both, and LwF-MC (`lwf_mc`) is hybrid1 with `memory_size=0`.

    Args:
      network: an ordinary network whose `per_task` leaves are its head: a block of outputs for each task.
      memory_size: number of exemplars, for all classes together; 0, none, is for classifier 'network'.
      classifier: by the 'nearest_mean', negative squared distances being the logits, or by the 'network', as trained.
      distillation: whether old outputs are distilled; if not, all outputs seen learn the labels.
      flips: whether the mean is also of mirrored images, as in the official code; vectors are never mirrored. False for
        what means nothing in a mirror, such as permuted pixels.
      push_unseen: whether outputs of classes not yet seen are pushed to 0, as in the official code.

    Returns:
      The method. Its metrics are `classification`, and with distillation `distillation`, in nats.

    Raises:
      ValueError: for an unknown option, or a number out of range; where nothing belongs to a task, or features do; in
        training, for labels of several classes each.

    Example:
      >>> from cljax import networks
      >>> from cljax.methods import icarl
      >>> icarl(networks.mlp((8, 8, 1), 2), memory_size=50).memory_size
      50

    Reference: Rebuffi et al., iCaRL: Incremental Classifier and Representation Learning, 2017, algorithms 1 to 5, and
    table 3 for the ablations. The official code sums nothing but takes a mean over all outputs: see `lwf_mc`.
    """
    check_option("icarl's classifier", classifier, Classifier)
    by_mean = classifier == "nearest_mean"
    memory_size = whole("icarl's memory_size", memory_size, least=1 if by_mean else 0)
    distillation, flips = flag("icarl's distillation", distillation), flag("icarl's flips", flips)
    kind: Literal["bce_new", "bce_all"] = "bce_new" if distillation else "bce_all"
    base = growing_head("icarl", network, classification=kind, push_unseen=push_unseen)
    if depends_on_own(network, lambda output: output.features):
        raise ValueError(
            f"icarl compares classes by features that all tasks share, but leaves below them belong to a task: "
            f"{', '.join(network.per_task)}. Let the head alone be per_task."
        )

    def init(learner: Learner, sizes: Sizes) -> tuple[dict[str, Tree], dict[str, Array]]:
        features = lambda params, collections, inputs: network.apply(params, collections, inputs).features
        inputs = jax.ShapeDtypeStruct((memory_size, *network.inputs), jnp.float32)
        like = jax.eval_shape(features, *network.shapes, inputs)
        return {"vectors": jnp.zeros(like.shape, like.dtype)}, {}

    def end_visit(learner: Learner, clock: Clock, fold: Fold, key: Array, respond: Respond) -> Learner:
        kept = learner.memory
        assert kept is not None
        if kept.labels.ndim == 2:
            raise ValueError("icarl classifies by a mean of each class, but the labels are several an example.")

        def embed(inputs: Array) -> Array:
            blank = jnp.zeros(len(inputs), jnp.int32)
            batch = Batch(inputs, blank, blank, blank, jnp.ones(len(inputs), jnp.float32))
            return memory.unit(own_output(respond(learner.params, batch), clock).features)

        def both(inputs: Array) -> Array:
            return 0.5 * (embed(inputs) + embed(inputs[:, :, ::-1])) if flips and inputs.ndim == 4 else embed(inputs)

        size = min(CHUNK, memory_size)
        padded = jnp.pad(kept.inputs, [(0, -memory_size % size)] + [(0, 0)] * (kept.inputs.ndim - 1))
        vectors = lax.map(both, padded.reshape(-1, size, *padded.shape[1:]))
        return learner._replace(method_state={"vectors": vectors.reshape(-1, vectors.shape[-1])[:memory_size]})

    def predict(learner: Learner, inputs: Array, task: Array) -> Array:
        task_params.check_task(task, learner.rows.tasks)
        kept, vectors = learner.memory, learner.method_state.terms["icarl"]["vectors"]
        assert kept is not None
        mine = (kept.valid & (kept.tasks == task)).astype(vectors.dtype)
        member = mine[:, None] * jax.nn.one_hot(kept.labels, network.outputs, dtype=vectors.dtype)
        counts = jnp.sum(member, axis=0)
        means = jnp.matmul(member.T, vectors, precision=lax.Precision.HIGHEST) / jnp.maximum(counts, 1)[:, None]
        trees = learner.params, learner.collections
        params, collections = (task_params.take_row(tree, jnp.int32(0), learner.rows) for tree in trees)
        features = network.apply(params, collections, inputs).features  # the same, whoever's head it is
        distances = memory.mean_distances(features, means, counts > 0)
        return task_params.of_task(-distances, task, learner.rows.tasks)

    term = Term("icarl", all_heads=True, teacher=distillation, loss=old_scores if distillation else None)
    if by_mean:
        term = term._replace(init=init, end_visit=end_visit)
    chosen = [exemplars(memory_size=memory_size, selection="herding")] if memory_size else []
    method = combine(base, *chosen, term, name="icarl")
    return method._replace(predict=predict) if by_mean else method
