"""Ownership: which task made a feature. `masks` is its algebra, `gates` a whole network, `usage` how tasks share it.

`hard_attention` is its soft form, in which a task attends to a feature more or less.
"""

from cljax.ownership.gates import (
    Layout,
    Owner,
    apply_gates,
    claim,
    cut_interference,
    layout,
    owner_of,
    reinitialize,
    replace_owner,
    unowned,
    update_mask,
)
from cljax.ownership.splitting import between, claim_copies, drift, incoming_norms, scale_incoming, split
from cljax.ownership.widening import draw_sources, widen

__all__ = [
    "Layout",
    "Owner",
    "apply_gates",
    "between",
    "claim",
    "claim_copies",
    "cut_interference",
    "draw_sources",
    "drift",
    "incoming_norms",
    "layout",
    "owner_of",
    "reinitialize",
    "replace_owner",
    "scale_incoming",
    "split",
    "unowned",
    "update_mask",
    "widen",
]
