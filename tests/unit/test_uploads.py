"""Uploads: accepted images, and the messages of refusals."""

import io
import struct
import zlib

import anyio
import httpx
import numpy as np
import pytest
from fastapi import FastAPI, Request
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pinspect.station.problems import Problem
from pinspect.station.settings import StationSettings
from pinspect.station.uploads import LONGEST_NAME, ByteBudget, checked_image, read_uploads, shown_name
from tests.support.problem_answers import refusal
from tests.support.sample import line, params

JPEG = line()[0].jpeg
MAX_PIXELS = params().raw.max_pixels
HTML = b"<!DOCTYPE html><html><script>alert(1)</script></html>"
SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="99" height="99"><script>1</script></svg>'


def encoded(kind: str, mode: str = "RGB", size: tuple[int, int] = (64, 48)) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, kind)
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    """Return a PNG of a few bytes with this size in its header."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(bytes(100))
    chunks = (struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in (header, data))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


# One file


@pytest.mark.parametrize(
    ("kind", "suffix"), [("JPEG", ".jpg"), ("PNG", ".png"), ("BMP", ".bmp"), ("TIFF", ".tif"), ("WEBP", ".webp")]
)
def test_a_format_is_detected_by_content_not_by_suffix(kind, suffix):
    content = encoded(kind)
    upload = checked_image(content, "picture.html", MAX_PIXELS)
    assert (upload.content, upload.suffix, upload.name) == (content, suffix, "picture.html")


def test_a_16_bit_image_is_taken():
    file = io.BytesIO()
    Image.fromarray(np.linspace(0, 65535, 64 * 48).astype(np.uint16).reshape(48, 64)).save(file, "PNG")
    assert checked_image(file.getvalue(), "deep.png", MAX_PIXELS).suffix == ".png"


@pytest.mark.parametrize(
    ("content", "status", "reason"),
    [
        (b"", 422, "the file is empty (0 bytes)"),
        (JPEG[:5], 422, "the JPEG header is damaged or cut short"),
        (b"BM", 422, "the BMP header is damaged or cut short"),
        (HTML, 415, "expected JPEG, PNG, BMP, TIFF or WebP, but the file has another format"),
        (SVG, 415, "the file has another format"),
        (encoded("GIF", "P"), 415, "the file has another format"),
        (b"%PDF-1.7", 415, "the file has another format"),
        (encoded("PNG", "L", (20_000, 40)), 413, "20000 x 40 px"),
        (encoded("PNG", "1", (7000, 7000)), 413, f"at most {MAX_PIXELS} px in total"),
        (png_header(50_000, 50_000), 413, "too many pixels"),
    ],
)
def test_an_invalid_image_is_rejected_with_a_reason(content, status, reason):
    with pytest.raises(Problem) as caught:
        checked_image(content, "evil.png", MAX_PIXELS)
    assert (caught.value.status, str(caught.value).startswith("evil.png: ")) == (status, True)
    assert reason in str(caught.value)


@given(st.sampled_from([JPEG, encoded("PNG"), encoded("BMP"), encoded("TIFF"), encoded("WEBP")]), st.data())
def test_a_damaged_file_is_accepted_or_rejected_but_never_crashes(content, data):
    place = data.draw(st.integers(0, len(content) - 1))
    damaged = content[:place] + bytes([data.draw(st.integers(0, 255))]) + content[place + 1 :]
    cut = damaged[: data.draw(st.integers(0, len(damaged)))]
    try:
        content = checked_image(cut, "x", MAX_PIXELS).content
    except Problem as problem:
        status, content = problem.status, cut
    else:
        status = 200
    assert status in (200, 413, 415, 422)
    assert content == cut


# Names


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("left_001_OK.jpg", "left_001_OK.jpg"),
        ("../../../etc/passwd", "passwd"),
        ("..\\..\\windows\\system.ini", "system.ini"),
        ("/etc/cron.d/evil.png", "evil.png"),
        ("a\0b.png", "ab.png"),
        ("invoice\u202egnp.exe", "invoicegnp.exe"),
        ("new\r\nline\u2028.png", "newline.png"),
        ("検査 1.png", "検査 1.png"),
        ("..", "capture"),
        ("", "capture"),
        (None, "capture"),
        ("\ud800.png", "?.png"),
    ],
)
def test_unprintable_characters_are_removed_from_a_name(name, shown):
    assert shown_name(name) == shown


def test_a_name_that_is_too_long_keeps_its_suffix():
    name = shown_name("x" * 5000 + ".jpeg")
    assert (len(name), name[-5:]) == (LONGEST_NAME, ".jpeg")


@given(st.text())
def test_a_shown_name_is_printable_and_no_path(text):
    name = shown_name(text)
    assert name.isprintable()
    assert 0 < len(name) <= LONGEST_NAME
    assert name not in (".", "..")
    assert not {"/", "\\", "\0"} & set(name)


# A request


LIMITS = {"upload_bytes": 200_000, "images_a_request": 2, "timeout_seconds": 0.5}


@pytest.fixture(scope="module")
def app():
    """An application that returns what it read."""
    app = FastAPI()
    app.state.budget = ByteBudget(1_000_000)

    @app.post("/")
    async def read(request: Request) -> dict:
        with app.state.budget.share() as take:
            upload = await read_uploads(request, params(), StationSettings(**LIMITS), take)
        trace = {"trace": dict(upload.trace)} if upload.trace else {}
        return {"names": [image.name for image in upload.images], "shape": upload.shape, **trace}

    @app.exception_handler(Problem)
    async def problem(_: Request, error: Problem):
        return error.response()

    return app


def post(app, **fields) -> httpx.Response:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://station") as client:
            return await client.post("/", **fields)

    return anyio.run(send)


def files(*contents: bytes, field: str = "images") -> list:
    return [(field, (f"{number}.jpg", content)) for number, content in enumerate(contents)]


def test_images_and_their_shape_are_read(app):
    assert post(app, files=files(JPEG, JPEG)).json() == {"names": ["0.jpg", "1.jpg"], "shape": None}
    assert post(app, files=files(JPEG), data={"shape": "SQUR"}).json() == {"names": ["0.jpg"], "shape": "SQUR"}
    assert post(app, files=files(JPEG), data={"shape": ""}).json()["shape"] is None


def test_serial_number_and_lot_are_about_all_images_of_a_request(app):
    everything = {"shape": "SQUR", "serial": " SN 1 ", "lot": "ロット7"}
    assert post(app, files=files(JPEG, JPEG), data=everything).json()["trace"] == {"serial": "SN 1", "lot": "ロット7"}
    assert "trace" not in post(app, files=files(JPEG), data={"serial": "", "lot": " "}).json()


@pytest.mark.parametrize(
    ("request_", "status", "reason"),
    [
        ({"files": files(JPEG), "data": {"shape": "HEXA"}}, 422, "shape: expected one of CYLN, SQUR"),
        (
            {"files": files(JPEG, field="image")},
            422,
            "expected the fields images, shape, serial, lot, but the form has",
        ),
        ({"files": files(JPEG), "data": {"serial": "S" * 256}}, 422, "serial: expected at most 255 printable"),
        ({"files": files(JPEG), "data": {"lot": "L\n1"}}, 422, "lot: expected at most 255 printable characters"),
        ({"files": files(JPEG), "data": {"lot": ["1", "2"]}}, 422, "lot: expected one text"),
        ({"files": [("shape", (None, "CYLN"))]}, 422, "images: expected one or more image files"),
        ({"files": [("images", (None, "text"))]}, 422, "images: expected one or more image files"),
        ({"json": {}}, 415, "expected multipart/form-data with the field images"),
        ({"files": files(JPEG, JPEG, JPEG)}, 422, "at most 2 images per request"),
        ({"files": files(JPEG, JPEG, JPEG, JPEG)}, 422, "at most 2 images per request"),
        ({"files": files(bytes(200_001))}, 413, "more than 200000 bytes"),
        ({"files": files(JPEG, HTML)}, 415, "1.jpg: expected JPEG"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 422, "Missing boundary"),
        (
            {"content": b"nonsense", "headers": {"content-type": "multipart/form-data; boundary=b"}},
            422,
            "the form cannot be read",
        ),
    ],
)
def test_a_malformed_request_is_rejected_with_a_reason(app, request_, status, reason):
    code, detail = refusal(post(app, **request_))
    assert (code, reason in detail) == (status, True), detail


def test_a_request_with_a_too_large_content_length_is_not_read(app):
    read = []

    async def content():
        read.append(1)
        yield b"x"

    headers = {"content-type": "multipart/form-data; boundary=b", "content-length": "99999999"}
    assert refusal(post(app, content=content(), headers=headers))[0] == 413
    assert not read


def test_a_request_longer_than_its_content_length_is_cut_off(app):
    sent = []

    async def content():
        yield b'--b\r\nContent-Disposition: form-data; name="images"; filename="a.jpg"\r\n\r\n'
        for _ in range(100):
            sent.append(1)
            yield bytes(100_000)

    headers = {"content-type": "multipart/form-data; boundary=b", "content-length": "1000"}
    assert refusal(post(app, content=content(), headers=headers))[0] == 413
    assert len(sent) == 3


def test_uploads_beyond_the_bytes_at_once_are_refused_until_others_have_ended(app):
    with app.state.budget.share() as take:
        take(999_990)
        answer = post(app, files=files(JPEG))
        assert refusal(answer) == (503, "too many uploads at once; send it again")
        assert answer.headers["Retry-After"] == "5"
    assert post(app, files=files(JPEG)).status_code == 200


def test_a_request_that_never_ends_times_out(app):
    async def content():
        yield b"--b\r\n"
        await anyio.sleep(60)

    answer = post(app, content=content(), headers={"content-type": "multipart/form-data; boundary=b"})
    assert refusal(answer) == (408, "the request was not complete within 0.5 s; send it again")
