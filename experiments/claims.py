"""What experiments write: numbers in percent, and what papers claim beside what was found.

A difference is paired by seed and counts where its 95% interval leaves out 0.
"""

from __future__ import annotations

import collections
import json
import pathlib
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import ArrayLike

from cljax import metrics
from cljax.files import write_json, write_text

REPRODUCED, NOT_REPRODUCED, NOT_TESTED = "reproduced", "not reproduced", "not tested"
NOT_AT_SCALE = "not tested at scale"
"""Of what failed on less than the paper has: it may hold there."""
VERDICTS = (REPRODUCED, NOT_REPRODUCED, NOT_AT_SCALE, NOT_TESTED)
Claim = dict[str, str]
"""source, claim, published, found, verdict."""
Named = tuple[str, ArrayLike]
"""What it is called, and a number a seed."""


def claim(source: str, what: str, published: str, found: str, verdict: str) -> Claim:
    """A claim beside what was found."""
    return {"source": source, "claim": what, "published": published, "found": found, "verdict": verdict}


def compare(
    mine: Named, other: Named, *, at_least: float = 0.0, scale: float = 100, unit: str = "points", digits: int = 1
) -> tuple[str, str]:
    """Whether the one is above the other, by `at_least`, with the numbers that decide.

    Args:
      mine, other: of the same seeds in the same order.
      at_least: how far above; negative: how far below is still as claimed.
      scale: of all numbers in the text.
      unit: of a difference, in the text.
      digits: after the points of numbers in the text.

    Returns:
      What was found, and the verdict.

    Example:
      >>> compare(('lwf', [0.9, 0.8, 0.7]), ('finetune', [0.7, 0.6, 0.4]))
      ('lwf 80.0, finetune 56.7: +23.3 ±14.3 points', 'reproduced')
    """
    ours, theirs = (np.asarray(values, np.float64) for _, values in (mine, other))
    found = metrics.paired_difference(ours, theirs)
    mean, half = float(found.mean), float(found.half_width)
    verdict = REPRODUCED if mean - half > at_least else NOT_REPRODUCED
    told = f"from {scale * at_least:+.{digits}f}" if at_least else "beyond the interval"
    apart = "" if abs(mean - at_least) > half else f", not apart {told}"
    means = f"{mine[0]} {scale * ours.mean():.{digits}f}, {other[0]} {scale * theirs.mean():.{digits}f}"
    return f"{means}: {scale * mean:+.{digits}f} ±{scale * half:.{digits}f} {unit}{apart}", verdict


def at_scale(found: str, verdict: str, full: bool) -> tuple[str, str]:
    """The same, or "not tested at scale" in place of "not reproduced" where the runs are smaller than the paper's.

    Example:
      >>> at_scale('-1.0 ±0.3 points', NOT_REPRODUCED, full=False)
      ('-1.0 ±0.3 points', 'not tested at scale')
    """
    return found, NOT_AT_SCALE if verdict == NOT_REPRODUCED and not full else verdict


def in_percent(found: Mapping[str, Mapping[str, ArrayLike]]) -> dict[str, dict[str, float]]:
    """Means over seeds and half-widths of their 95% intervals, in percent with two decimals.

    Args:
      found: `{metric: {method: a fraction a seed}}`.

    Returns:
      `{'metric_mean': {method: number}, 'metric_ci95': {method: number}}`; NaN for the interval of a single seed.

    Example:
      >>> in_percent({'accuracy': {'lwf': [0.5, 0.6]}})
      {'accuracy_mean': {'lwf': 55.0}, 'accuracy_ci95': {'lwf': 63.53}}
    """
    numbers = {}
    for metric, by_method in found.items():
        intervals = {method: metrics.mean_and_interval(np.asarray(values)) for method, values in by_method.items()}
        for part, field in (("mean", "mean"), ("ci95", "half_width")):
            values = {method: round(100 * float(getattr(one, field)), 2) for method, one in intervals.items()}
            numbers[f"{metric}_{part}"] = values
    return numbers


def merge(out: pathlib.Path, claims: Iterable[Claim]) -> pathlib.Path:
    """Puts claims into `claims.json` in a folder, in place of those of the same words; `claims.md` shows them."""
    path, new = out / "claims.json", {one["claim"]: one for one in claims}
    old = json.loads(path.read_text())["claims"] if path.exists() else []
    everything = [new.pop(one["claim"], one) for one in old] + list(new.values())
    write_json(path, {"claims": everything})
    write_text(path.with_suffix(".md"), as_text(everything))
    return path


def as_text(claims: Iterable[Claim]) -> str:
    """Claims as Markdown: how many there are of each source, and with each verdict; then a table for each paper.

    Example:
      >>> print(as_text([claim('Li and Hoiem 2016, table 1', 'LwF forgets less', '1.0', '+2.0 points', REPRODUCED)]))
      # What the papers claim, and what was found
      <BLANKLINE>
      Percent and points ±95% over seeds, paired by seed; an 'above' fails where the interval includes 0.
      What fails at the size of the paper is "not reproduced"; what fails on less, "not tested at scale",
      also where the opposite is found. 'Not above' and 'level' hold where the two are not told apart.
      <BLANKLINE>
      | of | claims | reproduced |
      |---|---:|---:|
      | Li and Hoiem 2016, table 1 | 1 | 1 |
      <BLANKLINE>
      ## Li and Hoiem 2016
      <BLANKLINE>
      | claim | published | found | |
      |---|---|---|---|
      | LwF forgets less | 1.0 | +2.0 points | reproduced |
      <BLANKLINE>
    """
    papers: dict[str, list[Claim]] = {}
    counts: dict[str, collections.Counter[str]] = {}
    for one in claims:
        papers.setdefault(one["source"].split(",")[0], []).append(one)
        counts.setdefault(one["source"], collections.Counter())[one["verdict"]] += 1
    verdicts = [verdict for verdict in VERDICTS if any(verdict in count for count in counts.values())]
    lines = [
        "# What the papers claim, and what was found",
        "",
        "Percent and points ±95% over seeds, paired by seed; an 'above' fails where the interval includes 0.",
        'What fails at the size of the paper is "not reproduced"; what fails on less, "not tested at scale",',
        "also where the opposite is found. 'Not above' and 'level' hold where the two are not told apart.",
        "",
        f"| of | claims | {' | '.join(verdicts)} |",
        f"|---|---:|{'---:|' * len(verdicts)}",
    ]
    for source in sorted(counts):
        numbers = [counts[source].total(), *(counts[source][verdict] for verdict in verdicts)]
        lines += [f"| {source} | {' | '.join(map(str, numbers))} |"]
    for paper, own in papers.items():
        lines += ["", f"## {paper}", "", "| claim | published | found | |", "|---|---|---|---|"]
        lines += [f"| {' | '.join(one[part] for part in ('claim', 'published', 'found', 'verdict'))} |" for one in own]
    return "\n".join(lines) + "\n"
