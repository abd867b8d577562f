r"""Metrics of continual learning: from an accuracy matrix, from learning curves, from ownership, from seeds.

`accuracy[..., i, j]` is :math:`R_{i,j}`, the test accuracy on task j after training on task i, both counted from 0; for
streams that revisit tasks, `first_visits` makes such a matrix. `curves[..., e, j]` is the test accuracy on task j after
epoch e of the run. Leading axes are seeds. Accuracies are fractions (percent serve too) and so are the results. Entries
that a metric does not need may be NaN; a NaN among those it needs shows in the result. All functions work on NumPy and
JAX arrays and under `jit`, but for those that say they run on the host. A metric about earlier tasks is 0 for one task.
"""

from cljax.metrics.curves import epochs_to_converge, forgetting_ratio, peak_accuracy
from cljax.metrics.intervals import Interval, mean_and_interval, paired_difference
from cljax.metrics.matrix import (
    average_accuracy,
    average_incremental_accuracy,
    backward_transfer,
    first_visits,
    forgetting,
    forward_transfer,
    intransigence,
)
from cljax.metrics.predictions import correct
from cljax.metrics.ranking import average_precision, mean_average_precision
from cljax.metrics.resources import BITS, Capacity, feature_usage, overhead_bytes
from cljax.metrics.resources import feature_usage as capacity

__all__ = [
    "BITS",
    "Capacity",
    "Interval",
    "average_accuracy",
    "average_incremental_accuracy",
    "average_precision",
    "backward_transfer",
    "capacity",
    "correct",
    "epochs_to_converge",
    "feature_usage",
    "first_visits",
    "forgetting",
    "forgetting_ratio",
    "forward_transfer",
    "intransigence",
    "mean_and_interval",
    "mean_average_precision",
    "overhead_bytes",
    "paired_difference",
    "peak_accuracy",
]
