"""The parts of LwF's experiments: which runs each needs, its numbers, and what the paper claims beside what was found.

Accuracies are `[S, R, T]`, a fraction a seed, after each task, on each task; task 0 is the old one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from cljax import metrics
from experiments.claims import NOT_REPRODUCED, NOT_TESTED, REPRODUCED, Claim, Named, claim, compare
from experiments.lwf.published import IN_A_FIGURE, SOURCE, TABLE_1, TABLE_2

Get = Callable[[str, str], np.ndarray]
"""`(case, method) -> accuracy`."""
Found = dict[str, dict[str, np.ndarray]]
"""`{metric: {method: a number a seed}}`."""

MAIN = ("lwf", "finetune", "feature_extraction", "joint", "l2_constraint", "duplicate_and_finetune")
FEW = ("lwf", "finetune", "feature_extraction", "joint")
"""The methods of figure 5."""
EXPANSION = ("network_expansion", "network_expansion_lwf")
VARIANTS = (
    *("l2_constraint", "lwf_own_1", "lwf_own_2", "lwf_cross_entropy", "lwf_l1", "lwf_l2", "finetune_tenth"),
    *EXPANSION,
)
"""What table 2 has beside the methods of table 1."""
SHARES = {"100%": "similar", "30%": "part_30", "10%": "part_10", "3%": "part_3"}
"""The cases of figure 5."""
RUNS: dict[str, dict[str, tuple[str, ...]]] = {
    "table_1": {"similar": MAIN, "dissimilar": MAIN},
    "figure_4": {"several": MAIN},
    "figure_5": dict.fromkeys(SHARES.values(), FEW),
    "table_2": {"similar": ("lwf", "finetune", "feature_extraction", *VARIANTS)},
}
"""The runs that each part is made of: the methods of each case."""
NEAR = 0.02
"""How far below joint training LwF may be where the paper says that they perform similarly."""


class Result(NamedTuple):
    """What a part found: the paper's numbers, its own, and the claims."""

    published: Any
    found: Found
    claims: list[Claim]


def old(accuracy: np.ndarray) -> np.ndarray:
    """Accuracy on the old task in the end."""
    return accuracy[:, -1, 0]


def new(accuracy: np.ndarray) -> np.ndarray:
    """Mean accuracy on the new tasks in the end."""
    return accuracy[:, -1, 1:].mean(axis=-1)


def average(accuracy: np.ndarray) -> np.ndarray:
    """Mean accuracy on all tasks in the end."""
    return accuracy[:, -1].mean(axis=-1)


def lost(accuracy: np.ndarray) -> np.ndarray:
    """What was lost on the old task."""
    return accuracy[:, 0, 0] - accuracy[:, -1, 0]


def tabulate(runs: Mapping[str, np.ndarray], reference: np.ndarray, prefix: str = "") -> Found:
    """Accuracy on old, new and all tasks of each method, and its difference to LwF's."""
    measures = {"average": average, "old": old, "new": new}
    name = lambda method: f"{prefix}{method}"
    found: Found = {f"{what}_accuracy": {name(m): of(a) for m, a in runs.items()} for what, of in measures.items()}
    for what, of in measures.items():
        found[f"{what}_minus_lwf"] = {name(m): of(a) - of(reference) for m, a in runs.items() if m != "lwf"}
    return found


def join(*parts: Found) -> Found:
    """Several tables as one."""
    return {metric: {name: value for part in parts for name, value in part[metric].items()} for metric in parts[0]}


def above(what: str, published: str, mine: Named, other: Named, **options: Any) -> Claim:
    """The claim that one is above the other; see `compare`."""
    return claim(SOURCE, what, published, *compare(mine, other, **options))


def not_above(what: str, published: str, mine: Named, other: Named) -> Claim:
    """The claim that one is not clearly above the other."""
    text, verdict = compare(mine, other)
    return claim(SOURCE, what, published, text, _unless(verdict == REPRODUCED, mine, other))


def level(what: str, published: str, mine: Named, other: Named) -> Claim:
    """The claim that two are not apart."""
    (text, verdict), (_, reverse) = compare(mine, other), compare(other, mine)
    return claim(SOURCE, what, published, text, _unless(REPRODUCED in (verdict, reverse), mine, other))


def _unless(apart: bool, mine: Named, other: Named) -> str:
    """The verdict of a claim that holds unless two are told apart; without an interval nothing is known."""
    half = metrics.paired_difference(*(np.asarray(values, np.float64) for _, values in (mine, other))).half_width
    return NOT_TESTED if np.isnan(half) else NOT_REPRODUCED if apart else REPRODUCED


def not_tested(what: str, published: str, why: str) -> Claim:
    """A claim that these experiments leave open."""
    return claim(SOURCE, what, published, why, NOT_TESTED)


def table_1(get: Get, after: str = "CIFAR-10") -> Result:
    """One new task: CIFAR-100's mammals, and MNIST."""
    claims, tables, runs = [], [], {}
    for case, words in (("similar", f"mammals after {after}"), ("dissimilar", f"MNIST after {after}")):
        here = runs[case] = {method: get(case, method) for method in RUNS["table_1"][case]}
        tables.append(tabulate(here, here["lwf"], f"{case}/"))
        on = {name: {m: (m, of(a)) for m, a in here.items()} for name, of in (("old", old), ("new", new))}
        similar = case == "similar"
        say = lambda text, words=words: f"table 1: {text} ({words})"
        claims += [
            above(say("LwF is above fine-tuning on the old task"), "1.4 to 9.1 points" if similar else "4.9 points",
                  on["old"]["lwf"], on["old"]["finetune"]),
            above(say("LwF is above feature extraction on the new task"),
                  "0.5 to 19.4 points" if similar else "0.8 points", on["new"]["lwf"], on["new"]["feature_extraction"]),
            above(say("feature extraction is above LwF on the old task"),
                  "-0.2 to 4.7 points" if similar else "5.0 points", on["old"]["feature_extraction"], on["old"]["lwf"]),
            above(say("joint training is above LwF on the old task"), "-0.1 to 3.3 points" if similar else "4.7 points",
                  on["old"]["joint"], on["old"]["lwf"]),
        ]  # fmt: skip
        if similar:
            claims += [
                above(say("LwF is above fine-tuning on the new task"), "0.1 to 1.5 points",
                      on["new"]["lwf"], on["new"]["finetune"]),
                above(say("LwF is above joint training on the new task"), "-0.1 to 0.9 points",
                      on["new"]["lwf"], on["new"]["joint"]),
                above(say(f"LwF is at most {100 * NEAR:.0f} points below joint training on average"),
                      "-0.2 to 1.6 points below, said to be similar", *_averages(here), at_least=-NEAR),
            ]  # fmt: skip
        else:
            claims += [
                above(say("fine-tuning is above LwF on the new task"), "0.2 points",
                      on["new"]["finetune"], on["new"]["lwf"]),
            ]  # fmt: skip
    for method, published in (("finetune", "13.8"), ("lwf", "4.7")):
        pair = [(f"{case} task", lost(runs[case][method])) for case in ("dissimilar", "similar")]
        text = f"table 1: a dissimilar new task costs {method} more of the old one than a similar one (after {after})"
        claims.append(above(text, f"{published} points lost to CUB after Places2; less to VOC and Scenes", *pair))
    claims += [
        not_tested("table 1b: the same order on test sets", "Places2, VOC", "needs the challenges' test servers"),
        not_tested(
            "table 1c: joint training is above LwF on both tasks with VGG-16, otherwise as with AlexNet",
            "0.8 to 2.5 points",
            "needs ImageNet and a trained VGG-16: experiments.lwf.paper runs it",
        ),
    ]
    return Result(TABLE_1, join(*tables), claims)


def _averages(runs: Mapping[str, np.ndarray]) -> tuple[Named, Named]:
    return ("lwf", average(runs["lwf"])), ("joint", average(runs["joint"]))


def figure_4(get: Get, after: str = "CIFAR-10") -> Result:
    """Four groups of CIFAR-100 one by one."""
    runs = {method: get("several", method) for method in RUNS["figure_4"]["several"]}
    lwf, fine = runs["lwf"], runs["finetune"]
    forgotten = lambda accuracy: np.stack(
        [accuracy[:, task, task] - accuracy[:, -1, task] for task in range(accuracy.shape[-1] - 1)], axis=-1
    ).mean(axis=-1)
    each = [compare(("lwf", lwf[:, -1, task]), ("finetune", fine[:, -1, task])) for task in range(lwf.shape[-1])]
    say = lambda text: f"figure 4: {text} (four groups after {after})"
    everywhere = REPRODUCED if all(verdict == REPRODUCED for _, verdict in each) else NOT_REPRODUCED
    claims = [
        above(say("LwF degrades less than fine-tuning on tasks learned before"), IN_A_FIGURE,
              ("fine-tuning's loss", forgotten(fine)), ("LwF's", forgotten(lwf))),
        claim(SOURCE, say("LwF is above fine-tuning on every task in the end"), IN_A_FIGURE,
              "; ".join(f"task {task}: {text}" for task, (text, _) in enumerate(each)), everywhere),
        above(say("LwF is above feature extraction on new tasks"), IN_A_FIGURE,
              ("lwf", new(lwf)), ("feature_extraction", new(runs["feature_extraction"]))),
        above(say(f"LwF is at most {100 * NEAR:.0f} points below joint training on average"),
              f"{IN_A_FIGURE}, said to be similar", *_averages(runs), at_least=-NEAR),
    ]  # fmt: skip
    found = tabulate(runs, lwf)
    found["forgetting"] = {method: forgotten(accuracy) for method, accuracy in runs.items()}
    for task in range(lwf.shape[-1]):
        found[f"task_{task}_in_the_end"] = {method: accuracy[:, -1, task] for method, accuracy in runs.items()}
        found[f"task_{task}_when_learned"] = {method: accuracy[:, task, task] for method, accuracy in runs.items()}
    return Result(IN_A_FIGURE, found, claims)


def figure_5(get: Get, after: str = "CIFAR-10") -> Result:
    """The mammals, with 100, 30, 10 and 3% of their training images."""
    runs = {fraction: {method: get(case, method) for method in FEW} for fraction, case in SHARES.items()}
    found = join(*(tabulate(here, here["lwf"], f"{part}/") for part, here in runs.items()))

    def gap(of: Callable, part: str, one: str, other: str) -> Named:
        return f"difference at {part}", of(runs[part][one]) - of(runs[part][other])

    say = lambda text: f"figure 5: {text} (mammals after {after})"
    claims = [
        above(say(f"LwF is above fine-tuning on the old task with {part} of the new images"), IN_A_FIGURE,
              ("lwf", old(here["lwf"])), ("finetune", old(here["finetune"]))) for part, here in runs.items()
    ]  # fmt: skip
    claims += [
        above(say(text), IN_A_FIGURE, gap(of, "3%", *pair), gap(of, "100%", *pair))
        for text, of, pair in (
            ("LwF gains more over fine-tuning on the old task with fewer new images", old, ("lwf", "finetune")),
            ("LwF gains more over feature extraction on the new task with fewer", new, ("lwf", "feature_extraction")),
            ("LwF falls further behind joint training on the old task with fewer", old, ("joint", "lwf")),
        )
    ]
    return Result(IN_A_FIGURE, found, claims)


def table_2(get: Get, after: str = "CIFAR-10") -> Result:
    """Design choices: own layers, the L2 constraint, the response loss, a lowered rate of what is shared."""
    runs = {method: get("similar", method) for method in RUNS["table_2"]["similar"]}
    on = {name: {m: (m, of(a)) for m, a in runs.items()} for name, of in (("old", old), ("new", new), ("all", average))}
    say = lambda text: f"table 2{text} (mammals after {after})"
    claims = [
        not_above(say(f"a: {layers} below the head of a task's own bring no clear advantage on average"),
                  "-0.65 to 0.15 points", on["all"][label], on["all"]["lwf"])
        for label, layers in (("lwf_own_1", "weights of one layer"), ("lwf_own_2", "weights of two layers"))
    ] + [
        above(say("b: LwF is above the L2 constraint on the old task"), "1.0 to 8.5 points",
              on["old"]["lwf"], on["old"]["l2_constraint"]),
        above(say("b: LwF is above the L2 constraint on the new task"), "0.4 to 3.3 points",
              on["new"]["lwf"], on["new"]["l2_constraint"]),
        above(say("b: the L2 constraint is above fine-tuning on the old task"), "0.1 to 0.9 points",
              on["old"]["l2_constraint"], on["old"]["finetune"]),
        above(say("b: feature extraction is above the L2 constraint on the old task"), "1.3 to 13.2 points",
              on["old"]["feature_extraction"], on["old"]["l2_constraint"]),
        above(say("b: the L2 constraint is above feature extraction on the new task"), "0.1 to 16.1 points",
              on["new"]["l2_constraint"], on["new"]["feature_extraction"]),
    ] + [
        above(say("b: network expansion is below LwF on the new task"), "0.0 to 6.9 points",
              on["new"]["lwf"], on["new"]["network_expansion"]),
        above(say("b: network expansion is above LwF on the old task"), "-0.2 to 4.7 points",
              on["old"]["network_expansion"], on["old"]["lwf"]),
        above(say("b: network expansion is above feature extraction on the new task"), "0.0 to 12.5 points",
              on["new"]["network_expansion"], on["new"]["feature_extraction"]),
        not_above(say("b: LwF with network expansion is worse than LwF, or similar"), "-0.4 to 0.6 points on average",
                  on["all"]["network_expansion_lwf"], on["all"]["lwf"]),
    ] + [
        level(say(f"c: the response loss {label} is neither better nor worse on average"), published,
              on["all"][f"lwf_{label}"], on["all"]["lwf"])
        for label, published in (("l1", "0.0 points"), ("cross_entropy", "0.0 points"))
    ] + [
        above(say("c: the response loss l2 is below distillation on the old task"), "1.1 points",
              on["old"]["lwf"], on["old"]["lwf_l2"]),
        above(say("d: with a tenth of the shared rate fine-tuning is still below LwF on the old task"),
              "0.6 and 1.8 points", on["old"]["lwf"], on["old"]["finetune_tenth"]),
        above(say("d: a tenth of the shared rate lowers fine-tuning's accuracy on the new task"), "0.1 and 0.5 points",
              on["new"]["finetune"], on["new"]["finetune_tenth"]),
    ]  # fmt: skip
    return Result(TABLE_2, tabulate(runs, runs["lwf"]), claims)
