"""Dhar et al. 2019 (LwM), figure 4: where networks look for the first task's classes, step by step; and measured.

    python -m experiments.lwm.figure_4 --data-dir FOLDER

The runs are those of `experiments.lwm.causes`: fine-tuning, LwF-MC and LwM, with a gamma of 0.1 and of 1, learn fifty
classes of CIFAR-100 in five steps. After each step the Grad-CAM of the label, on the first ten classes' test images, is
compared with that of the first network: the L1 distance of maps of unit length. Writes
`experiments/results/lwm_figure_4_FORM.json`, the picture beside it, and the claims. On two idle cores it takes some
minutes.
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
import shlex
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
import tyro
from matplotlib.figure import Figure

from cljax import losses, metrics, streams, training
from cljax.cli.asked import configuration, curves_of
from cljax.cli.experiment import Experiment, make_experiment
from cljax.cli.options import Compare, settle
from cljax.cli.process import use_threads
from experiments import claims, tables
from experiments.lwm import causes
from experiments.saving import check_replaces, command_line, write_result

SOURCE = "Dhar et al. 2019, figure 4"
SYSTEMS = {"fine-tuning": causes.FINETUNE, "LwF-MC": "lwf_mc", "LwM, γ 0.1": "lwm, gamma 0.1", "LwM": "lwm"}
"""By the names that they have in the table of causes."""
SHOWN = 2
"""Images in the picture, of so many classes."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Where data and results are, and how large the runs are."""

    data_dir: str | None = None
    out: str = "experiments"
    form: Literal["reduced", "tiny"] = "reduced"
    seeds: int = 3


class Looks(NamedTuple):
    """Where the network looks after each of R rounds.

    Attributes:
      images: `[B, H, W, 3]`, the first task's of the test split.
      labels: `[B]`.
      maps: `[R, B, h, w]`, at least 0.
    """

    images: np.ndarray
    labels: np.ndarray
    maps: np.ndarray


def made(system: str, config: Config) -> Experiment:
    """All that a system of the table of causes is driven with."""
    words = tables.arguments_of(causes.TABLE, system, tables.Config(form=config.form, seeds=config.seeds))
    place = ["--data-dir", config.data_dir] if config.data_dir else []
    command = tyro.cli(Compare, args=[*shlex.split(words), *place])
    options, curves = settle(command.options), curves_of(command)
    return make_experiment(curves, options, configuration(curves, options))


def runs(experiment: Experiment) -> list[Looks]:
    """Trains a system's only method, seed by seed."""
    (method,), tests = experiment.methods.values(), [next(streams.experiences(one)).test for _, one in experiment.seeds]
    settings = experiment.settings._replace(attention_images=len(tests[0][0]))
    outcome = training.drive(method, experiment.optimizer, experiment.seeds, settings)
    return [Looks(*test, maps) for test, maps in zip(tests, outcome.evaluation.attention, strict=True)]


def distances(maps: np.ndarray) -> np.ndarray:
    """Mean L1 distances `[R]` of the maps `[R, B, h, w]`, of unit length, to the first; where both see something."""
    seen = np.any(maps > 0, axis=(2, 3))
    of_round = lambda now: losses.attention_distillation(jnp.asarray(now), jnp.asarray(maps[0]))
    return np.asarray([np.mean(of_round(now)[both]) for now, both in zip(maps, seen & seen[0], strict=True)])


def of_another(maps: np.ndarray) -> float:
    """The same between the first network's maps of an image and of another: what nothing in common would give."""
    first = maps[0][np.any(maps[0] > 0, axis=(1, 2))]
    return float(distances(np.stack([first, np.roll(first, len(first) // 2, axis=0)]))[1])


def draw(path: pathlib.Path, looks: Mapping[str, Looks]) -> None:
    """A row for an image and a system: the image, the first network's map, and those after each step."""
    steps = len(next(iter(looks.values())).maps)
    figure = Figure(figsize=(1.05 * (steps + 1) + 0.8, 0.95 * SHOWN * len(looks)), dpi=80, facecolor="white")
    axes = figure.subplots(SHOWN * len(looks), steps + 1)
    chosen = clearest(looks)
    for row, (place, name) in enumerate((place, name) for place in chosen for name in looks):
        image, maps = looks[name].images[place], looks[name].maps[:, place]
        side = image.shape[0]
        axes[row, 0].imshow(image)
        axes[row, 0].set_ylabel(name, fontsize=8)
        for column, one in enumerate(maps, 1):
            axes[row, column].imshow(image.mean(axis=-1), cmap="gray", extent=(0, side, side, 0))
            heat = one / max(float(one.max()), 1e-12)
            looked = {"cmap": "jet", "alpha": 0.5, "interpolation": "bilinear", "vmin": 0.0, "vmax": 1.0}
            axes[row, column].imshow(heat, extent=(0, side, side, 0), **looked)
        for column, title in enumerate(("image", "$M_0$", *(f"step {step}" for step in range(1, steps)))):
            axes[row, column].set(xticks=[], yticks=[])
            if row == 0:
                axes[row, column].set_title(title, fontsize=9)
    figure.tight_layout(pad=0.3)
    figure.savefig(path)
    print(f"written: {path}")


def clearest(looks: Mapping[str, Looks]) -> list[int]:
    """An image of each of the first classes: that which all first networks look at most narrowly."""
    narrow = []
    for one in looks.values():
        first = one.maps[0].reshape(len(one.labels), -1)
        narrow.append(first.max(axis=1) / np.maximum(first.sum(axis=1), 1e-12))
    least = np.min(narrow, axis=0)
    labels = next(iter(looks.values())).labels
    return [int(np.argmax(np.where(labels == label, least, -1))) for label in range(SHOWN)]


def main(config: Config) -> None:
    """Trains the systems, writes what was measured, the picture and the claims."""
    check_replaces(config, f"lwm_figure_4_{config.form}")
    use_threads()
    every: dict[str, list[Looks]] = {}
    for name, system in SYSTEMS.items():
        every[name] = runs(made(system, config))
        print(f"{name}: {np.round([distances(one.maps) for one in every[name]], 3).tolist()}", flush=True)
    moved = {name: np.asarray([distances(one.maps) for one in looks]) for name, looks in every.items()}
    blind = {name: [np.mean(np.all(one.maps[-1] == 0, axis=(1, 2))) for one in looks] for name, looks in every.items()}
    interval = lambda values: [np.asarray(part) for part in metrics.mean_and_interval(np.asarray(values))[:2]]
    result: dict[str, Any] = {
        "experiment": "lwm_figure_4",
        "source": SOURCE,
        "published": "pictures without numbers",
        "distance_to_the_first_network": {name: interval(values)[0] for name, values in moved.items()},
        "distance_ci95": {name: interval(values)[1] for name, values in moved.items()},
        "distance_of_two_images": interval([of_another(one.maps) for looks in every.values() for one in looks])[0],
        "maps_that_see_nothing_in_the_end": {name: np.mean(parts) for name, parts in blind.items()},
        "seeds": list(range(config.seeds)),
    }
    path = write_result(config, f"lwm_figure_4_{config.form}", result, command_line("experiments.lwm.figure_4"))
    draw(path.with_suffix(".png"), {name: looks[0] for name, looks in every.items()})
    decided = []
    for mine, other in itertools.product(("LwM, γ 0.1", "LwM"), ("LwF-MC", "fine-tuning")):
        ends = [(name, moved[name][:, -1]) for name in (other, mine)]
        text, verdict = claims.at_scale(*claims.compare(*ends, unit="hundredths of the L1 distance"), full=False)
        what = f"the attention of {mine} stays nearer to the first network's than that of {other}"
        print(f"{verdict:15s} {what}: {text}")
        what += f" (lwm_figure_4, {config.form})"
        decided.append(claims.claim(SOURCE, what, result["published"], text, verdict))
    if config.seeds > 1 and config.form != "tiny":
        claims.merge(pathlib.Path(config.out), decided)


if __name__ == "__main__":
    main(tyro.cli(Config))
