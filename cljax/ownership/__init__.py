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
from cljax.ownership.widening import draw_sources, widen

__all__ = [
    "Layout",
    "Owner",
    "apply_gates",
    "claim",
    "cut_interference",
    "draw_sources",
    "layout",
    "owner_of",
    "reinitialize",
    "replace_owner",
    "unowned",
    "update_mask",
    "widen",
]
