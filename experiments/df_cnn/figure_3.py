"""Lee, Stokes and Eaton 2019 (DF-CNN), figures 3 and 4: ten tasks of ten classes from 4% of CIFAR-100.

    python -m experiments.df_cnn.figure_3 --data-dir FOLDER

The tasks are those of the paper's code, in its order; 17 images a class to learn, 3 to validate, 100 to test. Each seed
draws other images: the code meant that too, but all its five trials have the same ones. All images are standardised by
the first task's; the code has each part of each task by its own. In `full`, 2,000 epochs a task, the rate falls with
the epochs of all tasks and all tasks are tested after each epoch, 340,000 steps a system and seed: some seventy hours
of a core each, so it is for a GPU. `leased` has the same rates in a quarter of the epochs. `reduced` has five tasks,
forty epochs a task at ten times the rate (rate times epochs is a fifth of the paper's), and is tested every fourth; it
takes two and a half hours on two cores, most of them for testing: 20 to 30 minutes of one a system, 48 for the large
network, 40 for DEN, 90 for ProgNN. tc2 is not learned at ten times the rate: in a trial of ten epochs none of nine
tasks was above 20%, and at the rate of the code all of four were, in twenty; that rate in forty epochs compares with
nothing.

Beside what the paper measures, the best test accuracy that a task has while it is learned (figure 3a), each task is
tested at the epoch that its validation images choose. `forgetting_ratio` is figure 3b's in the end, over all tasks but
the last; `converged` the part of its epochs after which a task has 98% of its peak (figure 5c has it for Office-Home);
`recovered` what old tasks gain, of their peaks, while the last three tenths of the tasks (in `reduced` the last two)
are learned. Figure 4 is drawn beside the result. PARAMETERS are the published sizes, which a test holds.

DEN's code is withheld. It is given the large network, of whose convolutions the first task has the paper's features,
and the published numbers, but for the group lasso: 0.8 a step would leave no new unit, so it is 0.8 times the rate.
"""

from __future__ import annotations

import numpy as np
import tyro
from matplotlib.figure import Figure

from cljax import metrics
from cljax.report import frame, palette
from cljax.report.series import learning_curve
from experiments import claims, tables
from experiments.five_papers import DF_CNN_FIRST, DF_CNN_LAST
from experiments.tables import Run, Runs, above

SOURCE = "Lee et al. 2019, figures 3 and 4"
PARAMETERS = {
    "STL": 3_284_260,
    "STL, large": 9_345_860,
    "HPS": 2_694_148,
    "ProgNN": 3_508_637,
    "DF-CNN": 7_963_252,
    "DF-CNN, small": 2_799_740,
    "DF-CNN.tc2": 2_995_168,
}
"""Of ten tasks; the paper prints them as 3.28M, 9.35M, 2.69M, 3.51M, 7.96M, 2.80M and 3.00M."""
COMMON = (
    "--data cifar100 --validation 0.006 --fraction 0.0342 --network df_cnn_base --batch-size 10 --loss-reduction sum "
    "--optimizer rmsprop_tf1 --optimizer-state task --clip 0"
)
ALL, HALF, TWO = f"{DF_CNN_FIRST} {DF_CNN_LAST}", DF_CNN_FIRST, " ".join(DF_CNN_FIRST.split()[:20])


def converged(run: Run) -> np.ndarray:
    """After which part of a visit a task has 98% of its peak, the mean over tasks."""
    share = lambda curves, starts: metrics.epochs_to_converge(curves, starts) / np.diff([*starts, len(curves)])
    return tables.of_curves(run, share)


def forgetting_ratio(run: Run) -> np.ndarray:
    """In the end the accuracy as a part of the peak, the mean over all tasks but the last."""
    return tables.of_curves(run, lambda curves, starts: metrics.forgetting_ratio(curves, starts)[-1, :-1])


def recovered(run: Run) -> np.ndarray:
    """By how much that rises from the time when seven tenths of the tasks are learned, for these."""

    def rise(curves: np.ndarray, starts: np.ndarray) -> np.ndarray:
        old, ratio = 7 * len(starts) // 10, np.asarray(metrics.forgetting_ratio(curves, starts))
        return ratio[-1, :old] - ratio[starts[old] - 1, :old]

    return tables.of_curves(run, rise)


def peak_by_validation(run: Run) -> np.ndarray:
    """The mean over tasks of the test accuracy at the epoch that is best by the task's own validation images."""
    rounds, phases, epochs = np.asarray(run["curve_epochs"]).T
    curves = np.asarray(run["curves"], np.float32)
    log = np.asarray(run["epochs"]["validation_accuracy"], np.float32)
    chosen_by = np.broadcast_to(log[:, rounds, phases, epochs - 1, None], curves.shape)
    starts = np.searchsorted(rounds, np.arange(rounds.max() + 1))
    return np.asarray(metrics.peak_accuracy(curves, starts, validation=chosen_by), np.float64).mean(axis=-1)


def twice_as_fast(runs: Runs) -> tuple[str, str]:
    """Whether DF-CNN converges in less than half the epochs of single-task learning."""
    return claims.compare(("STL", converged(runs["STL"])), ("twice DF-CNN's", 2 * converged(runs["DF-CNN"])))


def reverse_transfer(runs: Runs) -> tuple[str, str]:
    """Whether old tasks gain from the last ones."""
    gain = recovered(runs["DF-CNN"])
    return claims.compare(("DF-CNN", gain), ("none", np.zeros_like(gain)))


def draw(runs: Runs) -> Figure:
    """Figure 4: each task's test accuracy from when it comes, thick while it is learned, a panel a system.

    The dotted lines are the mean peaks of single-task learning, of both sizes.
    """
    systems = [name for name in runs if not name.startswith("STL")] or list(runs)
    rows, columns = -(-len(systems) // 3), min(3, len(systems))
    figure = Figure((4 * columns, 3.3 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for unused in panels[len(systems) :]:
        unused.remove()
    for place, (panel, name) in enumerate(zip(panels, systems, strict=False)):
        places = learning_curve(runs[name], "curves")[0]
        visits = np.asarray(runs[name]["curve_epochs"])[:, 0]
        curves = 100 * np.mean(np.asarray(runs[name]["curves"], np.float64), axis=0).T
        colors = np.linspace(0, len(palette.TASKS) - 1, len(curves)).round().astype(int)
        for task, means in enumerate(curves):
            for when, width in ((visits == task, 2.2), (visits >= task, 1.0)):
                panel.plot(places[when], means[when], color=palette.TASKS[colors[task]][0], linewidth=width)
        for peaks, color in (("STL", "0.3"), ("STL, large", "0.6")):
            if peaks in runs:
                panel.axhline(100 * tables.peak(runs[peaks]).mean(), color=color, linestyle=":")
        frame.dress(panel, name, "tasks learned", "" if place % columns else "test accuracy (%)")
    return figure


PEAK = {
    "STL": 31.2,
    "STL, large": 34.3,
    "HPS": 24.7,
    "ProgNN": 31.3,
    "DEN": 30.2,
    "DF-CNN": 37.2,
    "DF-CNN, small": 36.2,
}
ORDER = (
    *(("DF-CNN", other) for other in ("STL", "STL, large", "HPS", "ProgNN", "DEN")),
    *(("DF-CNN, small", other) for other in ("STL", "STL, large")),
    ("STL, large", "STL"),
    ("STL", "HPS"),
)
TABLE = tables.Table(
    name="df_cnn_figure_3",
    source=SOURCE,
    module="experiments.df_cnn.figure_3",
    forms={
        "full": f"{COMMON} --tasks 10 --class-order {ALL} --epochs 2000 --curves-every 1 --lr 1e-4 "
        "--learning-rate-decay 2.5e-4",
        "leased": f"{COMMON} --tasks 10 --class-order {ALL} --epochs 500 --curves-every 10 --lr 1e-4 "
        "--learning-rate-decay 1e-3",
        "reduced": f"{COMMON} --tasks 5 --class-order {HALF} --epochs 40 --curves-every 4 --lr 1e-3 "
        "--learning-rate-decay 0.0125",
        "tiny": f"{COMMON} --tasks 2 --class-order {TWO} --epochs 4 --curves-every 1 --lr 1e-3 "
        "--learning-rate-decay 0.1 --quiet",
    },
    systems={
        "STL": "--methods single_task",
        "STL, large": "--methods single_task --network df_cnn_large",
        "HPS": "--methods hard_sharing",
        "ProgNN": "--methods progressive",
        "DEN": "--methods den --network df_cnn_large --weight-decay 0.01 --set den.initial=0.6666 den.expansion=16 "
        "den.l1=1e-6 den.drift_penalty=0.5 den.loss_threshold=0.01",
        "DF-CNN": "--methods df_cnn --set df_cnn.sizes=cifar",
        "DF-CNN, small": "--methods df_cnn --network df_cnn_reduced --set df_cnn.sizes=cifar_reduced",
        "DF-CNN.tc2": "--methods df_cnn --set df_cnn.kind=tc2 df_cnn.sizes=cifar_tc2",
    },
    published={"peak": PEAK},
    claims=(
        *(above(f"{one}'s peak is above {other}'s", f"{PEAK[one]} to {PEAK[other]}", one, other, tables.peak)
          for one, other in ORDER),
        *(above(f"{one} keeps more of its peaks than {other}", "in a figure", one, other, forgetting_ratio)
          for one, other in (("DF-CNN", "HPS"), ("DF-CNN", "DEN"), ("DF-CNN, small", "HPS"))),
        tables.Claim("ProgNN forgets nothing", "in a figure", ("ProgNN",), tables.zero_forgetting("ProgNN")),
        tables.Claim("DF-CNN converges more than twice as fast as STL", "in the text", ("STL", "DF-CNN"),
                     twice_as_fast),
        tables.Claim("DF-CNN's old tasks gain from the last ones", "in a figure", ("DF-CNN",), reverse_transfer),
    ),
    metrics={
        "peak": tables.peak,
        "peak_by_validation": peak_by_validation,
        "forgetting_ratio": forgetting_ratio,
        "converged": converged,
        "recovered": recovered,
    },
    in_form={
        form: {"DEN": f"den.group_lasso={0.8 * rate:g}"}
        for form, rate in (("full", 1e-4), ("leased", 1e-4), ("reduced", 1e-3), ("tiny", 1e-3))
    },
    draw=draw,
)  # fmt: skip


if __name__ == "__main__":
    tables.main(TABLE, tyro.cli(tables.Config))
