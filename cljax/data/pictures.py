"""One door for image files: opened by their content, in few formats, bounded, turned, and decoded to eight bits."""

from __future__ import annotations

import contextlib
import io
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import PIL

from cljax.files import open_regular, shown

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
"""The formats that are read, told by a file's content. Pillow knows others, of which EPS runs a program."""
NAMES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".gif", ".bmp", ".dib", ".webp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
"""How the names of files of these formats end, in any case."""
PIXELS = 89_478_485
"""Most pixels of an image: those above which Pillow warns."""

DECODER = f"2, Pillow {PIL.__version__}"
"""Which decoded pixels these are: what is kept of others is made again."""
_WAYS = ("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90")
_TURNS = dict(enumerate(_WAYS, 2))
"""What the orientation tag's values 2 to 8 ask for, as `PIL.Image.Transpose` names it."""
_SIDEWAYS = (5, 6, 7, 8)
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


class PictureError(ValueError):
    """An image that cannot be read, or is not to be; the message names it and the cure."""


def head(path: pathlib.Path) -> tuple[tuple[int, int], bool]:
    """Height and width as shown, and whether the image is grey, from the file's head.

    Raises:
      PictureError: as in `decode`.
    """
    with _opened(path, shown(path)) as picture:
        if picture.format == "TIFF":  # of some versions of Pillow its size is turned already
            width, height = picture.tag_v2[256], picture.tag_v2[257]
            turned = picture.tag_v2.get(0x0112) in _SIDEWAYS
        else:
            (width, height), turned = picture.size, picture.getexif().get(0x0112) in _SIDEWAYS
        return (width, height) if turned else (height, width), picture.mode in ("1", "L", "LA")


def decode(
    source: pathlib.Path | bytes, what: str, channels: int, size: tuple[int, int] | None = None, *, turn: bool = True
) -> np.ndarray:
    """Decodes an image file; of an animation, or of several pages, the first.

    Colours are converted to grey by their luminance (ITU-R 601-2), grey is repeated, a palette and CMYK are converted
    by their colours, transparency is dropped where there is no channel for it.

    Args:
      source: a file, or the content of one.
      what: how errors call it.
      channels: of the result: 1 grey, 3 colour, 2 and 4 with transparency.
      size: height and width that the whole image is resized to, bilinearly; None: as it is.
      turn: whether it is turned as its orientation tag says.

    Returns:
      `[H, W, channels]` uint8.

    Raises:
      PictureError: no regular file, none of `FORMATS`, broken, more than `PIXELS` pixels, or pixels of more than eight
        bits.

    Example:
      >>> decode(b"P5 2 1 255 " + bytes([7, 9]), "a file", 3).tolist()
      [[[7, 7, 7], [9, 9, 9]]]
    """
    from PIL import Image

    with _opened(source, what) as picture:
        picture.load()
        tag = picture.getexif().get(0x0112) if turn and picture.format != "TIFF" else None  # Pillow turns TIFF itself
        made = picture.transpose(Image.Transpose[_TURNS[tag]]) if tag in _TURNS else picture
        if channels in (1, 3):
            made.info.pop("transparency", None)
        made = made.convert(_MODES[channels])
        if size is not None and made.size != size[::-1]:
            made = made.resize(size[::-1], Image.Resampling.BILINEAR)
        array = np.asarray(made)
        return array[..., None] if channels == 1 else array


@contextlib.contextmanager
def _opened(source: pathlib.Path | bytes, what: str) -> Iterator[Any]:
    """A Pillow image of eight bits or fewer; whatever is wrong with the file names it."""
    from PIL import Image, UnidentifiedImageError

    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(io.BytesIO(source) if isinstance(source, bytes) else open_regular(source))
            picture = stack.enter_context(Image.open(file, formats=FORMATS))
            _check(picture, what)
            yield picture
        except PictureError:
            raise
        except UnidentifiedImageError as error:
            raise PictureError(
                f"{what} cannot be read as an image of the formats {', '.join(FORMATS)}. Convert, repair or remove it."
            ) from error
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise PictureError(f"{what} has more than {PIXELS:,} pixels. Scale it down, or remove it.") from error
        except MemoryError as error:
            raise PictureError(f"There is not enough memory to decode {what}. Scale it down, or free some.") from error
        except (
            Exception
        ) as error:  # Pillow's decoders raise what a broken file makes of them: struct.error, KeyError...
            if isinstance(error, OSError) and error.errno is not None:
                raise PictureError(f"{what} cannot be read ({error.strerror}). Repair or remove it.") from error
            if str(error).startswith(what):  # `open_regular` has named it
                raise PictureError(f"{error} Remove it.") from error
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise PictureError(f"{what} is a broken image ({reason}). Repair or remove it.") from error


def _check(picture: Any, what: str) -> None:
    """Refuses what is too large, and pixels of more than eight bits, which Pillow cuts to eight in silence."""
    width, height = picture.size
    if width * height > PIXELS:
        raise PictureError(f"{what} has more than {PIXELS:,} pixels ({width}x{height}). Scale it down, or remove it.")
    if picture.format == "TIFF" and 2 in picture.tag_v2.get(339, ()):  # Pillow takes them for numbers from 0 on
        raise PictureError(f"{what} has pixels that are negative numbers. Convert it to numbers from 0 to 255.")
    if picture.mode[0] in "IF" or _bits(picture) > 8:
        raise PictureError(f"{what} has pixels of more than eight bits. Convert it to eight.")


def _bits(picture: Any) -> int:
    """Bits of a channel in the file, 16 for more than eight."""
    ways = [tile[3] for tile in picture.tile]  # what the decoder is told
    if picture.format == "PNG":
        return 16 if any("16" in str(way) for way in ways) else 8
    if picture.format == "TIFF":
        return max(picture.tag_v2.get(258, (1,)))
    if picture.format == "PPM":
        return 16 if any(isinstance(way, tuple) and way[-1] > 255 for way in ways) else 8
    return 8
