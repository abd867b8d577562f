"""Records made by hand, small enough to check every number of a report."""

import json

import numpy as np

from cljax.report import looks

FIRST = [[[0.9, 0.1], [0.5, 0.7]], [[0.8, 0.2], [0.6, 0.8]]]
SECOND = [[[0.9, 0.1], [0.9, 0.64]], [[0.8, 0.2], [0.8, 0.82]]]
CONFIG = {
    "methods": ["finetune", "tfm"],
    "data": {"data": "digits"},
    "training": {"seeds": [0, 1], "learning_rate": 0.05},
}


def make_run(method, accuracy, scenario="task", **changes):
    """An entry of a record: two epochs a task, each seed's accuracies `[after task][task]` given."""
    seeds, tasks = len(accuracy), len(accuracy[0])
    series = lambda first: [[[[first - 0.1 * s, first / 2 - 0.1 * s]] for _ in range(tasks)] for s in range(seeds)]
    run = {
        "method": method,
        "data": "digits",
        "scenario": scenario,
        "seeds": list(range(seeds)),
        "accuracy": accuracy,
        "task_il_accuracy": accuracy,
        "rounds": None,
        "zero_forgetting": method != "finetune",
        "schedule": {"task": list(range(tasks)), "epochs": [2] * tasks, "evaluate": [True] * tasks},
        "epochs": {"loss": series(2.0), "validation_loss": series(1.0), "validation_accuracy": series(0.8)},
        "curves": None,
        "curve_epochs": [],
        "seconds": [1.0, 2.0][:seeds],
        "compile_seconds": 1.5,
        "flops": 1_445_551.0,
        "bytes_per_task": 17160.0,
        "feature_usage": None,
        "facts": [{"kind": "split"}] * seeds,
        "config": CONFIG,
        "network": {"name": "mlp"},
        "versions": {"cljax": "0.1.0"},
        "device": {"platform": "cpu"},
        "parameters": {},
    }
    return {**run, **changes}


def make_usage():
    """Of one layer of 10 features, two tasks, two seeds: 4 and 3 made, of the 4 older ones 2 and 4 reused."""
    parts = {
        "used": [[0.4, 0.7], [0.4, 0.7]],
        "new": [[0.4, 0.3], [0.4, 0.3]],
        "reused": [[0.0, 0.2], [0.0, 0.4]],
        "free": [[0.6, 0.3], [0.6, 0.3]],
    }
    return {"dense_0": parts}


def make_attention():
    """Of two images of 4x4 pixels, maps of 2x2 after two tasks: the first sees one corner, then the other; the second
    image all of it, then nothing."""
    maps = np.array([[[[2, 0], [0, 0]], [[3, 3], [3, 3]]], [[[0, 0], [0, 0.5]], [[0, 0], [0, 0]]]])
    return {**looks.of_tasks(maps, np.arange(2)), "images": looks.packed(np.full((2, 4, 4), 51, np.uint8))}


def save(folder, *runs, **changes):
    """Writes a run folder with these runs; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {"format": 1, "complete": True, "left_out": {}, "runs": list(runs), **changes}
    (folder / "record.json").write_text(json.dumps(record))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder
