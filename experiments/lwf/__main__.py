"""Learning without Forgetting on real images: tables 1 and 2, figures 1, 4 and 5 at small scale.

    python -m experiments.lwf --data-dir FOLDER

FOLDER has CIFAR-10, CIFAR-100 and MNIST prepared by TFDS. A network is trained on CIFAR-10, once a seed and kept in
`runs/lwf`; every method begins with it. Then come, each a task, groups of CIFAR-100's superclasses, or MNIST.

- `table_1`: one new task, CIFAR-100's mammals, or MNIST as one unlike the old task
- `figure_4`: four groups of CIFAR-100 one by one
- `figure_5`: the mammals, with 100, 30, 10 and 3% of their images
- `table_2`: own layers, the L2 constraint, the response loss, a lowered shared rate, network expansion
- `figure_1`: time and storage, measured

About an hour on two idle cores (`--form reduced`: 150,000 steps of a small CNN). `--only table_1 figure_4` picks parts;
what was done already is taken from `runs/lwf`. `--form full` has all images and a larger network, for a GPU; `--form
dropout` shows what dropout in new tasks does to LwF, and writes no claims; `--form fifty` has as the old task fifty
classes of CIFAR-100, and a larger network trained for longer. Expected: LwF clearly above fine-tuning on old tasks, and
above feature extraction on new ones. Writes `experiments/results/lwf_PART.json`, or `lwf_PART_FORM.json`, percent, and
each claim of the paper beside what was found into `experiments/claims.json`. The paper's own data sets are for
`experiments.lwf.paper`.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any, Literal

import numpy as np
import tyro

from cljax.cli.process import use_compilation_cache, use_threads
from experiments import claims
from experiments.lwf import efficiency, parts
from experiments.lwf.published import FIGURE_1
from experiments.lwf.runs import FORMS, Runs
from experiments.saving import check_replaces, write_result

PARTS = {part: getattr(parts, part) for part in ("table_1", "figure_4", "figure_5", "table_2")}
AFTER = {"fifty": "fifty classes of CIFAR-100"}
"""What the old task is called where it is not CIFAR-10."""
OF_FIFTY = ("table_1", "figure_5", "table_2")
"""In figure 4 two of its four groups would be learned anew; figure 1 is of costs."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Where data, runs and results are; which parts are done, how large, and for how many seeds."""

    data_dir: str | None = None
    only: tuple[Literal["table_1", "figure_4", "figure_5", "table_2", "figure_1"], ...] = ()
    form: Literal["reduced", "full", "dropout", "fifty", "tiny"] = "reduced"
    seeds: int = 3
    runs: str = "runs/lwf"
    out: str = "experiments"


def describe(part: str, config: Config, runs: Runs) -> dict[str, Any]:
    """What every result says beside its numbers."""
    return {
        "experiment": f"lwf/{part}",
        "seeds": runs.seeds,
        "form": config.form,
        "sizes": runs.size._asdict(),
    }


def figure_1(runs: Runs) -> tuple[dict[str, Any], list[claims.Claim]]:
    """Costs, and the accuracies of table 1's first case beside them."""
    shown = ("finetune", "duplicate_and_finetune", "feature_extraction", "joint", "lwf", "l2_constraint")
    accuracy = {method: runs.accuracy("similar", method) for method in shown}
    rows = efficiency.measure(runs.make_network(10), runs.size, batch_size=runs.size.batch_size)
    sizes = runs.images("several")
    decided = efficiency.claims_of(rows, int(sum(sizes[:-1]) * np.prod(runs.network.inputs)))
    found = claims.in_percent(parts.tabulate(accuracy, accuracy["lwf"]))
    costs = {name: {**row, "requires_previous_data": name == "joint"} for name, row in rows.items()}
    return {"published": FIGURE_1, **found, "tasks": efficiency.TASKS, "costs": costs}, decided


def full_form(part: str, runs: Runs) -> dict[str, float]:
    """What the full form of a part takes on this machine, once the first networks are trained."""
    seconds = sum(runs.seconds(case, label) for case, labels in parts.RUNS[part].items() for label in labels)
    size, full = runs.size, FORMS["full"]
    steps = full.fraction * full.epochs / (size.fraction * size.epochs)
    pair = runs.make_network(10), runs.make_network(10, full)
    return efficiency.full_form(seconds, steps, pair, batch_size=size.batch_size)


def main(config: Config) -> None:
    """Does the parts asked for, all where none is named, and writes their results and claims.

    Raises:
      SystemExit: the form does not have a part; or a result is of more seeds.
    """
    has: tuple[str, ...] = OF_FIFTY if config.form == "fifty" else (*PARTS, "figure_1")
    if not set(config.only) <= set(has):
        raise SystemExit(f"--form {config.form} has {', '.join(has)}, and no other part.")
    names = {
        part: f"lwf_{part}" + (f"_{config.form}" if config.form != "reduced" else "") for part in config.only or has
    }
    for name in names.values():
        check_replaces(config, name)
    use_threads()
    use_compilation_cache()
    out = pathlib.Path(config.out)
    runs = Runs(pathlib.Path(config.runs), config.form, config.seeds, config.data_dir)
    for part, name in names.items():
        if part == "figure_1":
            numbers, decided = figure_1(runs)
        else:
            result = PARTS[part](runs.accuracy, AFTER.get(config.form, "CIFAR-10"))
            numbers, decided = {"published": result.published, **claims.in_percent(result.found)}, result.claims
            if config.form == "reduced":
                numbers["full_form"] = full_form(part, runs)
        command = f"python -m experiments.lwf --only {part} --form {config.form} --seeds {config.seeds}"
        write_result(config, name, {**describe(part, config, runs), **numbers}, command)
        for one in decided:
            one["found"], one["verdict"] = claims.at_scale(one["found"], one["verdict"], config.form == "full")
            one["claim"] += ", full form" if config.form == "full" else ""
            print(f"{one['verdict']:15s} {one['claim']}: {one['found']}")
        if config.form in ("reduced", "full", "fifty") and config.seeds > 1:  # one seed has no interval
            claims.merge(out, decided)


if __name__ == "__main__":
    main(tyro.cli(Config))
