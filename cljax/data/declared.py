"""What a prepared data set says of itself in its JSON files, checked before anything else reads them."""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from cljax.data.arrays import CLASSES
from cljax.data.pictures import PIXELS
from cljax.files import read_json, shown
from cljax.numbers import INT32, whole

_OWN = re.compile(r"tensorflow_datasets\.core\.features\.[a-z_]+\.[A-Z]\w+")


class Declared(NamedTuple):
    """A prepared data set, by its `dataset_info.json` and `features.json`.

    Attributes:
      file_format: such as `'array_record'`.
      splits: the examples of each file of each split.
      names: those of the files; none of a split whose files have names of another pattern.
      kinds: the Python classes of its features, as it names them.
      shape: of an image, None where a size is not declared; None where it is not image classification.
      classes: their number; 0 where it is not image classification.
    """

    file_format: str
    splits: dict[str, tuple[int, ...]]
    names: dict[str, tuple[str, ...]]
    kinds: frozenset[str]
    shape: tuple[int | None, ...] | None
    classes: int


class DamagedError(ValueError):
    """Prepared files are damaged, or cannot be read where they are; the message names them and the cure."""


def damaged(what: object, reason: object) -> DamagedError:
    """The error of a damaged file or folder: what it is, and why."""
    words = " ".join(str(reason).replace(f"{what} is ", "it is ").split())[:200].rstrip(".")
    return DamagedError(
        f"{what} is damaged ({words}). Remove the folder of its version, and prepare the data set again."
    )


def read(folder: pathlib.Path) -> Declared:
    """Reads what a prepared version says of itself.

    Args:
      folder: such as `tensorflow_datasets/mnist/3.0.1`.

    Raises:
      DamagedError: a file that is missing, no regular file, or says what cannot be.
    """
    made: list[Any] = []
    for name, understand in (("dataset_info.json", _info), ("features.json", _features)):
        try:
            made += understand(read_json(folder / name, 64 << 20))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = getattr(error, "strerror", None) or error
            reason = f"it lacks {error}" if isinstance(error, KeyError) else reason
            raise damaged(shown(folder / name), reason) from error
    return Declared(*made)


def check_files(folder: pathlib.Path, declared: Declared, splits: Sequence[str] | None = None) -> None:
    """Checks that the files of the splits (or of those named) are there, and have as many examples as they should.

    Raises:
      DamagedError: naming the first that has not.
    """
    from array_record.python.array_record_module import ArrayRecordReader

    check_path(folder)
    for path in sorted(folder.glob("*.labels.txt")):
        if not path.is_file():
            raise damaged(shown(path), "it is not a regular file")
    for split in declared.names if splits is None else sorted({*splits} & {*declared.names}):
        names = declared.names[split]
        for name, wanted in zip(names, declared.splits[split], strict=False):
            path = folder / name
            if not os.path.isfile(path):
                raise damaged(shown(path), "it is not a regular file" if os.path.lexists(path) else "it is missing")
            if declared.file_format != "array_record":
                continue
            try:
                reader = ArrayRecordReader(str(path))
                found = reader.num_records()
                reader.close()
            except (RuntimeError, ValueError, OSError) as error:
                raise damaged(shown(path), error) from error
            if found != wanted:
                raise damaged(shown(path), f"it has {found} examples, not {wanted}")


def check_path(folder: pathlib.Path) -> None:
    """Checks that a folder can be named to TFDS and ArrayRecord, which take text.

    Raises:
      DamagedError: its path is not UTF-8.
    """
    if os.fsencode(folder).decode("utf-8", "replace") != str(folder):
        raise DamagedError(
            f"{shown(folder)} is not UTF-8, but the path of prepared data sets must be. Rename the folder, or choose "
            f"another with data_dir (--data-dir) or $TFDS_DATA_DIR."
        )


def foreign(declared: Declared) -> str | None:
    """The first class of a feature that is not of TFDS's own modules, which TFDS would import."""
    return next((kind for kind in sorted(declared.kinds) if not _OWN.fullmatch(kind)), None)


def _info(info: Any) -> tuple[str, dict[str, tuple[int, ...]], dict[str, tuple[str, ...]]]:
    """Format, splits and the names of their files."""
    name, ending, splits, names = str(info["name"]), str(info.get("fileFormat", "tfrecord")), {}, {}
    for split in info.get("splits", []):
        title = str(split["name"])
        lengths = tuple(_number("an example count", length) for length in split.get("shardLengths", []))
        pattern = split.get("filepathTemplate", "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}")
        files = (f"{name}-{title}.{ending}-{number:05d}-of-{len(lengths):05d}" for number in range(len(lengths)))
        splits[title], usual = lengths, pattern == "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        names[title] = tuple(files) if usual else ()
        if "/" in name + title:
            raise ValueError(f"{name + title!r} is no name")
    return ending, splits, names


def _features(features: Any) -> tuple[frozenset[str], tuple[int | None, ...] | None, int]:
    """Classes of features; shape of an image and number of classes."""
    kinds, entries = frozenset(_kinds(features)), features.get("featuresDict", {}).get("features", {})
    if "image" not in entries.get("image", {}) or "classLabel" not in entries.get("label", {}):
        return kinds, None, 0
    sides = entries["image"]["image"]["shape"]["dimensions"]
    shape = tuple(None if int(side) < 0 else _number("a side", side, least=1, most=PIXELS) for side in sides)
    classes = entries["label"]["classLabel"].get("numClasses", 0)
    return kinds, shape, _number("the number of classes", classes, least=1, most=CLASSES)


def _kinds(value: Any) -> Iterator[str]:
    """The Python classes named anywhere in `features.json`, of the present form or of an older one."""
    if isinstance(value, list):
        for one in value:
            yield from _kinds(one)
    elif isinstance(value, dict):
        for name, one in value.items():
            if name in ("type", "pythonClassName", "python_class_name") and isinstance(one, str):
                yield one
            else:
                yield from _kinds(one)


def _number(name: str, given: Any, *, least: int = 0, most: int = INT32) -> int:
    """A whole number; protobuf writes those of 64 bits as text."""
    return whole(name, int(given) if isinstance(given, str) and given.isdecimal() else given, least=least, most=most)
