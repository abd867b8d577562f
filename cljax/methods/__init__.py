"""Continual-learning methods: one thin file each, all of them fine-tuning with a few fields replaced."""

from cljax.methods.finetune import finetune
from cljax.methods.freezing import freezing
from cljax.methods.hard_sharing import hard_sharing
from cljax.methods.joint import joint
from cljax.methods.single_task import single_task

__all__ = ["finetune", "freezing", "hard_sharing", "joint", "single_task"]
