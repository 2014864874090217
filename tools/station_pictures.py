"""Take the pictures of the station's page for the docs: `python tools/station_pictures.py`, after `dvc repro`.

A station on the project's registry inspects captures of the test split, and the script corrects one of them. The
project itself does not change. Needs Chromium (`apt-get install chromium`).
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image
from playwright.sync_api import Browser, FilePayload, Page, ViewportSize, expect, sync_playwright

from pinspect.core import predictions
from pinspect.core.manifests import MANIFEST, read_manifest
from pinspect.core.params import load_params
from pinspect.core.product_files import read_product
from pinspect.core.question import Question, camera_else_virtual

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "docs/pictures"
CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
DESK, TABLET = ViewportSize(width=1280, height=800), ViewportSize(width=820, height=1180)


def read_answers() -> pd.DataFrame:
    """Return the zero-shot answers of the last evaluation to production's prompt, the wrong ones first."""
    table = predictions.read(ROOT / "reports/predictions/test.csv")
    question = Question.of(load_params(ROOT / "params.yaml").evaluate)
    answers = camera_else_virtual(question.answers(table))
    return answers.assign(right=answers["answer"] == answers["expected"]).sort_values(["right", "id"])


def photograph(answer: Any) -> FilePayload:
    """Return the capture of an answer as a file to upload, with its original name."""
    raw = read_manifest(ROOT / "data/raw" / MANIFEST, ("file", "capture")).set_index("file")
    name, content = str(raw.loc[answer["file"], "capture"]), read_product(ROOT / "data/raw" / answer["file"])
    return {"name": name, "mimeType": "image/png" if name.endswith(".png") else "image/jpeg", "buffer": content}


@contextlib.contextmanager
def station() -> Iterator[str]:
    """Run a station with the project's registry and its own results and captures; yield its URL."""
    with tempfile.TemporaryDirectory(prefix="pinspect-pictures-") as folder:
        root = Path(folder)
        for name in ("params.yaml", "settings.yaml"):
            shutil.copyfile(ROOT / name, root / name)
        (root / "mlruns").symlink_to(ROOT / "mlruns")
        command = [Path(sys.executable).with_name("pinspect"), "station", "--port", "0"]
        process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)
        try:
            urls = (re.match(r"http\S+", line) for line in process.stdout or ())
            url = next((match[0] for match in urls if match), None)
            if url is None:
                sys.exit("the station does not start; see its message above")
            yield url
        finally:
            process.terminate()
            process.wait()


@contextlib.contextmanager
def reader(browser: Browser, address: str, viewport: ViewportSize) -> Iterator[Page]:
    """Open the page in a new browser context."""
    context = browser.new_context(base_url=address, locale="en-GB", viewport=viewport)
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.goto("/")
    yield page
    context.close()


def take(page: Page, name: str, *, full: bool = False) -> str:
    """Write a picture once the page is complete; a palette of 256 colors halves its size."""
    for image in page.locator("article img").all():
        image.scroll_into_view_if_needed()
        expect(image).to_have_js_property("complete", True)
    page.evaluate("window.scrollTo(0, 0)")
    target = PICTURES / f"station-{name}.png"
    page.screenshot(path=target, full_page=full)
    picture = Image.open(target).convert("RGB")
    picture.quantize(256, dither=Image.Dither.NONE).save(target, optimize=True)
    return str(target.relative_to(ROOT))


def upload(page: Page, *files: FilePayload) -> None:
    """Upload captures and wait for all results."""
    page.set_input_files("#images", list(files))
    expect(page.locator("article.result")).to_have_count(len(files), timeout=60_000)


def correct(page: Page, answer: Any, name: str) -> None:
    """Fill in the correction form with the capture's label, by keyboard."""
    page.keyboard.press("x")
    modes = ["passed", *load_params(ROOT / "params.yaml").answers.defect_modes]
    page.keyboard.press(str(modes.index(answer["expected_defect_mode"]) + 1))
    if answer["expected_defect_position"] != "passed":
        page.get_by_role("radio", name=answer["expected_defect_position"], exact=True).check()
    page.locator(".correction [name=by]").fill(name)


def draw(browser: Browser, address: str) -> list[str]:
    """Take all pictures; return their paths."""
    answers = read_answers()
    first, second, *_ = answers[answers["expected_judgement"] == "defective"].to_dict("records")
    with reader(browser, address, DESK) as page:
        upload(page, photograph(second))
        taken = [take(page, "defective")]
    with reader(browser, address, TABLET) as page:
        upload(page, photograph(first))
        correct(page, first, "Sato")
        taken.append(take(page, "correcting-tablet", full=True))
    return taken


if __name__ == "__main__":
    PICTURES.mkdir(parents=True, exist_ok=True)
    with station() as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        print(json.dumps({"written": draw(browser, address)}))
        browser.close()
