"""Continual-learning methods: one thin file each, all of them fine-tuning with a few fields replaced.

`__all__` are the methods, by the names that the command knows; the rest changes a method, or adds terms to it.
"""

from cljax.methods.build import TERMS as TERMS
from cljax.methods.build import build as build
from cljax.methods.build import makers as makers
from cljax.methods.clnp import clnp
from cljax.methods.combine import combine as combine
from cljax.methods.common import plain as plain
from cljax.methods.copy_at_begin import copy_at_begin as copy_at_begin
from cljax.methods.den import den
from cljax.methods.df_cnn import df_cnn
from cljax.methods.distilling import cached as cached
from cljax.methods.distilling import own_output as own_output
from cljax.methods.duplicate_and_finetune import duplicate_and_finetune
from cljax.methods.ewc import consolidation as consolidation
from cljax.methods.ewc import ewc
from cljax.methods.feature_extraction import feature_extraction
from cljax.methods.finetune import finetune
from cljax.methods.freezing import freezing
from cljax.methods.hard_sharing import hard_sharing
from cljax.methods.hat import hat
from cljax.methods.icarl import icarl
from cljax.methods.imm import imm
from cljax.methods.joint import joint
from cljax.methods.l2_constraint import l2_constraint
from cljax.methods.l2_constraint import pull as pull
from cljax.methods.lfl import features as features
from cljax.methods.lfl import lfl
from cljax.methods.lwf import distillation as distillation
from cljax.methods.lwf import lwf
from cljax.methods.lwf_mc import lwf_mc
from cljax.methods.lwm import attention as attention
from cljax.methods.lwm import lwm
from cljax.methods.mas import mas
from cljax.methods.mas import memory_aware_synapses as memory_aware_synapses
from cljax.methods.network_expansion import network_expansion
from cljax.methods.packnet import packnet
from cljax.methods.progressive import progressive
from cljax.methods.replay import exemplars as exemplars
from cljax.methods.replay import replay
from cljax.methods.replay import with_memory as with_memory
from cljax.methods.si import si
from cljax.methods.si import synaptic_intelligence as synaptic_intelligence
from cljax.methods.single_task import single_task
from cljax.methods.stacking import keep_stacked as keep_stacked
from cljax.methods.superposition import superposition
from cljax.methods.tensor_factorization import start_from_models as start_from_models
from cljax.methods.tensor_factorization import tensor_factorization
from cljax.methods.terms import quadratic as quadratic
from cljax.methods.tfm import tfm
from cljax.methods.tuning import tuned as tuned

__all__ = [
    "clnp",
    "den",
    "df_cnn",
    "duplicate_and_finetune",
    "ewc",
    "feature_extraction",
    "finetune",
    "freezing",
    "hard_sharing",
    "hat",
    "icarl",
    "imm",
    "joint",
    "l2_constraint",
    "lfl",
    "lwf",
    "lwf_mc",
    "lwm",
    "mas",
    "network_expansion",
    "packnet",
    "progressive",
    "replay",
    "si",
    "single_task",
    "superposition",
    "tensor_factorization",
    "tfm",
]
