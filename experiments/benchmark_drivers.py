"""The host driver beside the scan driver: the same run, its images read from disk as it goes on.

    python -m experiments.benchmark_drivers --data-dir FOLDER

About six minutes on two cores, on an otherwise idle machine. FOLDER has CIFAR-10 prepared by TFDS, whose ArrayRecord
files hold PNG; some of its images are also written to a folder of JPEG files of four times the side, which are reduced
to 32 pixels again as they are read. Fine-tuning a small CNN learns two tasks with either driver in turn; rows: cljax
is seconds a run with the host driver, without compilation, reference with the scan driver. Expected: losses that are
equal to rounding, and a device that waits for images in less than a tenth of the time. Where the device is the
processor itself, decoding takes from training. Writes `experiments/results/drivers_benchmark_cpu.json` (or `_gpu`).
"""

from __future__ import annotations

import dataclasses
import pathlib
import statistics
import tempfile

import numpy as np
import optax
import tyro
from PIL import Image

from cljax import data, methods, networks, streams, training
from cljax.training.driver import drive
from cljax.training.outcome import Outcome
from experiments.saving import write_result

ENLARGED = 4


@dataclasses.dataclass(frozen=True)
class Config:
    """The benchmark: where the data are, the CNN, batch size, epochs a task, images a class as JPEG, and repeats."""

    data_dir: str | None = None
    channels: tuple[int, ...] = (16, 32)
    batch_size: int = 64
    epochs: int = 2
    images: int = 2000
    repeats: int = 3
    out: str = "experiments"


def write_folder(dataset: data.Dataset, folder: pathlib.Path, images: int) -> None:
    """Writes so many images of each class as enlarged JPEG files, a sub-folder a class."""
    for label, name in enumerate(dataset.classes):
        place = folder / name
        place.mkdir()
        for number, row in enumerate(np.flatnonzero(dataset.train_labels == label)[:images]):
            image = Image.fromarray(dataset.train_images[row])
            image.resize([ENLARGED * side for side in image.size]).save(place / f"{number}.jpg", quality=90)


def run(dataset: data.Dataset, config: Config) -> Outcome:
    """Drives fine-tuning over two tasks."""
    stream = streams.split(dataset, tasks=2, epochs=config.epochs, validation=0.0)
    blocks = tuple((features,) for features in config.channels)
    shape, normal = dataset.images.shape[1:], {"mean": stream.mean, "std": stream.std}
    network = networks.cnn(shape, 5, channels=blocks, dense=(512,), **normal)
    settings = training.Settings(batch_size=config.batch_size, learning_rate=0.01)
    optimizer = optax.sgd(1.0, momentum=0.9)
    return drive(methods.finetune(network), optimizer, [(0, stream)], settings)


def compare(case: str, on_device: data.Dataset, on_disk: data.Dataset, config: Config) -> dict:
    """Runs both drivers in turn: a row."""
    pairs = []
    for _ in range(config.repeats):
        pairs.append((run(on_disk, config), run(on_device, config)))
        (one, two), waiting = pairs[-1], pairs[-1][0].share_waiting
        print(f"{case}: {one.seconds[0]:.1f} s, {two.seconds[0]:.1f} s, waiting {100 * waiting[0]:.1f}%", flush=True)
    one, two = pairs[-1]
    trained = np.isfinite(two.epochs.loss)
    apart = np.abs(one.epochs.loss[trained] / two.epochs.loss[trained] - 1)
    return {
        "case": case,
        "cljax": statistics.median(float(one.seconds[0]) for one, _ in pairs),
        "reference": statistics.median(float(two.seconds[0]) for _, two in pairs),
        "ratio": statistics.median(float(one.seconds[0] / two.seconds[0]) for one, two in pairs),
        "share_waiting": statistics.median(float(one.share_waiting[0]) for one, _ in pairs),
        "largest_difference_of_losses": float(apart.max()),
        "accuracy": [one.evaluation.accuracy[0, -1].tolist(), two.evaluation.accuracy[0, -1].tolist()],
    }


def main(config: Config) -> None:
    """Times every case and writes the rows."""
    loaded = data.load("cifar10", config.data_dir)
    rows = [compare("CIFAR-10, ArrayRecord of PNG", loaded, data.open("cifar10", config.data_dir), config)]
    with tempfile.TemporaryDirectory() as folder:
        write_folder(loaded, pathlib.Path(folder), config.images)
        size = loaded.images.shape[1:3]
        opened = data.open(folder, image_size=size)
        read = opened._replace(images=opened.images.take(range(len(opened.images))))
        rows.append(compare(f"{ENLARGED * size[0]}-pixel JPEG, a folder", read, opened, config))
    command = "python -m experiments.benchmark_drivers --data-dir FOLDER"
    write_result(config, "drivers_benchmark", {"rows": rows}, command)


if __name__ == "__main__":
    main(tyro.cli(Config))
