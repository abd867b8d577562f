"""Steps of eight methods beside plain PyTorch on the same machine.

    pip install '.[benchmark]'
    python -m experiments.benchmark

First both take two steps from the same numbers, and every loss and parameter must be the same up to rounding; then an
epoch of each is timed in turn, images in memory. rows: cljax and reference in seconds a step, the median of the ratios;
beside it, with `--compile`, that to `torch.compile`, which cannot have LwM. Some minutes on two idle cores; on a busy
machine PyTorch's threads wait for each other and the ratios say nothing. Convolutions use all threads, as in cljax's
command. On a GPU `--device cuda` puts PyTorch there too; losses are then compared in full float32, and both are timed
in TF32. Writes `experiments/results/steps_benchmark_cpu.json` (or `_gpu`).
"""

from __future__ import annotations

import dataclasses
import statistics

import jax
import torch
import tyro

from experiments.benchmark.cases import CASES, Theirs, arrays, as_torch, write_rows
from experiments.benchmark.ours import NETWORKS, Ours, Size, apart

ROUNDING = 2e-4
"""Of float32 sums in another order, after two steps."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes, timed epochs, which methods, and whether `torch.compile` is tried too."""

    size: Size = dataclasses.field(default_factory=Size)
    repeats: int = 9
    only: tuple[str, ...] = tuple(CASES)
    compile: bool = False
    device: str = "cpu"
    """PyTorch's, such as cuda."""
    threads: int | None = None
    out: str = "experiments"


def row_of(name: str, config: Config) -> dict[str, float | str | None]:
    """A case's row.

    Raises:
      ValueError: the two do not compute the same.
    """
    case = CASES[name]
    ours = Ours(case.make(NETWORKS[case.network](config.size)), config.size)
    theirs = Theirs(ours, case, device=config.device)
    if (difference := after_two_steps(ours, theirs)) > ROUNDING:
        raise ValueError(f"{name}: after two steps cljax and PyTorch are {difference:.1e} apart, more than rounding.")
    compiled = config.compile and case.compiles
    others = [theirs] + ([Theirs(ours, case, compiled=True, device=config.device)] if compiled else [])
    for one in (ours, *others):
        one.time()  # compiles
    times = [[one.time() for one in (ours, *others)] for _ in range(config.repeats)]
    medians = [statistics.median(column) for column in zip(*times, strict=True)]
    ratios = [statistics.median(mine / row[place] for mine, *row in times) for place in range(len(others))]
    shown = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    print(f"{name:16s} {1e3 * medians[0]:8.2f} ms, {1e3 * medians[1]:8.2f} ms: ratio {shown} (apart {difference:.0e})")
    row = {"case": name, "cljax": medians[0], "reference": medians[1], "ratio": ratios[0], "apart": difference}
    return {**row, "ratio_to_compiled": ratios[1] if compiled else None}


def after_two_steps(ours: Ours, theirs: Theirs) -> float:
    """How far the two are apart after two steps in full float32; on a GPU both then take TF32, as JAX does there."""
    set_precise(True)
    with jax.default_matmul_precision("highest"):
        losses, params = ours.steps(2)
    difference = apart((losses, arrays(as_torch(params, ours.method.network))), theirs.steps(2))
    set_precise(False)
    return difference


def set_precise(full: bool) -> None:
    """Has PyTorch multiply in full float32 on a GPU, or in TF32."""
    torch.set_float32_matmul_precision("highest" if full else "high")
    torch.backends.cudnn.allow_tf32 = not full


def main(config: Config) -> None:
    """Times every case and writes the rows."""
    write_rows(config, row_of, "steps_benchmark", "experiments.benchmark")


if __name__ == "__main__":
    main(tyro.cli(Config))
