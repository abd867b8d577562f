"""Methods by name, combinations included: `lwf+ewc`, `clnp+lwf`, `finetune+lwf+replay`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from cljax.methods.combine import combine
from cljax.methods.ewc import consolidation
from cljax.methods.l2_constraint import pull
from cljax.methods.lfl import features
from cljax.methods.lwf import distillation
from cljax.methods.lwm import attention
from cljax.methods.mas import memory_aware_synapses
from cljax.methods.replay import exemplars
from cljax.methods.si import synaptic_intelligence
from cljax.references import call, is_reference, load
from cljax.types import Method, Network, Term

TERMS: dict[str, Callable[..., Term]] = {
    "ewc": consolidation,
    "l2_constraint": pull,
    "lfl": features,
    "lwf": distillation,
    "lwm": attention,
    "mas": memory_aware_synapses,
    "replay": exemplars,
    "si": synaptic_intelligence,
}
"""What can be added to a method: `options -> Term`."""
METHOD = (
    "Write a function of the network, with its parameters as keywords, that returns a Method: "
    "methods.finetune(network)._replace(...). docs/new_method.md has two."
)
TERM = "Write a function of keywords alone that returns a Term, as docs/new_method.md has one."


def makers(name: str) -> dict[str, Callable[..., Any]]:
    """What a name is made of, word by word: a method, and terms that are added to it.

    Args:
      name: of a method, or `method+term+...`; either may be `module:function`, one's own.

    Returns:
      `{word: function}`: the method's, whose first argument is the network, then the terms'. Their keyword arguments
      are the words' parameters.

    Raises:
      ValueError: a word that is no method, or no term, or there twice; it names those that there are. A module that
        cannot be imported, or does not have the function.

    Example:
      >>> from cljax.methods import makers
      >>> list(makers('lwf+ewc'))
      ['lwf', 'ewc']
      >>> makers('lwf+tfm')
      Traceback (most recent call last):
      ...
      ValueError: 'tfm' cannot be added to a method. What can: ewc, l2_constraint, lfl, lwf, lwm, mas, replay, si.
    """
    from cljax import methods

    first, *others = name.split("+")
    if first not in methods.__all__ and not is_reference(first):
        raise ValueError(f"There is no method {first!r}. There are: {', '.join(methods.__all__)}.")
    for number, word in enumerate(others):
        if word not in TERMS and not is_reference(word):
            raise ValueError(f"{word!r} cannot be added to a method. What can: {', '.join(TERMS)}.")
        if word in (first, *others[:number]):
            raise ValueError(f"{name!r} has {word!r} twice.")
    base = load(first) if is_reference(first) else getattr(methods, first)
    return {first: base, **{word: load(word) if is_reference(word) else TERMS[word] for word in others}}


def build(name: str, network: Network, parameters: Mapping[str, Any] | None = None) -> Method:
    """Makes a method by its name: `lwf`, or a combination, the method first, then what is added to it.

    Args:
      name: such as `'lwf+ewc'`; see `makers`.
      network: an ordinary network.
      parameters: `{'word.parameter': value}`, such as `{'ewc.strength': 2.0}`; the first word may be left out, as in
        `hyper`. For those not given, the defaults.

    Returns:
      The method, of this name. In `hyper` the first word's numbers have plain names, others `'word.number'`.

    Raises:
      ValueError: an unknown name, or parameter, or one given twice; or what the method itself refuses.

    Example:
      >>> from cljax import networks
      >>> from cljax.methods import build
      >>> method = build('lwf+ewc', networks.mlp((8, 8, 1), 2), {'warm_up': 0.0, 'ewc.strength': 10.0})
      >>> method.name, len(method.phases)
      ('lwf+ewc', 1)
    """
    parts = makers(name)
    (first, make), *others = parts.items()
    given: dict[str, dict[str, Any]] = {word: {} for word in parts}
    for key, value in (parameters or {}).items():
        word, _, parameter = key.rpartition(".")
        word, known = word or first, [f"{one}.{option}" for one, part in parts.items() for option in options_of(part)]
        if f"{word}.{parameter}" not in known:
            raise ValueError(f"{name} has no parameter {key!r}. There are: {', '.join(known) or 'none'}.")
        if parameter in given[word]:
            raise ValueError(f"{name}'s {word}.{parameter} is given twice, with and without its first word.")
        given[word][parameter] = value
    own = {word for word in parts if is_reference(word)}
    if first in own:
        base = call(first, network, returns=Method, cure=METHOD, **given[first])._replace(name=first)
    else:
        base = make(network, **given[first])
    check: dict[str, Any] = {"returns": Term, "cure": TERM}
    terms = [call(word, **check, **given[word]) if word in own else term(**given[word]) for word, term in others]
    terms = [term._replace(name=word) for (word, _), term in zip(others, terms, strict=True)]
    return combine(base, *terms, name=name) if terms else base


def options_of(make: Callable[..., Any]) -> tuple[str, ...]:
    """The keyword arguments of a method's or a term's function.

    Example:
      >>> options_of(features)
      ('strength',)
    """
    found = inspect.signature(make).parameters.values()
    return tuple(one.name for one in found if one.kind is inspect.Parameter.KEYWORD_ONLY)
