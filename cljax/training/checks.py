"""What must fit together before anything is compiled, and the error of training that diverges."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib

from cljax import task_params, transforms
from cljax.augmentation import Augment
from cljax.data.on_demand import Images
from cljax.numbers import check_kind, real, show, whole
from cljax.streams.building import SCENARIOS, check_stream
from cljax.streams.schedules import check_schedule
from cljax.text import did_you_mean
from cljax.training.bounds import check_bounds, check_settings
from cljax.training.state import Failure, Settings
from cljax.training.step import BUILT, init_shapes
from cljax.types import Array, Method, Stream, Tables, Tree

DRAWS = ("current", "seen", "all", "balanced")


class NonFiniteLoss(FloatingPointError):
    """The training loss or the weights turned NaN or infinite; the message names task, phase, epoch and step.

    Attributes:
      failure: of all learners that were driven together.

    Example:
      >>> from cljax.training import NonFiniteLoss
      >>> issubclass(NonFiniteLoss, FloatingPointError)
      True
    """

    failure: Failure


def raise_failure(failure: Failure, method: Method, names: Sequence[str] | None = None) -> None:
    """Raises if a learner diverged.

    Args:
      failure: of a `Result` or a `PhaseState`; with leading axes (seeds), all that failed are named.
      method: whose phases and leaves are named.
      names: of the learners, where there are several; by default their numbers.

    Raises:
      NonFiniteLoss: naming task, phase, epoch and step.

    Example:
      >>> import numpy as np
      >>> from cljax import methods, networks, training
      >>> from cljax.training.state import Failure
      >>> method = methods.finetune(networks.mlp((2,), 3))
      >>> training.raise_failure(Failure(*np.array([2, 1, 0, 4, 7, -1])), method)
      Traceback (most recent call last):
      ...
      cljax.training.checks.NonFiniteLoss: ... in round 2: task 1, phase 'train', epoch 4, step 7...
    """
    found = diverged(failure, method)
    if not found:
        return
    count = np.size(failure.round)
    names = names or [f"learner {number}" for number in range(count)]
    words = [text if count == 1 else f"{names[number]}: {text}" for number, text in list(found.items())[:5]]
    rest = f"; and {len(found) - 5} more" if len(found) > 5 else ""
    begin = f"{len(found)} of {count} learners of {method.name} diverged. " if count > 1 else ""
    text = f"{begin}{'; '.join(words)}{rest}. {CURE}"
    error = NonFiniteLoss(text[0].upper() + text[1:])
    error.failure = failure
    raise error


def diverged(failure: Failure, method: Method) -> dict[int, str]:
    """Which of several learners diverged, and where, in words.

    Example:
      >>> import numpy as np
      >>> from cljax import methods, networks
      >>> from cljax.training import diverged
      >>> from cljax.training.state import Failure
      >>> failure = Failure(*np.array([[-1, 2], [-1, 1], [-1, 0], [-1, 4], [-1, 7], [-1, 1]]))
      >>> diverged(failure, methods.finetune(networks.mlp((8, 8, 1), 2, hidden=(4,))))[1]
      "the leaf 'dense_0/kernel' of finetune turned non-finite in round 2: task 1, phase 'train', epoch 4, step 7"
    """
    flat = [np.asarray(leaf).reshape(-1) for leaf in failure]
    found = {}
    for number in np.flatnonzero(flat[0] >= 0):
        round, task, phase, epoch, step, leaf = (int(values[number]) for values in flat)
        moment = f", phase '{method.phases[phase].name}', epoch {epoch}, step {step}"
        if leaf >= 0:
            params, collections = init_shapes(method)[:2]
            path = (*task_params.leaf_paths(params), *task_params.leaf_paths(collections))[leaf]
            thing = f"leaf '{path}'"
            moment = moment if step >= 0 else f", at the end of phase '{method.phases[phase].name}'"
        elif step >= 0:
            thing = "loss"
        else:
            thing, moment = "output for test examples", ""
        found[int(number)] = f"the {thing} of {method.name} turned non-finite in round {round}: task {task}{moment}"
    return found


CURE = (
    "A smaller learning rate, gradient clipping (optax.clip_by_global_norm) or a weaker regulariser usually cures it; "
    "jax.config.update('jax_debug_nans', True) shows the operation."
)


def check(method: Method, stream: Stream, settings: Settings, span: tuple[int, int] | None = None) -> None:
    """Checks a method, a stream and settings against each other, without compiling.

    Args:
      method: the method.
      stream: the stream.
      settings: the settings.
      span: the rounds to be run, from the first to before the second; None: all.

    Raises:
      ValueError: naming the thing and the cure.

    Example:
      >>> from cljax import data, methods, networks, streams, training
      >>> stream = streams.split(data.load('digits'), tasks=2)
      >>> training.check(methods.finetune(networks.mlp((8, 8, 1), 2)), stream, training.Settings())
      Traceback (most recent call last):
      ...
      ValueError: The network of finetune has 2 logits, but the largest task of the stream 'digits' has 5 classes. ...
    """
    check_kind("The method", method, Method, BUILT)
    check_stream(stream)
    tables, schedule = stream.tables, stream.schedule
    if stream.scenario not in SCENARIOS:
        raise ValueError(f"The scenario '{stream.scenario}' is not one of {', '.join(SCENARIOS)}.")
    if method.train_on not in DRAWS and not isinstance(method.train_on, tuple):
        raise ValueError(f"{method.name} draws from '{method.train_on}', which is not one of {', '.join(DRAWS)}.")
    if not method.phases:
        raise ValueError(f"{method.name} has no phases; a method needs at least one.")
    if all(phase.skip_first_task for phase in method.phases):
        raise ValueError(f"All phases of {method.name} skip the first task, which needs at least one.")
    searched = [phase.searched for phase in method.phases]
    if searched != sorted(searched, reverse=True) or not searched[0]:
        raise ValueError(
            f"Of the phases of {method.name}, those that are not searched must come last, after one that is."
        )
    check_settings(settings)
    whole(f"{method.name}'s memory_size", method.memory_size)
    check_schedule(schedule, tables.classes.shape[-2])
    check_tables(stream)
    tasks, epochs = np.asarray(schedule.task), np.asarray(schedule.epochs)
    begin, end = span or (0, len(tasks))
    among = lambda some: np.isin(np.arange(tables.classes.shape[-2]), some)
    past, visited, trained = map(among, (tasks[:begin], tasks[begin:end], tasks[begin:end][epochs[begin:end] > 0]))
    needs_validation = settings.stopping is not None or method.search is not None
    missing = (np.asarray(tables.validation.size) == 0) & (trained if method.search is None else visited)
    if needs_validation and missing.any():
        task = int(np.argmax(missing.reshape(-1))) % tables.classes.shape[-2]
        reason = "patience" if settings.stopping is not None else f"the search of {method.name}"
        raise ValueError(
            f"Task {task} has no validation examples, which {reason} needs. Give the stream a validation part, for "
            f"example validation=0.1, or train a fixed number of epochs."
        )
    to_come = ~np.asarray(tables.classes).any(axis=-1)
    trained |= (past | visited) & (method.train_on != "current")
    for split, needed in (("train", trained), ("test", ~past & ~to_come | visited)):
        missing = (np.asarray(getattr(tables, split).size) == 0) & needed
        if missing.any():
            task = int(np.argmax(missing.reshape(-1))) % tables.classes.shape[-2]
            why = f", and {method.name} trains on all tasks so far" if past[task] else ""
            names = ", ".join(map(str, dict(enumerate(stream.facts.get("classes", []))).get(task, [])[:3]))
            whose = f" (classes {names})" if names else ""
            cure = "Take another method." if past[task] else "Give its classes some, or leave these classes out."
            raise ValueError(f"Task {task}{whose} has no {split} examples{why}. {cure}")
    if (epochs[1:] < 1).any() and method.train_on == "current":
        raise ValueError(
            f"Task 1 takes no epoch in this schedule (streams.together), which is for methods that train on all tasks "
            f"seen, such as joint; {method.name} trains on the task that it visits."
        )
    check_network(method, stream.tables, f"the stream '{stream.name}'")
    check_bounds(method, stream, settings)
    if settings.augment is not None:
        check_augment(settings.augment, stream, settings.batch_size)


def check_tables(stream: Stream) -> None:
    """Checks that tables, which may be made by hand, point to examples and classes that there are.

    Raises:
      ValueError: naming the split and the value.
    """
    tables = stream.tables
    rows, outputs = len(tables.examples), tables.classes.shape[-1]
    for split in ("train", "validation", "test"):
        table = getattr(tables, split)
        values = {"an example": (table.index, rows)}
        values |= {"a label": (table.labels, outputs)} if np.ndim(table.labels) == np.ndim(table.index) else {}
        for name, (value, count) in values.items():
            least, most = int(np.min(value)), int(np.max(value))
            if least < 0 or most >= count:
                wrong = least if least < 0 else most
                raise ValueError(
                    f"The {split} table of the stream '{stream.name}' has {name} {wrong}: not of 0 to {count - 1}."
                )


def check_in_memory(stream: Stream) -> None:
    """Checks that a stream's examples are an array, as they must be to be put on the device.

    Raises:
      ValueError: they are read on demand.
    """
    if isinstance(stream.tables.examples, Images):
        raise ValueError(
            f"The images of the stream '{stream.name}' are read on demand, but are to be put on the device. Drive it "
            f"with training.drive, or get the data by data.load."
        )


def check_network(method: Method, tables: Tables, whose: str) -> None:
    """Checks that the method's network takes a stream's examples and has as many logits as its tasks have classes.

    Raises:
      ValueError: naming the two shapes.
    """
    network, shape, outputs = method.network, tuple(tables.examples.shape[1:]), tables.classes.shape[-1]
    if tuple(network.inputs) != shape:
        raise ValueError(
            f"The network of {method.name} takes examples of shape {tuple(network.inputs)}, but those of {whose} have "
            f"shape {shape}. Build the network with inputs={shape}."
        )
    if network.outputs != outputs:
        raise ValueError(
            f"The network of {method.name} has {network.outputs} logits, but the largest task of {whose} has "
            f"{outputs} classes. Build the network with outputs={outputs}."
        )


def check_augment(augment: Augment, stream: Stream, batch_size: int) -> None:
    """Checks that augmentation can be applied to the stream's images, and keeps their shape and dtype.

    Raises:
      ValueError: naming the thing and the cure.
    """
    if not callable(augment):
        raise ValueError(f"augment is {show(augment)}, but must be a function, such as augmentation.flip, or None.")
    examples = stream.tables.examples
    if stream.tables.permutation is not None:
        raise ValueError(
            f"The tasks of the stream '{stream.name}' permute the pixels, and augmentation comes after that, when no "
            f"image is left to crop or to flip. Leave augmentation out, or use tasks that divide the classes."
        )
    if examples.ndim != 4:
        raise ValueError(
            f"Augmentation needs images [n, H, W, C], but the examples of the stream '{stream.name}' are vectors of "
            f"shape {examples.shape[1:]}. Leave augmentation out, or give images."
        )
    before = jax.ShapeDtypeStruct((batch_size, *examples.shape[1:]), examples.dtype)
    after = jax.eval_shape(augment, jax.random.key(0), before)
    if (after.shape, after.dtype) != (before.shape, before.dtype):
        raise ValueError(
            f"Augmentation turns {before.dtype} of shape {before.shape} into {after.dtype} of shape {after.shape}, but "
            f"must keep both."
        )


def check_hypers(
    method: Method, seeds: Sequence[Any], hypers: Sequence[Mapping[str, float]] | None
) -> list[dict[str, jax.Array]]:
    """The numbers that take the place of some of `learner.hyper`, float32, one mapping a seed.

    Raises:
      ValueError: another number of mappings than of seeds, mappings of different names, or a name that the method's
        hyper-parameters do not have.

    Example:
      >>> from cljax import methods, networks, training
      >>> method = methods.lwf(networks.mlp((8, 8, 1), 2))
      >>> two = training.check_hypers(method, [0, 0], [{'strength': 1.0}, {'strength': 2.0}])
      >>> [float(one['strength']) for one in two]
      [1.0, 2.0]
    """
    if hypers is None:
        return [{} for _ in seeds]
    known = sorted({*init_shapes(method)[3], "learning_rate"})
    given_each = isinstance(hypers, Sequence) and all(isinstance(given, Mapping) for given in hypers)
    if not given_each or len(hypers) != len(seeds) or any(set(given) != set(hypers[0]) for given in hypers):
        raise ValueError(f"hypers must be {len(seeds)} mappings of the same names, one for each pair of seeds.")
    if stray := sorted(set(hypers[0]).difference(known)):
        raise ValueError(
            f"{method.name} has no hyper-parameter '{stray[0]}' that a run can be given. "
            f"{did_you_mean(stray[0], known)}It has: {', '.join(known)}."
        )
    checked = [{name: real(f"{method.name}'s {name}", value) for name, value in given.items()} for given in hypers]
    for given in checked:
        real("learning_rate", given.get("learning_rate", 1.0), above=0)
    return [{name: jnp.float32(value) for name, value in given.items()} for given in checked]


NOT_A_STEP = (contrib.ScheduleFreeState, contrib.MechanicState, contrib.SAMState, optax.LookaheadState)
"""States of optimizers that hold parameters of their own."""


def own_learning_rate(optimizer: optax.GradientTransformation) -> float | None:
    """About how large an optimizer's own learning rate is: by its first step, weight decay apart.

    Steps from a parameter of 0 and of 1, of a small and of a large gradient: some scale their steps by the parameter,
    some shorten large gradients, some step as far whatever the gradient.

    Returns:
      A number, 0 where the optimizer warms up; None where it asks for more than a parameter and its gradient.

    Example:
      >>> [round(own_learning_rate(each), 3) for each in (optax.sgd(0.1), optax.adam(1e-3), optax.adafactor(1.0))]
      [0.1, 0.001, 1.0]
    """
    return _first_step(optimizer.init, optimizer.update)


@functools.lru_cache(128)
def _first_step(init: Any, update: Any) -> float | None:
    def after(param: Array, gradient: float) -> Array:
        step = lambda gradient: update(jnp.full_like(param, gradient), init(param), param)[0]
        return jnp.abs(step(gradient) - step(-gradient))[0] / 2

    def rate(param: Array) -> Array:
        tiny, small, large = after(param, 1e-6) / 1e-6, after(param, 1e-3), after(param, 1.0)
        own = jnp.where(small > 0.5 * large, small, small / 1e-3)
        return jnp.where(jnp.abs(tiny - 1) < 0.01, 1.0, own)  # whatever clips larger ones

    try:
        with jax.numpy_dtype_promotion("standard"):  # Optax needs it
            return float(np.asarray(jax.jit(jax.vmap(rate))(np.array([[0.0], [1.0]], np.float32))).max())
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return None


def check_optimizer(method: Method, optimizer: Any, learning_rate: Any = None) -> None:
    """Checks that an optimizer can take the loop's steps: masked, from the gradients and the loss alone.

    Args:
      method: the method.
      optimizer: the optimizer.
      learning_rate: by which the loop multiplies its updates, if any.

    Raises:
      ValueError: it is no optimizer, needs what the loop does not give, or moves parameters of its own; it has a
        learning rate of its own beside the loop's.

    Example:
      >>> from cljax import methods, networks
      >>> check_optimizer(methods.finetune(networks.mlp((8, 8, 1), 2)), optax.sgd)
      Traceback (most recent call last):
      ...
      ValueError: optimizer is <function sgd at ...>, but must be an Optax transformation, such as optax.sgd(0.05).
    """
    if not (callable(getattr(optimizer, "init", None)) and callable(getattr(optimizer, "update", None))):
        raise ValueError(
            f"optimizer is {show(optimizer)}, but must be an Optax transformation, such as optax.sgd(0.05)."
        )

    def once(params: Tree) -> Tree:
        state, mask = optimizer.init(params), jax.tree.map(lambda leaf: jnp.float32(1.0), params)
        masked = transforms.with_update_mask(optimizer)
        return state, masked.update(params, state, params, mask=mask, value=jnp.float32(1.0))

    params = init_shapes(method)[0]
    cure = "Use one such as optax.sgd(0.05, momentum=0.9) or optax.adam(1e-3)."
    try:
        state = jax.eval_shape(once, params)[0]
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"The optimizer cannot train {method.name}: {error}. The loop gives it gradients, parameters and value, "
            f"the loss; not a function to search along a line with, as L-BFGS does. {cure}"
        ) from error
    for node in jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, NOT_A_STEP)):
        if isinstance(node, NOT_A_STEP):
            raise ValueError(
                f"The optimizer keeps parameters of its own ({type(node).__name__}), other than those that the loop "
                f"trains at its rate, masks and evaluates, so that its result would not be what it says. {cure}"
            )
    own = own_learning_rate(optimizer) if learning_rate is not None else None
    if own and own < 0.2:
        raise ValueError(
            f"The optimizer has a learning rate of its own, about {own:.2g}, which the "
            f"learning_rate {float(learning_rate):g} of settings would multiply. Leave that out (None), or give the "
            f"optimizer at unit rate: optax.adam(1.0)."
        )
