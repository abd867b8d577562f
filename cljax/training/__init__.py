"""The training loop. It knows only the protocol of `cljax.types`; no method is a special case in it."""

from cljax.training.amended import with_cosine, with_learning_rate_decay, with_milestones, with_summed_loss
from cljax.training.checks import NonFiniteLoss, check, check_hypers, diverged, raise_failure
from cljax.training.confusion import confusion_matrix
from cljax.training.driver import drive
from cljax.training.engine import make_engine
from cljax.training.evaluation import Evaluation, evaluate
from cljax.training.outcome import Event, Outcome
from cljax.training.precision import evaluate_precision
from cljax.training.run import Result, make_run
from cljax.training.search import Tried
from cljax.training.start import Past, Start, extend, given_params, start_from, suggest_names
from cljax.training.state import Patience, Settings
from cljax.training.step import make_learner, make_train_step

__all__ = [
    "Evaluation",
    "Event",
    "NonFiniteLoss",
    "Outcome",
    "Past",
    "Patience",
    "Result",
    "Settings",
    "Start",
    "Tried",
    "check",
    "check_hypers",
    "confusion_matrix",
    "diverged",
    "drive",
    "evaluate",
    "evaluate_precision",
    "extend",
    "given_params",
    "make_engine",
    "make_learner",
    "make_run",
    "make_train_step",
    "raise_failure",
    "start_from",
    "suggest_names",
    "with_cosine",
    "with_learning_rate_decay",
    "with_milestones",
    "with_summed_loss",
]
