"""The numbers of Li and Hoiem, Learning without Forgetting, 2016: percent of accuracy (VOC: mean average precision)."""

from __future__ import annotations

SOURCE = "Li and Hoiem 2016"

PAIRS = ("ImageNet-VOC", "ImageNet-CUB", "ImageNet-Scenes", "Places2-VOC", "Places2-CUB", "Places2-Scenes")


def _table(columns: tuple[str, ...], **rows: str) -> dict[str, dict[str, dict[str, float]]]:
    """`{pair of tasks: {method: {'old': number, 'new': number}}}` of rows of numbers, old and new by turns."""
    numbers = {method: [float(word) for word in row.split()] for method, row in rows.items()}
    return {
        pair: {method: {"old": row[2 * at], "new": row[2 * at + 1]} for method, row in numbers.items()}
        for at, pair in enumerate(columns)
    }


TABLE_1 = {
    "a, AlexNet; lwf, and differences to it": _table(
        (*PAIRS, "ImageNet-MNIST"),
        lwf="56.5 75.8 55.1 57.5 55.9 64.5 43.3 72.1 38.4 41.7 43.0 75.3 52.1 99.0",
        finetune="-1.4 -0.3 -5.1 -1.5 -3.4 -1.0 -1.8 -0.1 -9.1 -0.8 -4.1 -0.8 -4.9 0.2",
        feature_extraction="0.5 -1.1 2.0 -5.3 1.2 -3.7 -0.2 -3.9 4.7 -19.4 0.2 -0.5 5.0 -0.8",
        joint="0.2 0.0 0.5 -0.9 0.5 -0.6 -0.1 0.1 3.3 -0.2 0.2 0.1 4.7 0.2",
    ),
    "b, test sets": _table(
        ("Places2-VOC",), lwf="41.1 75.2", finetune="-1.9 -0.1", feature_extraction="0.1 -3.5", joint="0.0 0.0"
    ),
    "c, VGG-16": _table(
        ("ImageNet-CUB", "ImageNet-Scenes"),
        lwf="65.6 72.3 68.1 74.7",
        finetune="-11.0 -0.2 -5.6 -0.7",
        feature_extraction="3.1 -9.1 0.7 -5.1",
        joint="2.5 2.3 2.0 0.8",
    ),
}
TABLE_2 = {
    "a, own layers from": _table(
        ("Places2-VOC", "ImageNet-Scenes", "ImageNet-CUB"),
        output="43.3 72.1 55.9 64.5 55.1 57.5",
        last_hidden="43.1 72.5 55.5 64.2 54.8 56.5",
        second_last_hidden="43.1 72.6 55.8 64.2 55.2 56.1",
    ),
    "b, differences to lwf": _table(
        PAIRS,
        network_expansion="0.5 -1.1 2.0 -3.6 1.2 -2.0 -0.2 -3.6 4.7 -6.9 0.2 0.0",
        network_expansion_lwf="0.0 0.1 -0.3 -0.5 -0.2 -0.4 0.0 0.2 1.3 -0.1 -0.3 -0.2",
        l2_constraint="-1.0 -0.4 -4.2 -2.0 -3.0 -1.0 -1.5 -0.5 -8.5 -3.3 -4.0 -0.4",
    ),
    "c, response loss": _table(
        ("Places2-VOC",), l1="43.5 71.9", l2="42.2 72.3", cross_entropy="43.6 71.8", distillation="43.3 72.1"
    ),
    "d, rate of shared parameters": _table(
        ("ImageNet-VOC", "Places2-VOC"), finetune="55.2 75.6 41.5 71.9", finetune_tenth="55.9 75.5 41.5 71.4"
    ),
}
FIGURE_1 = {
    "columns": ["finetune", "duplicate_and_finetune", "feature_extraction", "joint", "lwf"],
    "new task performance": ["good", "good", "medium", "best", "best"],
    "original task performance": ["bad", "good", "good", "good", "good"],
    "training efficiency": ["fast", "fast", "fast", "slow", "fast"],
    "testing efficiency": ["fast", "slow", "fast", "fast", "fast"],
    "storage requirement": ["medium", "large", "medium", "large", "medium"],
    "requires previous task data": ["no", "no", "no", "yes", "no"],
}
IN_A_FIGURE = "curves without numbers"
