"""Dhar et al. 2019 (LwM), figure 5: CIFAR-100 in steps of 10, 20 and 50 classes; table 5's L_C and L_AD beside them.

    python -m experiments.lwm.figure_5 --data-dir FOLDER --form reduced

Fine-tuning (L_C alone), LwF-MC, LwM, iCaRL, and L_C and L_AD without L_D, in as many random orders of classes as seeds,
and in the order of 1993. The paper says: ResNet-34, a rate of 0.01, ten epochs a step. The rest is iCaRL's: steps of
128 images, which are shifted and mirrored, momentum 0.9, weight decay 1e-5, 2000 exemplars. The paper does not say beta
and gamma: beta is 1, and gamma 0.1, for a gamma of 1 costs accuracy in `experiments.lwm.causes`, where the network has
batch normalisation (by the test images of the first fifty classes of the order of 1993). LwM is compared with LwF-MC
from the second step on: the paper lets all begin with one first network. FOLDER has CIFAR-100 as TFDS prepares it. The
reduced form has a CNN with batch normalisation, whose head reads the average of the last maps; a fifth of the images
and of the exemplars, a rate of 0.02, steps of 32. Each system is a run that is kept, and goes on where it was stopped:
`--form leased --seconds 450` is the full form with half of the features, lease by lease.
"""

from __future__ import annotations

import numpy as np
import tyro
from matplotlib.figure import Figure

from cljax.report import frame
from experiments import tables
from experiments.drawing import lines
from experiments.tables import Run, Runs, above, after_each_task, incremental, kept

ALL = "--data cifar100 --scenario class --augment crop flip --clip 0 --weight-decay 1e-5 --quiet"
PAPER = f"{ALL} --validation 0 --network resnet34 --epochs 10 --batch-size 128 --lr 0.01"
FORMS = {
    "full": f"{PAPER} --set icarl.memory_size=2000",
    "leased": f"{PAPER} --width 0.5 --set icarl.memory_size=2000",
    "reduced": f"{ALL} --fraction 0.2 --epochs 10 --lr 0.02 --channels 16 32 64 --normalization batch --pooled "
    "--hidden --set icarl.memory_size=400",
    "tiny": f"{ALL} --fraction 0.02 --epochs 1 --lr 0.02 --channels 2 4 --pooled --hidden --set icarl.memory_size=100",
}
METHODS = {
    "lwf_mc": "--methods lwf_mc --set lwf_mc.push_unseen=true",
    "lwm": "--methods lwm --set lwm.beta=1 lwm.gamma=0.1",
    "finetune": "--methods lwm --set lwm.beta=0 lwm.gamma=0",
    "attention": "--methods lwm --set lwm.beta=0 lwm.gamma=0.1",
    "icarl": "--methods icarl",
}
"""The last takes `--set` of the form, the others have their own; 'attention' is L_C and L_AD."""
LABELS = {"lwf_mc": "LwF-MC", "lwm": "LwM", "finetune": "fine-tuning", "attention": "L_C and L_AD", "icarl": "iCaRL"}
SYSTEMS = {
    f"{name}_{classes}": f"{words} --tasks {100 // classes} --class-order random"
    for classes in (10, 20, 50)
    for name, words in METHODS.items()
} | {f"{name}_10_of_1993": f"{METHODS[name]} --tasks 10 --class-order icarl" for name in ("lwf_mc", "lwm", "finetune")}


def later(run: Run) -> np.ndarray:
    """The average incremental accuracy from the second step on.

    In the first nothing is distilled: there LwM and LwF-MC differ in what their losses say of unseen classes alone.
    """
    return after_each_task(run)[:, 1:].mean(axis=-1)


def draw(runs: Runs) -> Figure:
    """After each step the accuracy on all classes seen, a panel a size of steps."""
    figure = Figure((13, 3.4), layout="constrained")
    panels = figure.subplots(1, len(STEPS), sharey=True)
    for place, (panel, (end, what)) in enumerate(zip(panels, STEPS.items(), strict=True)):
        found = {name: runs.get(f"{name}_{end}") for name in METHODS}
        named = {LABELS[name]: None if run is None else after_each_task(run) for name, run in found.items()}
        lines(panel, named, int(end.partition("_")[0]))
        frame.dress(panel, what, "classes seen", "" if place else "accuracy (%)")
    known = dict(pair for panel in panels for pair in zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    figure.legend(known.values(), known.keys(), loc="outside right center", frameon=False)
    return figure


FIGURE, TABLE_5 = "curves without numbers", "26.8 to 97.2 at 60 classes of iILSVRC-small, top-5"
STEPS = {"10": "steps of 10 classes", "20": "steps of 20", "50": "steps of 50", "10_of_1993": "the order of 1993"}
TABLE = tables.Table(
    name="lwm_figure_5",
    source="Dhar et al. 2019, figure 5",
    module="experiments.lwm.figure_5",
    forms=FORMS,
    systems=SYSTEMS,
    published={},
    claims=tuple(
        claim
        for end, what in STEPS.items()
        for claim in (
            above(f"LwM is above LwF-MC, {what}", FIGURE, f"lwm_{end}", f"lwf_mc_{end}", later),
            above(f"LwM forgets less than LwF-MC, {what}", "figure 4", f"lwm_{end}", f"lwf_mc_{end}", kept),
            above(f"LwF-MC is above fine-tuning, {what}", FIGURE, f"lwf_mc_{end}", f"finetune_{end}", incremental),
            above(f"LwM is above fine-tuning, {what}", FIGURE, f"lwm_{end}", f"finetune_{end}", incremental),
        )
    )
    + tuple(
        above(f"LwM is above L_C and L_AD, {STEPS[end]}", TABLE_5, f"lwm_{end}", f"attention_{end}", incremental)
        for end in ("10", "20", "50")
    ),
    metrics={"incremental_accuracy_from_the_second_step": later},
    pairs={f"LwM to LwF-MC, {what}": (f"lwm_{end}", f"lwf_mc_{end}") for end, what in STEPS.items()},
    draw=draw,
)

if __name__ == "__main__":
    tables.main(TABLE, tyro.cli(tables.Config))
