"""The central claim of each of the five papers, at small scale on real images.

    python -m experiments.five_papers --data-dir FOLDER

Each case is a `cljax compare` command, run into `runs/five_papers/CASE-DIGEST` (of its arguments) unless its finished
record is there already; FOLDER has MNIST and CIFAR-100 prepared by TFDS. Four hours on two cores; `--only digits
cifar100` picks cases, and `--only df_cnn_cifar100_full` one that is too large for that, with all that its paper did.
`tfm` has its feature normalisation; its ablation is the same command with `--normalization none`. Writes
`experiments/results/five_papers_CASE.json` and, in `experiments/claims.json`, each claim beside what was found: a
difference is paired by seed, and counts where its 95% interval leaves out 0.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, Literal

import tyro

from cljax import report
from cljax.report.sweep import plasticity
from experiments import claims
from experiments.saving import digest, write_result
from experiments.tables import average, kept, margin, peak, ran, speed, zero_forgetting

ALL = "finetune joint freezing lwf lwm tfm clnp df_cnn"
DF_CNN_FIRST = (
    "4 1 54 9 0 5 6 3 12 8 30 32 62 10 51 20 7 42 17 13 55 67 70 16 53 25 14 43 37 48 72 73 82 28 57 84 18 88 68 58 "
    "95 91 92 61 83 94 24 97 76 90"
)
DF_CNN_LAST = (
    "22 23 15 34 26 2 27 36 47 41 39 33 19 63 45 11 29 50 52 69 40 49 21 64 77 35 44 65 56 81 86 60 31 66 79 46 78 74 "
    "59 85 87 71 38 75 99 98 93 80 96 89"
)
"""The ten tasks of ten classes in the paper's code: five and five."""
DF_CNN_PAPER = (
    "--methods single_task df_cnn --data cifar100 --fraction 0.0378 --network df_cnn_base --set df_cnn.sizes=cifar "
    "--batch-size 10 --loss-reduction sum --optimizer rmsprop_tf1 --optimizer-state task --clip 0"
)
"""Its network, initialisation and dropout, its factors, 17 images a class, and its steps."""
SMALL = "--channels 16 32 --hidden 64"
CE_NEW = "--set lwm.classification=ce_new"
"""A softmax over the new classes; the paper's binary terms are in `experiments.lwm`."""
COMMANDS = {
    "digits": f"--methods {ALL} --seeds 5 --epochs 10 {SMALL} {CE_NEW}",
    "permuted_mnist": f"--methods {ALL} --data mnist --scenario permuted --fraction 0.05 --validation 0.02 --seeds 3 "
    f"--epochs 4 --channels 8 16 --hidden 64 {CE_NEW}",
    "cifar100": f"--methods {ALL} --data cifar100 --tasks 10 --seeds 3 --epochs 5 {SMALL} {CE_NEW}",
    "tfm_cifar100": "--methods finetune freezing joint lfl lwf imm ewc hat packnet tfm --data cifar100 --tasks 10 "
    f"--seeds 3 --fraction 0.4 --epochs 5 {SMALL} --tune 0.05 --set ewc.fisher=sampled imm.fisher=sampled",
    "class_incremental": f"--methods finetune lwf_mc lwm --data cifar100 --tasks 10 --scenario class --seeds 3 "
    f"--epochs 4 {SMALL} {CE_NEW}",
    "clnp_permuted_mnist": "--methods single_task clnp --data mnist --scenario permuted --seeds 3 --epochs 2 "
    "--hidden 1000 1000 --batch-size 256 --optimizer adam --lr 0.002 --set clnp.margin=0.005 clnp.l1=2e-4",
    "df_cnn_cifar100": f"{DF_CNN_PAPER} --tasks 5 --class-order {DF_CNN_FIRST} --seeds 3 --epochs 80 "
    "--curves-every 4 --lr 0.001 --learning-rate-decay 0.00625",  # as far in 80 epochs as the paper's rate in 2000
}
FULL = {
    "df_cnn_cifar100_full": f"{DF_CNN_PAPER} --tasks 10 --class-order {DF_CNN_FIRST} {DF_CNN_LAST} --seeds 5 "
    "--epochs 2000 --curves-every 20 --lr 1e-4 --learning-rate-decay 2.5e-4"
}
"""Run only where `--only` names it."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Where data, runs and results are, and which cases are done; a case with no record yet is otherwise run."""

    data_dir: str | None = None
    runs: str = "runs/five_papers"
    out: str = "experiments"
    only: tuple[Literal[*COMMANDS, *FULL], ...] = ()
    run: bool = True
    """Whether missing records are made; if not, only those there are summarised."""


LWF, LWM, TFM = "Li and Hoiem 2016, table 1", "Dhar et al. 2019, figure 5", "Masana et al. 2021, tables 3 to 5"
CLNP, DF_CNN = "Golkar et al. 2019, table 1 and figure 4", "Lee et al. 2019, figure 3"
BETTER = {"tfm": "3 to 13 points in the average over all tasks", "clnp": "in figure 4, for transfer by the last layer"}
CLAIMS: list[tuple[str, str, str, str, Callable]] = [
    (LWF, "LwF forgets less than fine-tuning", "1.4 to 9.1 points", case, margin(kept, "lwf", "finetune"))
    for case in ("digits", "permuted_mnist", "cifar100")
]
CLAIMS += [
    (
        LWM,
        "LwM (ce_new) is above LwF-MC, class-incremental",
        "in a figure",
        "class_incremental",
        margin(average, "lwm", "lwf_mc"),
    ),
    (
        LWM,
        "LwM (ce_new) forgets less than LwF-MC",
        "in figure 4, without numbers",
        "class_incremental",
        margin(kept, "lwm", "lwf_mc"),
    ),
    (
        LWM,
        "LwM (ce_new) is above fine-tuning",
        "in table 4 (Caltech and CUB), 15.8 to 29.7 points",
        "class_incremental",
        margin(average, "lwm", "finetune"),
    ),
]
for case in ("digits", "permuted_mnist", "cifar100"):
    for source, method in ((TFM, "tfm"), (CLNP, "clnp")):
        CLAIMS += [
            (source, f"{method} forgets nothing", "0.0 forgetting", case, zero_forgetting(method)),
            (source, f"{method} learns later tasks better than freezing", BETTER[method], case,
             margin(plasticity, method, "freezing")),
        ]  # fmt: skip
TABLE_4 = "Masana et al. 2021, table 4, tinyImageNet, random split"
CLAIMS += [
    (TABLE_4, f"{method} is above {other}, strengths chosen", published, "tfm_cifar100", margin(average, method, other))
    for method, other, published in (
        ("tfm", "hat", "56.0 to 54.2"),
        ("packnet", "hat", "56.4 to 54.2"),
        ("tfm", "freezing", "56.0 to 42.7"),
        ("lwf", "finetune", "56.4 to 47.4"),
        ("lwf", "lfl", "56.4 to 47.7"),
        ("tfm", "ewc", "56.0 to 47.8"),
        ("tfm", "imm", "56.0 to 48.3"),
    )
]
CLAIMS += [
    (TABLE_4, "tfm is at most a point below packnet, strengths chosen", "56.0 to 56.4", "tfm_cifar100",
     margin(average, "tfm", "packnet", at_least=-0.01)),
    *((TABLE_4, f"{method} forgets nothing", "0.0 forgetting", "tfm_cifar100", zero_forgetting(method))
      for method in ("tfm", "packnet", "freezing")),
]  # fmt: skip
CLAIMS += [
    (CLNP, "CLNP's permuted MNIST is within 0.5 points of single-task learning", "98.42 to 98.48",
     "clnp_permuted_mnist", margin(average, "clnp", "single_task", at_least=-0.005)),
]  # fmt: skip
for case in ("df_cnn_cifar100", "df_cnn_cifar100_full"):
    CLAIMS += [
        (DF_CNN, "DF-CNN's peak is above single-task learning's", "37.2 to 31.2", case,
         margin(peak, "df_cnn", "single_task")),
        (DF_CNN, "DF-CNN converges in fewer epochs than single-task learning", "in a figure", case,
         margin(speed, "df_cnn", "single_task")),
    ]  # fmt: skip


def summary(name: str, record: dict[str, Any]) -> dict[str, Any]:
    """A case's numbers, in percent."""
    runs = record["runs"]
    tables = {run["method"]: report.summarise(run) for run in runs}
    found = {
        metric: {method: values[metric] for method, values in tables.items()} for metric in next(iter(tables.values()))
    }
    found["later_tasks"] = {run["method"]: plasticity(run) for run in runs}
    if runs[0]["curves"]:
        found["peak_accuracy"] = {run["method"]: peak(run) for run in runs}
    return {
        "experiment": f"five_papers/{name}",
        "published": sorted({f"{claim}: {value}" for _, claim, value, case, _ in CLAIMS if case == name}),
        **claims.in_percent(found),
        "zero_forgetting": {run["method"]: run["zero_forgetting"] for run in runs},
        "seeds": runs[0]["seeds"],
        "device": runs[0]["device"],
        "form": "full" if name in FULL else "reduced",
        "versions": runs[0]["versions"],
    }


def main(config: Config) -> None:
    """Runs the cases that have no record yet, writes the results and the claims."""
    out, decided = pathlib.Path(config.out), []
    for name, arguments in {**COMMANDS, **FULL}.items():
        if name not in (config.only or COMMANDS):
            continue
        folder = pathlib.Path(config.runs) / f"{name}-{digest(arguments)}"
        record = ran(folder, arguments, config.data_dir, float("inf") if config.run else 0)
        if record is None:
            continue
        command = f"cljax compare {arguments}"
        write_result(config, f"five_papers_{name}", summary(name, record), command)
        runs = {run["method"]: run for run in record["runs"]}
        for source, claim, published, case, decide in CLAIMS:
            if case == name:
                text, verdict = claims.at_scale(*decide(runs), name in FULL)
                print(f"{verdict:15s} {claim} ({case}): {text}")
                what = f"{claim} ({case.replace('_', ' ')})"
                decided.append(claims.claim(source, what, published, text, verdict))
    claims.merge(out, decided)


if __name__ == "__main__":
    main(tyro.cli(Config))
