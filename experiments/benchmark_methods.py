"""A train step of each method beside one of fine-tuning, the same network and data.

    python -m experiments.benchmark_methods

About four minutes on two cores, on an otherwise idle machine. One epoch of a visit to the second of two tasks is timed,
in turn for fine-tuning and for the method; rows: cljax is seconds a step of the method, reference of fine-tuning.
Expected: masks (TFM, CLNP, freezing) at most 1.1, LwF at most 1.4, LwM with a pooled head at most 1.45, teachers
included. DF-CNN is compared to single-task learning, which trains as many leaves of a task's own. Writes
`experiments/results/methods_benchmark_cpu.json` (or `_gpu`).
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import tyro

from cljax import methods, networks
from cljax.cli.process import use_threads
from experiments.benchmark_tasks import in_turn, stepper
from experiments.saving import command_line, write_result


@dataclasses.dataclass(frozen=True)
class Config:
    """The benchmark: width of the MLP, features of the convolutions, batch size, steps an epoch, timed epochs."""

    width: int = 1000
    channels: tuple[int, ...] = (32, 64)
    batch_size: int = 128
    steps: int = 8
    repeats: int = 11
    only: tuple[Literal["tfm", "freezing", "clnp", "lwf", "lwf_mc", "lwm", "df_cnn"], ...] = ()
    out: str = "experiments"


def cases(config: Config) -> list[tuple[str, object, object]]:
    """Name, method and the method it is compared to."""
    mlp = networks.mlp((28, 28, 1), 10, hidden=(config.width, config.width))
    blocks = tuple((features,) for features in config.channels)
    cnn = networks.cnn((32, 32, 3), 10, channels=blocks, dense=(64,))
    pooled = networks.cnn((32, 32, 3), 10, channels=blocks, dense=(), pooled=True)
    found = []
    own_mlp = networks.mlp((28, 28, 1), 10, hidden=(config.width, config.width), normalization="feature")
    own_cnn = networks.cnn((32, 32, 3), 10, channels=blocks, dense=(64,), normalization="feature")
    for where, network, own in (("mlp", mlp, own_mlp), ("cnn", cnn, own_cnn)):
        found.append((f"tfm {where}", methods.tfm(own), methods.finetune(network)))
        for name in ("freezing", "clnp", "lwf", "lwf_mc"):
            found.append((f"{name} {where}", getattr(methods, name)(network), methods.finetune(network)))
    found.append(("lwm pooled cnn", methods.lwm(pooled), methods.finetune(pooled)))
    found.append(("lwm cnn", methods.lwm(cnn), methods.finetune(cnn)))
    found.append(("df_cnn cnn, over single_task", methods.df_cnn(cnn), methods.single_task(cnn)))
    return [case for case in found if not config.only or case[0].split()[0] in config.only]


def main(config: Config) -> None:
    """Times every case and writes the rows."""
    use_threads()
    rows = []
    for name, method, reference in cases(config):
        ours, theirs = (
            stepper(one, 2, batch_size=config.batch_size, steps=config.steps) for one in (method, reference)
        )
        rows.append(in_turn(name, ours, theirs, repeats=config.repeats))
    write_result(config, "methods_benchmark", {"rows": rows}, command_line("experiments.benchmark_methods"))


if __name__ == "__main__":
    main(tyro.cli(Config))
