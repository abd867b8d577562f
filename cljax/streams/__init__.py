"""Streams: what is learned and in which order, as index tables over one shared array of examples."""

from cljax.streams.alignment import align, max_examples, stack
from cljax.streams.building import from_tasks, permuted, split
from cljax.streams.experience import Experience, experiences
from cljax.streams.growing import append, forget, pad
from cljax.streams.sampling import (
    BATCH_AXIS,
    apply_permutation,
    draw,
    epoch_order,
    gather,
    sequential,
    size_of,
    split_batch,
    task_of,
)
from cljax.streams.schedules import lifelong, multi_task, together, visits, with_schedule
from cljax.streams.sequences import by_superclass, one_vs_all, relabelled, sequence, superclass_labels

__all__ = [
    "BATCH_AXIS",
    "Experience",
    "align",
    "append",
    "apply_permutation",
    "by_superclass",
    "draw",
    "epoch_order",
    "experiences",
    "forget",
    "from_tasks",
    "gather",
    "lifelong",
    "max_examples",
    "multi_task",
    "one_vs_all",
    "pad",
    "permuted",
    "relabelled",
    "sequence",
    "sequential",
    "size_of",
    "split",
    "split_batch",
    "stack",
    "superclass_labels",
    "task_of",
    "together",
    "visits",
    "with_schedule",
]
