"""A stream larger than the memory that a run takes: learned, killed in mid-epoch, and taken up.

    python -m experiments.long_stream

Some fifteen minutes on two idle cores, and two gigabytes of disk while it runs. Images of noise in two shades, as
bright as their class, are written as TFDS writes them (ArrayRecord, PNG); without TensorFlow it writes no more than a
gigabyte, which is these; as an array they would take 3 GB. Then `cljax compare` learns two tasks of them, one epoch
each: once whole, and once killed halfway and taken up. Expected: less than half the memory that the images would take,
an end equal in every bit of the learner and of the record but for its times, and a device that waits for images in less
than a tenth of the time. Writes `experiments/results/long_stream.json`.
"""

from __future__ import annotations

import dataclasses
import pathlib
import resource
import signal
import tempfile
import time
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
import tyro
from PIL import Image

from cljax import report
from cljax.data.builders import silence
from experiments import kill_and_resume as runs
from experiments.saving import command_line, write_result

CLASSES = 4


@dataclasses.dataclass(frozen=True)
class Config:
    """How many images of which side, and the command's options."""

    images: int = 250_000
    side: int = 64
    options: tuple[str, ...] = (
        *("--methods", "finetune", "--data", "long", "--tasks", "2", "--epochs", "1", "--seeds", "1"),
        *("--network", "cnn", "--channels", "8", "16", "--hidden", "32", "--batch-size", "128"),
        *("--checkpoint-seconds", "2", "--keep-learners", "--quiet"),
    )
    out: str = "experiments"


class Long(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Noise about a brightness that is the class's."""

    name = "long"
    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, config: Config, **options):
        self.images, self.side = config.images, config.side
        super().__init__(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Image(shape=(self.side, self.side, 3))
        features = tfds.features.FeaturesDict({"image": image, "label": tfds.features.ClassLabel(num_classes=CLASSES)})
        return tfds.core.DatasetInfo(builder=self, features=features, supervised_keys=("image", "label"))

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        return {
            "train": self._generate_examples(self.images, 0),
            "test": self._generate_examples(self.images // 100, 1),
        }

    def _generate_examples(self, count: int, seed: int) -> Iterator:
        generator = np.random.default_rng(seed)
        for row in range(count):
            noise = generator.integers(0, 2, (self.side, self.side, 3), np.uint8) + np.uint8(row % CLASSES)
            yield row, {"image": Image.fromarray(32 * noise), "label": row % CLASSES}


def main(config: Config) -> None:
    """Writes the data, runs three processes, and writes what was found."""
    with tempfile.TemporaryDirectory() as place:
        with silence():
            download = tfds.download.DownloadConfig(num_shards=8)
            Long(config, data_dir=place, file_format="array_record").download_and_prepare(download_config=download)
        asked = runs.Config(options=(*config.options, "--data-dir", place))
        folders = [pathlib.Path(place) / name for name in ("whole", "killed")]
        process, begun = runs.start(asked, "host", folders[0]), time.monotonic()
        runs.finish(process)
        span = time.monotonic() - begun
        process = runs.start(asked, "host", folders[1])
        time.sleep(span / 2)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        said = runs.finish(runs.start(asked, "host", folders[1])).strip().splitlines()
        (one, learners), (other, taken_up) = map(runs.ends, folders)
        run = report.read(folders[0])["runs"][0]
    result = {
        "experiment": "long_stream",
        "bytes_as_an_array": config.images * config.side**2 * 3,
        "bytes_in_memory_at_most": 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss,
        "seconds": span,
        "killed_after": span / 2,
        "share_waiting": run["share_waiting"],
        "accuracy": run["accuracy"],
        "equal_ends": one == other and learners == taken_up,
        "said": said,
    }
    for name, value in result.items():
        print(f"{name}: {value}")
    write_result(config, "long_stream", result, command_line("experiments.long_stream"))


if __name__ == "__main__":
    main(tyro.cli(Config))
