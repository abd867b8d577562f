"""The old names in records, configurations and checkpoints of earlier versions, read as today's."""

from __future__ import annotations

import re
from typing import Any

RECORD = {"task_aware": "task_il_accuracy", "forgets_nothing": "zero_forgetting", "capacity": "feature_usage"}
OPTIONS = {
    "rate": "learning_rate",
    "rate_decay": "learning_rate_decay",
    "patience_minimum_rate": "patience_minimum_learning_rate",
    "share": "fraction",
}
SETTINGS = {
    "shared_rate": "shared_learning_rate",
    "rate_factor": "learning_rate_factor",
    "fine_tune_rate": "fine_tune_factor",
    "rate": "learning_rate",
}
"""Of methods' own parameters, as in `--set finetune.shared_rate=0.1`."""


def config(found: Any) -> Any:
    """A run's configuration in today's names; what is none stays as it is.

    Methods' own parameters are renamed where the training options have an old name, too.

    Example:
      >>> config({'methods': ['clnp'], 'training': {'rate': 0.1, 'set': ['clnp.fine_tune_rate=0.2']}})
      {'methods': ['clnp'], 'training': {'learning_rate': 0.1, 'set': ['clnp.fine_tune_factor=0.2']}}
    """
    if not isinstance(found, dict):
        return found
    sections = {name: _renamed(value, OPTIONS) for name, value in found.items()}
    training: Any = sections.get("training")
    if training != found.get("training") and isinstance(training.get("set"), list):  # of today may be one's own
        sections["training"] = {**training, "set": [setting(word) for word in training["set"]]}
        if isinstance(swept := found.get("sweep"), list):
            sections["sweep"] = [[setting(name), *values] for name, *values in swept]
    return sections


def record(found: Any) -> Any:
    """A record in today's names; what is none stays as it is.

    Example:
      >>> record({'runs': [{'method': 'tfm', 'forgets_nothing': True, 'config': {'data': {'share': 0.5}}}]})
      {'runs': [{'method': 'tfm', 'zero_forgetting': True, 'config': {'data': {'fraction': 0.5}}}]}
    """
    if not isinstance(found, dict) or not isinstance(found.get("runs"), list):
        return found
    return {**found, "runs": [_run(run) for run in found["runs"]]}


def setting(word: Any) -> Any:
    """One of `--set`, NAME=VALUE or METHOD.NAME=VALUE, or what is swept, METHOD.NAME, in today's names.

    Example:
      >>> setting('finetune.shared_rate=0.1'), setting('finetune.rate')
      ('finetune.shared_learning_rate=0.1', 'finetune.learning_rate')
    """
    if not isinstance(word, str):
        return word
    renamed = lambda part: (part[1] or "") + SETTINGS.get(part[2], part[2])
    return re.sub(r"^([^.=]*\.)?([^.=]+)(?==|$)", renamed, word)


def leaf(path: str) -> str:
    """The path of a checkpoint's leaf in today's names.

    Example:
      >>> leaf('learner/hyper/rate'), leaf('hyper/shared_rate'), leaf('params/rate')
      ('learner/hyper/learning_rate', 'hyper/shared_learning_rate', 'params/rate')
      >>> leaf('method_state/anchor/dense_0/bias')
      'method_state/teacher/params/dense_0/bias'
    """
    path = re.sub(r"\bmethod_state/anchor/", "method_state/teacher/params/", path)
    path = re.sub(r"\bmethod_state/responses$", "method_state/terms/lwf/responses", path)
    return re.sub(r"(?<=\bhyper/)\w+$", lambda name: SETTINGS.get(name[0], name[0]), path)


def is_gone(path: str) -> bool:
    """Whether a checkpoint's leaf is one that learners no longer have: what a run never changes is in the clock.

    Example:
      >>> is_gone('classes'), is_gone('learner/single_label'), is_gone('params/classes')
      (True, True, False)
    """
    return re.fullmatch(r"(?:.*\blearner/)?(?:classes|single_label)", path) is not None


def _run(run: Any) -> Any:
    run = _renamed(run, RECORD)
    if isinstance(run, dict):
        changed = {"rounds": _renamed(run.get("rounds"), RECORD), "config": config(run.get("config"))}
        if isinstance(facts := run.get("facts"), list):
            changed["facts"] = [_renamed(one, OPTIONS) for one in facts]
        run |= {name: value for name, value in changed.items() if name in run}
    return run


def _renamed(value: Any, names: dict[str, str]) -> Any:
    return {names.get(name, name): item for name, item in value.items()} if isinstance(value, dict) else value
