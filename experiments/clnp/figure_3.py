"""Golkar et al. 2019 (CLNP), figure 3: how many permutations of MNIST the network of table 1 holds.

    python -m experiments.clnp.figure_3 --data-dir FOLDER --form reduced

CLNP with the numbers of `experiments.clnp.table_1`, which are chosen first if that has not been run, learns 25 tasks;
after each the parts of the hidden layers' units in use are noted. Runs are kept where table 1's are. The reduced
form takes half an hour a seed on two idle cores. Writes `experiments/results/clnp_figure_3_FORM.json`, the picture
beside it, and the claims.
"""

from __future__ import annotations

import pathlib

import numpy as np
import tyro
from matplotlib.axes import Axes

from cljax.report import frame, palette
from experiments import claims
from experiments.clnp.table_1 import AT_SCALE, FORMS, Config, Runs
from experiments.drawing import lines
from experiments.saving import check_replaces, command_line, write_result

SOURCE = "Golkar et al. 2019, figure 3"
TASKS = {"full": 25, "published": 25, "reduced": 25, "tiny": 3}
PUBLISHED = {"used after 10 tasks": (18.0, 40.0), "tasks before the last layer is full": 25, "accuracy": 98.4}


def tasks_held(used: np.ndarray, tolerance: float = 1e-9) -> np.ndarray:
    """How many tasks found a unit of a layer free, a number a seed.

    Args:
      used: `[S, T]`, the part in use after each task.
      tolerance: of what counts as all.

    Example:
      >>> tasks_held(np.array([[0.4, 0.8, 1.0, 1.0], [0.3, 0.5, 0.7, 0.9]]))
      array([3, 4])
    """
    before = np.concatenate([np.zeros_like(used[:, :1]), used[:, :-1]], axis=1)
    return (before < 1 - tolerance).sum(axis=1)


def draw(used: np.ndarray) -> Axes:
    """The parts of both layers' units in use after each task, `[S, layers, T]`, means and intervals."""
    ax = frame.axes(None, (7, 4.2))
    lines(ax, {"first hidden layer": used[:, 0], "second": used[:, 1]})
    for layer, percent in enumerate(PUBLISHED["used after 10 tasks"]):  # type: ignore[arg-type]
        label = "paper, after 10 tasks" if layer else None
        ax.plot([10], [percent], "x", color=palette.style(layer).color, label=label)
    frame.dress(ax, "CLNP, permuted MNIST, 2 x 2000 units", "tasks learned", "units in use (%)")
    frame.legend(ax)
    ax.set_ylim(0, 102)
    return ax


def claims_of(used: np.ndarray, accuracy: np.ndarray, form: str) -> list[claims.Claim]:
    """The paper's sentences.

    Args:
      used: `[S, layers, T]`.
      accuracy: `[S, T]`, on each task just after it was learned.
      form: of the runs.
    """
    first, second = used[:, 0], used[:, 1]
    ten = min(9, used.shape[-1] - 1)
    held = tasks_held(second).astype(np.float64)
    places = np.arange(ten + 1)
    straight = np.asarray([np.corrcoef(places, one)[0, 1] for one in second[:, : len(places)]])
    within = lambda found, paper: claims.compare(("at most", np.full_like(found, paper)), ("in use", found))
    rows = [
        ("after ten tasks less than 20% of the first layer is in use", "18%", within(first[:, ten], 0.20)),
        ("after ten tasks less than 42% of the second layer is in use", "40%", within(second[:, ten], 0.42)),
        ("the first layer grows less than the second after the first task", "in a graph", claims.compare(
            ("second layer", second[:, ten] - second[:, 0]), ("first", first[:, ten] - first[:, 0]))),
        ("the second layer grows along a line over ten tasks", "linearly", claims.compare(
            ("correlation", straight), ("almost 1", np.full_like(straight, 0.98)), unit="hundredths")),
        ("25 tasks find free units in the second layer", "about 25", claims.compare(
            ("tasks", held), ("paper", np.full_like(held, 25)), at_least=-1, scale=1, unit="tasks")),
        ("the tenth task is learned as well as the first, within a point", "98.4 for all", claims.compare(
            ("tenth", accuracy[:, ten]), ("first", accuracy[:, 0]), at_least=-0.01)),
        ("25 tasks are learned as well as the first on average, within a point", "98.4 for all", claims.compare(
            ("all", accuracy.mean(axis=1)), ("first", accuracy[:, 0]), at_least=-0.01)),
    ]  # fmt: skip
    told = []
    for what, published, found in rows:
        text, verdict = claims.at_scale(*found, form in AT_SCALE)
        told.append(claims.claim(SOURCE, f"{what} (2 x 2000 units, {form})", published, text, verdict))
    return told


def main(config: Config) -> None:
    """Runs what is not kept, writes the result, the picture and the claims."""
    check_replaces(config, f"clnp_figure_3_{config.form}")
    numbers = Runs(config).chosen("clnp")["best"]
    runs = Runs(config, FORMS[config.form]._replace(tasks=TASKS[config.form]))
    found = [runs.record("clnp", seed, numbers) for seed in range(config.seeds)]
    used = np.asarray([one["used_after"] for one in found])
    accuracy = np.asarray([np.diagonal(one["accuracy"]) for one in found])
    result = {
        "experiment": "clnp/figure_3",
        "published": PUBLISHED,
        "numbers": numbers,
        "used_after": used,
        "accuracy_when_learned": accuracy,
        "average_accuracy": np.asarray([np.mean(one["accuracy"][-1]) for one in found]),
        "tasks_held": tasks_held(used[:, 1]),
        "seeds": list(range(config.seeds)),
    }
    path = write_result(config, f"clnp_figure_3_{config.form}", result, command_line("experiments.clnp.figure_3"))
    draw(used).figure.savefig(path.with_suffix(".png"), dpi=110, bbox_inches="tight")
    told = claims_of(used, accuracy, config.form)
    for one in told:
        print(f"{one['verdict']:15s} {one['claim']}: {one['found']}")
    if config.seeds > 1 and config.form != "tiny":
        claims.merge(pathlib.Path(config.out), told)


if __name__ == "__main__":
    main(tyro.cli(Config))
