"""The vocabulary of the library: what flows through a training loop, and what a method is.

Everything that changes is in one pytree, the `Learner`; everything that is fixed is a tuple of pure functions, the
`Network` and the `Method`; the task is traced data, in the `Clock`. These types hold no logic.
"""

from cljax.types.data import Array, Batch, HostArray, Memory, Schedule, Stream, Table, Tables, Tree
from cljax.types.method import (
    AdjustGradients,
    AfterStep,
    Candidates,
    Choose,
    Clock,
    Fold,
    Hook,
    Init,
    Learner,
    Loss,
    Method,
    Phase,
    Predict,
    Search,
    Sizes,
    UpdateMask,
    View,
    constant_learning_rate,
    make_clock,
    single_label_of,
)
from cljax.types.network import Decode, Encode, Network, Output, Wire

__all__ = [
    "AdjustGradients",
    "AfterStep",
    "Array",
    "Batch",
    "Candidates",
    "Choose",
    "Clock",
    "Decode",
    "Encode",
    "Fold",
    "Hook",
    "HostArray",
    "Init",
    "Learner",
    "Loss",
    "Memory",
    "Method",
    "Network",
    "Output",
    "Phase",
    "Predict",
    "Schedule",
    "Search",
    "Sizes",
    "Stream",
    "Table",
    "Tables",
    "Tree",
    "UpdateMask",
    "View",
    "Wire",
    "constant_learning_rate",
    "make_clock",
    "single_label_of",
]
