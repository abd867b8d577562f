"""Why LwM is, or is not, above LwF-MC (Dhar et al. 2019, figure 5): one thing at a time is changed.

    python -m experiments.lwm.causes --data-dir FOLDER

Fifty classes of CIFAR-100 in five steps, a fifth of the images, at 16x16 pixels; a CNN whose head reads the average of
the last 4x4 maps, which are those that are compared; ten epochs a step, as in the paper, with iCaRL's augmentation and
rate (2.0 for the loss's mean over 100 outputs is 0.02 for its sum). FOLDER has CIFAR-100 as TFDS prepares it. A row of
differences says what LwM has more than LwF-MC where both have the change; "LwF-MC:" and "gamma 0:", what the change
does to these; "gamma 1 to gamma 0", what attention distillation adds. LwM with gamma 0 is LwF-MC that leaves outputs of
unseen classes alone; claims compare the two from the second step on, as for figure 5. Writes
`experiments/results/lwm_causes_FORM.json` and the claims.
"""

from __future__ import annotations

import tyro

from experiments import tables
from experiments.lwm.figure_5 import later
from experiments.tables import above, incremental, kept

ORDER = (
    "68 56 78 8 23 84 90 65 74 76 40 89 3 92 55 9 26 80 43 38 58 70 77 1 85 19 17 50 28 53 13 81 45 82 6 59 83 16 15 "
    "44 91 41 72 60 79 52 20 10 31 54"
)
"""The first fifty classes of the order of 1993, in which iCaRL's followers have them."""
ALL = f"--data cifar100 --class-order {ORDER} --scenario class --tasks 5 --image-size 16 --quiet"
FORMS = {
    "reduced": f"{ALL} --fraction 0.2 --channels 16 32 --pooled --hidden --epochs 10 --lr 0.02 --clip 0 "
    "--augment crop flip",
    "tiny": f"{ALL} --fraction 0.02 --channels 2 4 --pooled --hidden --epochs 1 --lr 0.02 --clip 0 --augment crop flip",
}
GAMMAS = ("0", "0.1", "10")
WITHOUT = {"softmax over the new classes": "classification=ce_new", "beta 3": "beta=3", "beta 0": "beta=0"}
"""What is changed for LwM with gamma 1 and with gamma 0; with gamma 0, beta 0 is fine-tuning."""
BOTH = {
    "no augmentation": "--augment",
    "a dense layer on the flattened maps": "--no-pooled --hidden 64",
    "batch normalisation": "--normalization batch",
    "two epochs a step": "--epochs 2",
    "gradients clipped to norm 1": "--clip 1",
    "the rate falls at 0.7 and 0.9 of a step": "--milestones 0.7 0.9",
    "two steps of 25 classes": "--tasks 2",
    "ten steps of 5 classes": "--tasks 10",
    "20 epochs a step": "--epochs 20",
}
"""What is changed for LwM and for LwF-MC."""
ALONE = {
    "maps of activation": "attention_map=activation",
    "maps compared by l2": "distance=l2",
    "the top old class alone distilled": "distilled=top",
    "binary terms of all classes seen": "classification=bce_all",
}
"""What is changed for LwM and is not in LwF-MC."""
SYSTEMS = {"lwf_mc": "--methods lwf_mc", "lwm": "--methods lwm"}
PAIRS = {"as it is": ("lwm", "lwf_mc")}
for gamma in GAMMAS:
    SYSTEMS[f"lwm, gamma {gamma}"] = f"--methods lwm --set lwm.gamma={gamma}"
    PAIRS[f"gamma {gamma}"] = (f"lwm, gamma {gamma}", "lwf_mc")
PAIRS["gamma 1 to gamma 0"] = ("lwm", "lwm, gamma 0")
for change, setting in WITHOUT.items():
    for gamma in ("0", "1"):
        SYSTEMS[f"lwm, {change}, gamma {gamma}"] = f"--methods lwm --set lwm.{setting} lwm.gamma={gamma}"
    PAIRS[f"gamma 1 to gamma 0, {change}"] = (f"lwm, {change}, gamma 1", f"lwm, {change}, gamma 0")
    PAIRS[f"gamma 0: {change}"] = (f"lwm, {change}, gamma 0", "lwm, gamma 0")
for change, setting in ALONE.items():
    SYSTEMS[f"lwm, {change}"] = f"--methods lwm --set lwm.{setting}"
    PAIRS[change] = (f"lwm, {change}", "lwf_mc")
for change, options in BOTH.items():
    for name in ("lwf_mc", "lwm"):
        SYSTEMS[f"{name}, {change}"] = f"--methods {name} {options}"
    PAIRS[change] = (f"lwm, {change}", f"lwf_mc, {change}")
    PAIRS[f"LwF-MC: {change}"] = (f"lwf_mc, {change}", "lwf_mc")
SYSTEMS["lwm, batch normalisation, gamma 0"] = "--methods lwm --set lwm.gamma=0 --normalization batch"
PAIRS["gamma 1 to gamma 0, batch normalisation"] = ("lwm, batch normalisation", "lwm, batch normalisation, gamma 0")
FIGURE = "curves without numbers"
FINETUNE, ATTENTION = "lwm, beta 0, gamma 0", "lwm, beta 0, gamma 1"
TABLE = tables.Table(
    name="lwm_causes",
    source="Dhar et al. 2019, figure 5",
    module="experiments.lwm.causes",
    forms=FORMS,
    systems=SYSTEMS,
    published={},
    claims=(
        *(
            claim
            for name, what in (
                ("lwm, gamma 0.1", "LwM, gamma 0.1, the best of those tried on these runs,"),
                ("lwm", "LwM, gamma 1,"),
            )
            for claim in (
                above(f"{what} is above LwF-MC from the second step on", FIGURE, name, "lwf_mc", later),
                above(f"{what} forgets less than LwF-MC", FIGURE, name, "lwf_mc", kept),
                above(f"{what} is above fine-tuning", FIGURE, name, FINETUNE, incremental),
                above(f"{what} is above itself without L_AD", "in the text", name, "lwm, gamma 0", incremental),
            )
        ),
        above("LwF-MC is above fine-tuning", FIGURE, "lwf_mc", FINETUNE, incremental),
        above("LwM, gamma 1, is above L_C and L_AD", "in table 5, 15 to 70 points", "lwm", ATTENTION, incremental),
    ),
    metrics={"incremental_accuracy_from_the_second_step": later},
    pairs=PAIRS,
)

if __name__ == "__main__":
    tables.main(TABLE, tyro.cli(tables.Config))
