"""`cljax predict`: the classes that a kept learner holds most probable for an image."""

from __future__ import annotations

from cljax.cli.learned import kept, tasks_in_words
from cljax.cli.options import Predict, UsageError
from cljax.cli.past import options_of
from cljax.cli.printing import show
from cljax.files import expand


def predict(command: Predict) -> int:
    """Prints, for each image, the classes that a learner holds most probable.

    Raises:
      UsageError: no such learner or task, or an image that cannot be read.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from cljax import data
    from cljax.data import pictures
    from cljax.numbers import whole

    if not command.images:
        raise UsageError("Of which images? Name them: cljax predict runs/first --task 2 picture.png.")
    name, seed = _which(command)
    asked = options_of(command.folder).data
    several = len(asked.data) > 1 or bool(asked.add_task)
    why = "permute the pixels, each in its own way" if asked.scenario == "permuted" else ""
    if asked.normalize == "each" and len(asked.data) > 1:
        why = "are each standardised by the numbers of its data set (--normalize each)"
    if why:
        raise UsageError(
            f"The tasks of {command.folder} {why}, and a picture is as it is: ask its learners from Python."
        )
    learner, method, stream, notes = kept(command.folder, name, seed)
    classes, names = np.asarray(stream.tables.classes), notes["names"]
    if command.task is None and asked.scenario != "class":
        raise UsageError(f"Which task? Give --task and its number: {tasks_in_words(names)}.")
    try:
        tasks = range(len(classes)) if command.task is None else [whole("--task", command.task, most=len(classes) - 1)]
        whole("--top", command.top, least=1)
        height, width, channels = stream.tables.examples.shape[1:]
        if several and channels == 1:  # as of `data.combine`
            read = [pictures.decode(expand(path), path, 3) for path in command.images]
            images = [data.images.resize(data.images.with_channels(one[None], 1), (height, width))[0] for one in read]
        else:
            images = [pictures.decode(expand(path), path, channels, (height, width)) for path in command.images]
    except ValueError as error:
        raise UsageError(str(error)) from None
    inputs = jnp.asarray(np.stack(images).astype(stream.tables.examples.dtype))
    shown = [(task, place) for task in tasks for place in np.flatnonzero(classes[task])]
    heads = {task: np.asarray(method.predict(learner, inputs, jnp.int32(task))) for task in tasks}
    logits = np.stack([heads[task][:, place] for task, place in shown], axis=-1)
    multi_label = stream.tables.train.labels.ndim == 2
    probabilities = np.asarray(jax.nn.sigmoid(logits) if multi_label else jax.nn.softmax(logits, axis=-1))
    known = [names[task][place] for task, place in shown]
    called = [
        name if known.count(name) == 1 else f"{name} (task {task})"
        for name, (task, _) in zip(known, shown, strict=True)
    ]
    for path, row in zip(command.images, probabilities, strict=True):
        best = np.argsort(-row, kind="stable")[: command.top]
        words = [f"{called[one]} {100 * row[one]:.1f}%" for one in best]
        show(f"{path}  {'  '.join(words)}")
    return 0


def _which(command: Predict) -> tuple[str, int]:
    """The method and the seed of the learner that is asked, where the command does not say them all."""
    from cljax.storage.folders import LEARNERS, SEED

    place = expand(command.folder) / LEARNERS
    numbers = lambda path: [int(own.name.removeprefix("seed-")) for own in path.glob("*") if SEED.fullmatch(own.name)]
    names = sorted(path.name for path in place.glob("*") if numbers(path))
    if not names:
        raise UsageError(f"{command.folder} has no learners. Run a method there with --keep-learners first.")
    if command.method is None and len(names) > 1:
        raise UsageError(f"{command.folder} has learners of {', '.join(names)}: name one with --method.")
    name = command.method or names[0]
    return name, command.seed if command.seed is not None else min(numbers(place / name), default=0)
