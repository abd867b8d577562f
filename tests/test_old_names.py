"""Records, run folders and checkpoints of versions that had other names."""

import json

import jax.numpy as jnp
import pytest

from cljax import report
from cljax.storage import checkpoints, folders
from tests.records import FIRST, make_run, make_usage
from tests.shared import bits

NAMES = {
    "task_il_accuracy": "task_aware",
    "zero_forgetting": "forgets_nothing",
    "feature_usage": "capacity",
    "learning_rate": "rate",
    "fraction": "share",
}


def older(value):
    """The same with the old names."""
    if isinstance(value, dict):
        return {NAMES.get(key, key): older(item) for key, item in value.items()}
    return [older(item) for item in value] if isinstance(value, list) else value


def test_an_old_record_is_the_new_one(tmp_path):
    run = make_run("tfm", FIRST, feature_usage=make_usage())
    run["config"] = {**run["config"], "training": {"learning_rate": 0.05, "seeds": [0]}, "data": {"fraction": [0.5]}}
    run["facts"] = [{"kind": "split", "fraction": [0.5]}] * 2
    rounds = {name: [run[name][0]] * len(run["seeds"]) for name in ("accuracy", "task_il_accuracy")}
    record = {"runs": [{**run, "rounds": rounds}], "complete": True}
    report.check(record, "the new one")
    (tmp_path / "record.json").write_text(json.dumps(older(record)))
    assert json.loads((tmp_path / "record.json").read_text()) != record
    assert report.read(tmp_path) == record


def test_an_interrupted_run_of_old_names_is_taken_up(tmp_path):
    old = {"methods": ["finetune"], "training": {"rate": 0.1, "rate_decay": 0.0, "set": ["finetune.shared_rate=0.5"]}}
    new = {
        "methods": ["finetune"],
        "training": {"learning_rate": 0.1, "learning_rate_decay": 0.0, "set": ["finetune.shared_learning_rate=0.5"]},
    }
    place = tmp_path / "run"
    place.mkdir()
    (place / "config.json").write_text(json.dumps(old))
    (place / "record.json").write_text(json.dumps({"runs": [{"method": "finetune", "forgets_nothing": True}]}))
    assert folders.interrupted(tmp_path, new) == place
    with folders.claim(place, new) as folder:
        assert folder.record["runs"] == [{"method": "finetune", "zero_forgetting": True}]
    other = {**new, "training": {**new["training"], "learning_rate": 0.2}}
    with pytest.raises(folders.FolderError, match=r"differs in training.learning_rate \(0.1 there, 0.2 now\)"):
        folders.claim(place, other).__enter__()


def test_a_leaf_that_is_called_as_another_was_is_read(tmp_path):
    state = {"anchor": {"w": jnp.ones(2)}, "responses": jnp.ones(3)}
    tree = {"hyper": {"rate": jnp.float32(0.1)}, "method_state": state}
    checkpoints.save(tmp_path, tree)
    assert bits(checkpoints.restore(tmp_path, tree).tree) == bits(tree)


def test_a_checkpoint_of_a_learner_with_old_names_is_read(tmp_path):
    old = {"hyper": {"rate": jnp.float32(0.1), "shared_rate": jnp.float32(0.5)}, "params": {"rate": jnp.ones(2)}}
    gone = {"classes": jnp.ones((2, 3), jnp.bool_), "single_label": jnp.ones(2, jnp.bool_)}
    checkpoints.save(tmp_path, {"learner": {**old, **gone}})
    like = {"hyper": {"learning_rate": jnp.float32(0), "shared_learning_rate": jnp.float32(0)}, "params": old["params"]}
    found = checkpoints.restore(tmp_path, {"learner": like}).tree["learner"]
    assert {name: float(value) for name, value in found["hyper"].items()} == {
        "learning_rate": pytest.approx(0.1),
        "shared_learning_rate": 0.5,
    }
    assert found["params"]["rate"].tolist() == [1, 1]
    again = checkpoints.save(tmp_path / "new", {"learner": found})
    assert float(checkpoints.restore(again.parent, {"learner": like}).tree["learner"]["hyper"]["learning_rate"]) > 0
