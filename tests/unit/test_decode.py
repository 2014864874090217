"""Reading image files: every format is read correctly, or refused by name with advice."""

import io
import os
import struct
import subprocess
import sys
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from pinspect.core.errors import ImageError
from pinspect.core.images import read_image, to_gray

LIMIT = 1_000_000


def picture(width=48, height=40) -> Image.Image:
    """Return an image whose color differs at every pixel."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 5, y * 6, x + y], axis=-1).astype(np.uint8))


def saved(folder, image: Image.Image, name: str, **options):
    image.save(folder / name, **options)
    return folder / name


def written(folder, name: str, content: bytes):
    (folder / name).write_bytes(content)
    return folder / name


def encoded(image: Image.Image, kind: str) -> bytes:
    content = io.BytesIO()
    image.save(content, kind)
    return content.getvalue()


def png_header_of(width: int, height: int) -> bytes:
    """Return a small PNG file with a large size in its header (a decompression bomb)."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0" * 99))]
    packed = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def test_an_ordinary_image_is_read_as_it_is(tmp_path):
    image = read_image(saved(tmp_path, picture(), "a.png"), LIMIT)
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), np.asarray(picture()))


def test_exif_rotation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # EXIF orientation: rotate by 90 degrees clockwise
    path = saved(tmp_path, picture(), "turned.png", exif=exif)
    np.testing.assert_array_equal(np.asarray(read_image(path, LIMIT)), np.rot90(np.asarray(picture()), -1))


def test_sixteen_bits_are_scaled_to_eight_the_same_way_for_every_image(tmp_path):
    levels = np.zeros((40, 48), np.uint16)
    levels[:, :16], levels[:, 16:32] = 65535, 32896
    for suffix in ("png", "tif"):
        cv2.imwrite(str(tmp_path / f"deep.{suffix}"), levels)
        pixels = np.asarray(read_image(tmp_path / f"deep.{suffix}", LIMIT))
        assert pixels.shape == (40, 48, 3)
        assert [pixels[0, column].tolist() for column in (0, 20, 40)] == [[255] * 3, [128] * 3, [0] * 3]


def test_sixteen_bit_color_is_read(tmp_path):
    deep = np.asarray(picture())[..., ::-1].astype(np.uint16) * 257
    cv2.imwrite(str(tmp_path / "deep.png"), deep)
    pixels = np.asarray(read_image(tmp_path / "deep.png", LIMIT)).astype(int)
    assert np.abs(pixels - np.asarray(picture())).max() <= 1


def test_a_palette_is_resolved(tmp_path):
    few = Image.fromarray(np.repeat(np.repeat(np.asarray(picture())[::20, ::24], 20, 0), 24, 1))
    path = saved(tmp_path, few.quantize(4, dither=Image.Dither.NONE), "palette.png")
    assert Image.open(path).mode == "P"
    assert np.abs(np.asarray(read_image(path, LIMIT)).astype(int) - np.asarray(few)).max() <= 2


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_become_black(tmp_path, mode):
    image = Image.new(mode, (40, 40), (200,) * (len(mode) - 1) + (255,))
    image.putpixel((3, 4), (200,) * (len(mode) - 1) + (0,))
    opaque = read_image(saved(tmp_path, image, "alpha.png"), LIMIT)
    assert opaque.mode == "RGB" and opaque.getpixel((3, 4)) == (0, 0, 0) and opaque.getpixel((4, 4)) == (200, 200, 200)


def test_cmyk_is_converted_to_rgb(tmp_path):
    path = saved(tmp_path, Image.new("CMYK", (40, 40), (0, 0, 0, 0)), "white.jpg")
    assert read_image(path, LIMIT).getpixel((20, 20)) == (255, 255, 255)
    path = saved(tmp_path, Image.new("CMYK", (40, 40), (0, 255, 255, 0)), "red.tif")
    assert read_image(path, LIMIT).getpixel((20, 20)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.jpg", b"", "the file is empty (0 bytes)"),
        ("text.jpg", b"no picture at all\n" * 20, "not an image file"),
        ("cut.jpg", encoded(picture(), "jpeg")[:700], "damaged or cut short"),
        ("cut.png", encoded(picture(), "png")[:-60], "damaged or cut short"),
        ("cut.bmp", encoded(picture(), "bmp")[:900], "damaged or cut short"),
        ("head.jpg", encoded(picture(), "jpeg")[:12], "not an image file"),
        ("bomb.png", png_header_of(5000, 5000), "5000 x 5000 px is more than raw.max_pixels allows (1000000)"),
        ("huge.png", png_header_of(60000, 60000), "refused unread"),
        ("dot.png", encoded(Image.new("RGB", (1, 1)), "png"), "1 x 1 px is no photograph"),
        ("thin.png", encoded(Image.new("RGB", (500, 3)), "png"), "500 x 3 px is no photograph"),
        ("float.tif", encoded(Image.new("F", (40, 40)), "tiff"), "save the image with 8 or 16 bit"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_photograph_is_refused_by_name(tmp_path, name, content, message):
    path = written(tmp_path, name, content)
    with pytest.raises(ImageError) as refused:
        read_image(path, LIMIT)
    assert str(refused.value).startswith(f"{path}: ") and message in str(refused.value)


def test_a_missing_file_and_a_folder_are_refused_by_name(tmp_path):
    for path in (tmp_path / "gone.jpg", tmp_path):
        with pytest.raises(ImageError, match=f"{path}: cannot be read: "):
            read_image(path, LIMIT)


def test_gray_is_luminance_from_black_to_white():
    gray = to_gray(Image.new("RGB", (3, 2), (255, 255, 255)))
    assert gray.dtype == np.float32 and gray.shape == (2, 3)
    np.testing.assert_allclose(gray, 1)
    np.testing.assert_allclose(to_gray(Image.new("RGB", (1, 1), (255, 0, 0))), 0.299, atol=0.002)
    assert (to_gray(np.zeros((2, 2, 3), np.uint8)) == 0).all()


@pytest.mark.parametrize("suffix", [".jpg", ".eps"])
def test_postscript_is_refused_and_no_program_is_started(tmp_path, suffix):
    """Pillow would run Ghostscript for a PostScript file, whatever its name."""
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\nshowpage\n"
    photograph = tmp_path / f"photo{suffix}"
    photograph.write_bytes(postscript)
    program = tmp_path / "bin/gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    program.chmod(0o755)
    code = f"from pinspect.core.images import read_image; read_image({str(photograph)!r})"
    environment = os.environ | {"PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "ImageError" in done.stderr
    assert "not an image file" in done.stderr
    assert not (tmp_path / "started").exists()
