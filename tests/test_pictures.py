"""The one door for image files: formats by content, bits, colours, orientation, and whatever is broken, by name."""

import io
import os
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from cljax.data.pictures import PIXELS, PictureError, decode, head

COLOURS = np.array([[[200, 10, 30], [0, 250, 90]], [[5, 5, 5], [255, 255, 255]], [[90, 180, 20], [1, 2, 3]]], np.uint8)


def packed(picture, kind, **options):
    """The bytes of an image file."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width, height, depth, colour, rows):
    """A PNG file of raw rows, of a depth that Pillow does not write."""
    chunk = lambda kind, content: (
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    )
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def both(tmp_path, content, words, name="x.png"):
    """What is wrong is said by the head or by decoding, naming the file, in one paragraph."""
    path = tmp_path / name
    path.write_bytes(content)
    said = message(lambda: head(path)) or message(lambda: decode(path, str(path), 3))
    assert re.search(words, said)
    assert str(path) in said
    assert "\n" not in said


def message(read):
    """What the error of an image says; '' where it is read."""
    try:
        read()
    except PictureError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM"])
def test_each_format_gives_its_pixels_whatever_its_name(kind, tmp_path):
    options = {"lossless": True} if kind == "WEBP" else {}
    (tmp_path / "x.jpg").write_bytes(packed(Image.fromarray(COLOURS), kind, **options))
    assert head(tmp_path / "x.jpg") == ((3, 2), False)
    np.testing.assert_array_equal(decode(tmp_path / "x.jpg", "x", 3), COLOURS)


def test_colours_are_converted_by_what_they_are():
    luminance = np.asarray(Image.fromarray(COLOURS).convert("L"))
    palette = Image.fromarray(COLOURS).quantize(8)
    transparent = palette.copy()
    transparent.info["transparency"] = bytes([0, 255])  # Pillow warns as it converts such a one
    for content in (packed(palette, "PNG"), packed(transparent, "PNG"), packed(palette, "GIF")):
        np.testing.assert_array_equal(decode(content, "x", 3), COLOURS)
        np.testing.assert_array_equal(decode(content, "x", 1)[..., 0], luminance)
    grey, alpha = Image.fromarray(luminance), Image.fromarray(255 - luminance)
    both = packed(Image.merge("LA", [grey, alpha]), "PNG")
    np.testing.assert_array_equal(decode(both, "x", 1)[..., 0], luminance)
    np.testing.assert_array_equal(decode(both, "x", 3), np.repeat(luminance[..., None], 3, -1))
    np.testing.assert_array_equal(decode(both, "x", 2)[..., 1], 255 - luminance)
    four = packed(Image.merge("RGBA", [*Image.fromarray(COLOURS).split(), alpha]), "PNG")
    np.testing.assert_array_equal(decode(four, "x", 3), COLOURS)
    np.testing.assert_array_equal(decode(four, "x", 4)[..., 3], 255 - luminance)
    black = packed(Image.fromarray(COLOURS[..., 0] > 99), "PNG")
    np.testing.assert_array_equal(decode(black, "x", 1)[..., 0], 255 * (COLOURS[..., 0] > 99))
    ink = packed(Image.fromarray(np.full((2, 2, 4), (255, 0, 0, 0), np.uint8), "CMYK"), "TIFF")
    assert decode(ink, "x", 3)[0, 0].tolist() == [0, 255, 255]


def deep():
    """Files of more than eight bits, of which Pillow gives some in eight without a word."""
    for colour, samples in ((0, 1), (2, 3), (4, 2), (6, 4)):
        yield f"png-{colour}", png(4, 2, 16, colour, [bytes(range(8 * samples))] * 2)
    for kind, maximum, samples in ((b"P5", 65535, 1), (b"P5", 4095, 1), (b"P6", 65535, 3), (b"P6", 256, 3)):
        yield f"ppm-{maximum}-{samples}", kind + b" 4 2 %d\n" % maximum + bytes(4 * 2 * samples * 2)
    yield "ppm-plain", b"P3 1 1 1023 1023 0 512\n"
    yield "ppm-float", b"Pf 1 1 -1.0\n" + bytes(4)
    yield "tiff-grey", packed(Image.fromarray(np.full((2, 2), 4000, np.uint16)), "TIFF")
    yield "tiff-float", packed(Image.fromarray(np.full((2, 2), 0.5, np.float32)), "TIFF")
    data = struct.pack("<6H", *[60000] * 6)
    entries = [(256, 3, 1, 2), (257, 3, 1, 1), (258, 3, 3, 134), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 140)]
    entries += [(277, 3, 1, 3), (278, 3, 1, 1), (279, 4, 1, 12), (284, 3, 1, 1)]
    written = b"II*\0" + struct.pack("<IH", 8, len(entries))
    written += b"".join(struct.pack("<HHII", *entry) for entry in entries) + struct.pack("<I", 0)
    yield "tiff-colour", written.ljust(134, b"\0") + struct.pack("<3H", 16, 16, 16) + data


@pytest.mark.parametrize(("name", "content"), [pytest.param(*pair, id=pair[0]) for pair in deep()])
def test_more_than_eight_bits_are_refused(name, content, tmp_path):
    both(tmp_path, content, "has pixels of more than eight bits. Convert it to eight")


@pytest.mark.parametrize("content", [b"P5 2 1 15 \x0f\0", png(2, 1, 4, 0, [b"\xf0"]), png(2, 1, 1, 0, [b"\x80"])])
def test_fewer_than_eight_bits_are_scaled(content):
    assert decode(content, "x", 1).ravel().tolist() == [255, 0]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("tag", range(10))
def test_orientation_turns_and_the_head_agrees(kind, tag, tmp_path):
    steps = np.kron(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40, np.ones((8, 8), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = tag
    options = {"quality": 100} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    path = tmp_path / "x.png"
    path.write_bytes(packed(Image.fromarray(steps), kind, exif=exif, **options))
    way = {2: np.fliplr, 3: lambda a: a[::-1, ::-1], 4: np.flipud, 5: np.transpose, 6: lambda a: np.rot90(a, -1)}
    way |= {7: lambda a: np.rot90(a, 2).T, 8: np.rot90}
    wanted = way.get(tag, lambda a: a)(steps)
    np.testing.assert_allclose(decode(path, "x", 1)[..., 0], wanted, atol=2)
    assert head(path)[0] == wanted.shape
    if kind != "TIFF":
        np.testing.assert_allclose(decode(path.read_bytes(), "x", 1, turn=False)[..., 0], steps, atol=2)


def test_a_photograph_is_turned_without_writing_its_tags_again():
    plain = packed(Image.fromarray(COLOURS), "JPEG")
    entries = [(0x0112, 3, 1, 6), (0x0103, 4, 1, 70000)]  # the second in a type that Pillow cannot write
    tags = b"II*\0" + struct.pack("<IH", 8, len(entries))
    tags += b"".join(struct.pack("<HHII", *entry) for entry in entries) + struct.pack("<I", 0)
    body = b"Exif\0\0" + tags
    content = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + plain[2:]
    np.testing.assert_array_equal(decode(content, "x", 3), np.rot90(decode(plain, "x", 3), -1))
    with pytest.raises(struct.error):
        ImageOps.exif_transpose(Image.open(io.BytesIO(content)))


def test_the_first_picture_of_several_counts():
    pictures = [Image.fromarray(np.full((2, 2, 3), value, np.uint8)) for value in (10, 200)]
    for kind in ("GIF", "TIFF", "PNG", "WEBP"):
        options = {"lossless": True} if kind == "WEBP" else {}
        content = packed(pictures[0], kind, save_all=True, append_images=pictures[1:], **options)
        assert np.unique(decode(content, "x", 3)).tolist() == [10]


def test_other_formats_are_not_opened_whatever_their_name(tmp_path, monkeypatch):
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    both(tmp_path, eps, "cannot be read as an image of the formats PNG, JPEG, GIF, BMP, WEBP, TIFF, PPM. Convert")
    both(tmp_path, packed(Image.fromarray(COLOURS), "TGA"), "cannot be read as an image of the formats")
    both(tmp_path, packed(Image.fromarray(COLOURS), "ICO"), "cannot be read as an image of the formats")
    assert not (tmp_path / "ran").exists()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("width", "height"), [(60000, 60000), (2**31 - 1, 2**31 - 1), (9460, 9460), (PIXELS + 1, 1)])
def test_bombs_are_refused_before_they_are_decoded(width, height, tmp_path):
    both(tmp_path, png(width, height, 8, 0, [b""]), "has more than 89,478,485 pixels")


def test_a_warning_that_is_an_error_names_the_file_too(tmp_path):
    both(tmp_path, png(9460, 9460, 8, 0, [b""]), "has more than 89,478,485 pixels")


def test_files_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "gone.png").symlink_to("nowhere")
    for name, words in {
        "pipe": "pipe.png is not a regular file. Remove it",
        "folder": "folder.png is not a regular file. Remove it",
        "loop": r"loop.png cannot be read \(Too many levels of symbolic links\)",
        "gone": r"gone.png cannot be read \(No such file or directory\)",
    }.items():
        with pytest.raises(PictureError, match=words):
            head(tmp_path / f"{name}.png")
        with pytest.raises(PictureError, match=words):
            decode(tmp_path / f"{name}.png", str(tmp_path / f"{name}.png"), 3)
    (tmp_path / "real").write_bytes(packed(Image.fromarray(COLOURS), "PNG"))
    (tmp_path / "link.png").symlink_to("real")
    np.testing.assert_array_equal(decode(tmp_path / "link.png", "x", 3), COLOURS)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM"])
def test_every_broken_file_is_named(kind, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "words"
    options = {"exif": exif} if kind in ("PNG", "JPEG", "WEBP", "TIFF") else {}
    whole = packed(Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)), kind, **options)
    generator, path = np.random.default_rng(1), tmp_path / "x.png"
    cases = [whole[:size] for size in range(0, len(whole), 1 + len(whole) // 40)]
    for _ in range(80):
        spoiled = bytearray(whole)
        for place in generator.integers(0, min(len(whole), 200), 3):
            spoiled[place] = generator.integers(256)
        cases.append(bytes(spoiled))
    for content in cases:
        path.write_bytes(content)
        for said in (message(lambda: head(path)), message(lambda: decode(path, str(path), 3))):
            assert not said or (str(path) in said and "\n" not in said)


def test_negative_pixels_are_refused():
    tags = {256: 2, 257: 1, 258: 8, 259: 1, 262: 1, 273: 8 + 2 + 12 * 9 + 4, 277: 1, 279: 2, 339: 2}
    entries = b"".join(struct.pack("<HHII", tag, 3, 1, value) for tag, value in tags.items())
    content = b"II*\0" + struct.pack("<IH", 8, 9) + entries + bytes(4) + bytes([1, 255])
    with pytest.raises(PictureError, match="a file has pixels that are negative numbers"):
        decode(content, "a file", 1)
