"""The station's page in a real browser, on a real station: uploads, judgements by mouse and by keyboard, languages,
accessibility. A page must not load anything from another host or cause an error in the browser's console."""

import base64
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache

import pytest
import requests
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

from pinspect.core.manifests import read_manifest
from pinspect.registry.connection import open_registry
from pinspect.registry.settings import load_register_settings
from pinspect.station.results import ResultsTable
from pinspect.station.settings import StationSettings
from tests.support.browser import CHROMIUM
from tests.support.evaluated_project import run_stage
from tests.support.sample import line, read_labels
from tests.support.station_stack import make_champion
from tests.support.waiting import until

QUIET = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)
PINS = [f"X:{column}, Y:{row}" for row in "UCD" for column in range(1, 10)]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=600_000)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield started
        started.close()


@pytest.fixture
def visit(browser, running_station):
    """Open pages of the station; `expected` is text that console errors may contain (a refusal is one)."""

    @contextmanager
    def opened(path: str = "/", *, expected: str = "", **options) -> Iterator[Page]:
        context = browser.new_context(base_url=running_station.url, **options)
        page = context.new_page()
        page.set_default_timeout(600_000)
        urls, complaints = [], []
        page.on("request", lambda request: urls.append(request.url))
        page.on("console", lambda entry: complaints.append(entry.text) if entry.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(path)
        yield page
        context.close()
        assert [url for url in urls if not url.startswith((f"{running_station.url}/", "blob:"))] == []
        assert [text for text in complaints if not (expected and expected in text)] == []

    return opened


@lru_cache
def captures():
    """Captures that are not in the project."""
    return [capture for capture in line(seed=21, train=16, references=2) if capture.role == "inspected"]


def payload(number: int, name: str = "") -> dict:
    capture = captures()[number]
    return {"name": name or f"part-{number}.jpg", "mimeType": "image/jpeg", "buffer": capture.jpeg}


def inspected(station, number: int) -> dict:
    """Return the result of a capture sent to the API."""
    files = {"images": (f"part-{number}.jpg", captures()[number].jpeg, "image/jpeg")}
    answer = requests.post(f"{station.url}/inspect", files=files, timeout=600)
    return answer.json()["results"][0]


def stored(station, id: str) -> dict:
    return requests.get(f"{station.url}/results/{id}", timeout=600).json()


def health(station) -> dict:
    return requests.get(f"{station.url}/health", timeout=600).json()


def another(result: dict) -> dict:
    """Return a verdict that differs from the model's."""
    mode = "bend" if result["defect_mode"] != "bend" else "retract"
    place = "X:3, Y:C" if result["defect_position"] != "X:3, Y:C" else "X:4, Y:D"
    return {"judgement": "defective", "defect_mode": mode, "defect_position": place}


def verdict(label: dict) -> dict:
    return {name: label[name] for name in ("judgement", "defect_mode", "defect_position")}


def stored_label(station, capture: str) -> dict:
    (row,) = (row for row in read_labels(station.root / "data/captures") if row["file"] == capture)
    return verdict(row)


def pictures_are_drawn(page: Page) -> None:
    drawn = "document.images.length && [...document.images].every(one => one.complete && one.naturalWidth > 99)"
    until(lambda: page.evaluate(drawn), "the pictures")


def test_an_uploaded_capture_shows_the_whole_answer(visit, running_station):
    with visit() as page:
        page.fill("#upload [name=serial]", "SN1")
        page.fill("#upload [name=lot]", "L7")
        page.set_input_files("#images", payload(0))
        article = page.locator("article.result")
        expect(article).to_have_count(1)
        result = stored(running_station, article.get_attribute("data-result"))
        assert (result["serial"], result["lot"]) == ("SN1", "L7")
        expect(article.locator("dd.serial")).to_have_text("SN1")
        expect(page.locator("#upload [name=serial]")).to_have_value("")
        expect(page.locator("#upload [name=lot]")).to_have_value("L7")
        word = {"passed": "PASSED", "defective": "DEFECTIVE"}[result["judgement"]]
        expect(article.locator(".word")).to_have_text(word)
        expect(article.locator(".verdict .file")).to_have_text("part-0.jpg")
        assert article.locator("pre").inner_text() == result["answer"]
        expect(article.locator("dd.version")).to_have_text(result["model_version"])
        expect(article.locator(".probability")).to_contain_text(f"{result['p_defective']:.3f}")
        titles = article.locator(".heat td[title]").evaluate_all("cells => cells.map(cell => cell.title)")
        assert titles == [f"{pin}: {value:.4f}" for pin, value in zip(PINS, result["pin_map"], strict=True)]
        pictures_are_drawn(page)
        assert page.locator("article img").evaluate_all("all => all.map(one => one.src.slice(-3))") == ["RAW", "DST"]
        boxes = 2 if result["judgement"] == "defective" else 0
        expect(article.locator(".boxes rect.model")).to_have_count(boxes)
        size = float(article.locator(".word").evaluate("word => parseFloat(getComputedStyle(word).fontSize)"))
        assert size >= 64, "the judgement is readable from 2 m"
        page.reload()
        expect(page.locator("article.result")).to_have_count(1)


def test_dropped_files_keep_their_order_and_a_bad_file_shows_its_error(visit):
    hostile = "<img src=x onerror=alert(1)>.jpg"
    files = [payload(1), payload(2, hostile), {"name": "report.png", "buffer": b"<html></html>"}, payload(3)]
    with visit(expected="415") as page:
        page.on("dialog", lambda dialog: pytest.fail(f"a file's name was run: {dialog.message}"))
        sent = [{"name": file["name"], "content": base64.b64encode(file["buffer"]).decode()} for file in files]
        dropped = page.evaluate_handle(
            """files => {
                const carried = new DataTransfer();
                for (const {name, content} of files) {
                    const bytes = Uint8Array.from(atob(content), letter => letter.charCodeAt(0));
                    carried.items.add(new File([bytes], name));
                }
                return carried;
            }""",
            sent,
        )
        page.dispatch_event("#upload", "drop", {"dataTransfer": dropped})
        expect(page.locator("article.result")).to_have_count(3)
        names = [name.split("/")[-1] for name in page.locator(".verdict .file").all_inner_texts()]
        assert names == ["part-1.jpg", hostile, "part-3.jpg"]
        failed = page.locator("#queue li.failed")
        expect(failed).to_have_text(
            "report.pngnot inspected: expected JPEG, PNG, BMP, TIFF or WebP, but the file has another format"
        )
        expect(page.locator("#queue progress")).to_have_js_property("value", 1)


def test_a_correction_by_keyboard_alone_becomes_a_capture_that_the_next_run_uses(visit, running_station):
    result = inspected(running_station, 4)
    label = another(result)
    with visit("/") as page:
        waiting = int(re.search(r"\d+", page.locator(".bar .waiting").inner_text())[0])
        page.keyboard.press("h")
        page.wait_for_url("**/history")
        page.locator("h1").wait_for()
        link = page.get_by_role("link", name=re.compile("passed|defective")).first
        while not link.evaluate("link => link === document.activeElement"):
            page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.wait_for_url(f"**/inspection/{result['id']}")

        page.keyboard.press("x")
        page.keyboard.press({"bend": "2", "retract": "3"}[label["defect_mode"]])
        focused = page.locator(":focus")
        expect(focused).to_have_attribute("name", "defect_position")
        move_to(page, label["defect_position"])
        for _ in range(40):
            if focused.get_attribute("name") == "by":
                break
            page.keyboard.press("Shift+Tab")
        page.keyboard.type("c x 2 Tanaka")  # letters typed into the name field are not shortcuts
        page.keyboard.press("Enter")

        expect(page.locator("p.person")).to_contain_text("Corrected by c x 2 Tanaka")
        expect(page.locator(".bar .waiting")).to_have_text(f"Waiting for retraining: {waiting + 1}")
        expect(page.locator("article.result")).to_be_focused()
    correction = stored(running_station, result["id"])["correction"]
    assert verdict(correction) == label
    assert stored_label(running_station, correction["capture"]) == label

    run_stage("raw", running_station.root)

    columns = ("sha256", "judgement", "defect_mode", "defect_position")
    manifest = read_manifest(running_station.root / "data/raw/manifest.csv", columns).set_index("sha256")
    assert verdict(manifest.loc[result["sha256"]]) == label
    with visit() as page:
        expect(page.locator(".bar .waiting")).to_have_text("Waiting for retraining: 0")


def move_to(page: Page, position: str) -> None:
    """Move to a pin of the grid with the arrow keys."""
    here, there = PINS.index(page.locator(":focus").input_value()), PINS.index(position)
    down, right = there // 9 - here // 9, there % 9 - here % 9
    for key in ["ArrowDown" if down > 0 else "ArrowUp"] * abs(down) + [
        "ArrowRight" if right > 0 else "ArrowLeft"
    ] * abs(right):
        page.keyboard.press(key)
    expect(page.locator(":focus")).to_have_value(position)
    expect(page.locator(":focus")).to_be_checked()


def test_a_click_on_the_pin_in_the_picture_chooses_it(visit, running_station):
    result = inspected(running_station, 5)
    label = another(result)
    with visit(f"/inspection/{result['id']}") as page:
        pictures_are_drawn(page)
        picture = page.locator(".frame").last
        box = picture.bounding_box()
        row, column = divmod(PINS.index(label["defect_position"]), 9)
        picture.click(position={"x": box["width"] * (column + 1.5) / 10, "y": box["height"] * (row + 1.5) / 4})
        expect(page.get_by_role("radio", name=label["defect_position"])).to_be_checked()
        expect(page.get_by_role("radio", name="defective")).to_be_checked()
        page.locator(f".modes [value={label['defect_mode']}]").check()
        page.locator(".correction [name=by]").fill("Suzuki")
        page.get_by_role("button", name="Save correction").click()
        expect(page.locator("p.person")).to_contain_text("Corrected by Suzuki")
        marked = page.locator(".boxes").first.locator("rect.person")
        assert (marked.get_attribute("x"), marked.get_attribute("y")) == (str(column + 1), str(row + 1))
    assert verdict(stored(running_station, result["id"])["correction"]) == label


def test_confirming_by_keyboard_asks_once_for_the_name(visit, running_station):
    first, second = inspected(running_station, 6), inspected(running_station, 7)
    with visit(f"/?id={first['id']}&id={second['id']}") as page:
        page.keyboard.press("c")
        page.keyboard.type("Mori")
        page.keyboard.press("Enter")
        expect(page.locator("p.person")).to_contain_text("Confirmed by Mori")
        page.reload()
        page.keyboard.press("n")
        page.keyboard.press("n")
        page.keyboard.press("c")
        expect(page.locator("p.person")).to_have_count(2)
    for result in (first, second):
        correction = stored(running_station, result["id"])["correction"]
        assert verdict(correction) == verdict(result)
        assert (correction["by"], correction["capture"]) == ("Mori", None)


def test_passed_switches_mode_and_position_off(visit, running_station):
    result = inspected(running_station, 8)
    with visit(f"/inspection/{result['id']}") as page:
        page.keyboard.press("x")
        page.keyboard.press("1")
        expect(page.get_by_role("button", name="Save correction")).to_be_focused()
        for part in (".modes", ".positions"):
            expect(page.locator(part)).to_have_js_property("disabled", True)
        page.keyboard.press("3")
        for part in (".modes", ".positions"):
            expect(page.locator(part)).to_have_js_property("disabled", False)
        expect(page.get_by_role("radio", name="defective")).to_be_checked()
        page.keyboard.press("Escape")
        expect(page.locator(".correction")).to_be_hidden()
        expect(page.locator(".correct summary")).to_be_focused()


def test_shortcuts_can_be_switched_off(visit):
    with visit("/history") as page:
        page.keyboard.press("?")
        page.get_by_label("Single-key shortcuts are on").uncheck()
        page.keyboard.press("f")
        page.keyboard.press("h")
        page.reload()
        page.keyboard.press("f")
        page.wait_for_timeout(300)
        assert page.url.endswith("/history")


def test_the_tab_key_passes_through_every_page(visit, running_station):
    result = inspected(running_station, 9)
    for path in ("/", "/history", "/figures", f"/inspection/{result['id']}"):
        with visit(path) as page:
            page.keyboard.press("x")
            page.evaluate("document.activeElement.blur()")
            seen = []
            for _ in range(120):
                page.keyboard.press("Tab")
                seen.append(page.evaluate("document.activeElement.outerHTML"))
                if seen[-1].startswith("<body"):
                    break
            assert seen[-1].startswith("<body") or seen[0] in seen[1:], f"{path}: the keyboard is caught"
            assert any("<summary>Keyboard shortcuts" in element for element in seen)


def test_the_language_is_switched_on_the_page(visit, running_station):
    result = inspected(running_station, 10)
    with visit(f"/inspection/{result['id']}", locale="en-GB") as page:
        expect(page.locator("html")).to_have_attribute("lang", "en")
        page.get_by_role("link", name="日本語").click()
        expect(page.locator("html")).to_have_attribute("lang", "ja")
        word = {"passed": "合格", "defective": "不良"}[result["judgement"]]
        expect(page.locator(".word")).to_have_text(word)
        expect(page.locator(".correct summary")).to_contain_text("訂正")
        page.goto("/history")
        expect(page.locator("h1")).to_have_text("履歴")
    with visit(locale="ja-JP") as page:
        expect(page.locator("html")).to_have_attribute("lang", "ja")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("language", ["en-GB", "ja-JP"])
def test_axe_finds_no_violation_on_any_page(visit, running_station, language, scheme):
    results = [inspected(running_station, number) for number in (11, 12)]
    shown = "&".join(f"id={result['id']}" for result in results)
    for path in ("/", f"/?{shown}", f"/inspection/{results[0]['id']}", "/history", "/figures", "/login"):
        with visit(path, locale=language, color_scheme=scheme) as page:
            for details in page.locator("details").all():
                details.evaluate("details => { details.open = true; }")
            violations = Axe().run(page).response["violations"]
            complaints = [
                f"{path}: {violation['impact']} {violation['id']}: "
                f"{violation['nodes'][0]['html']}: {violation['nodes'][0]['failureSummary']}"
                for violation in violations
            ]
            assert complaints == []


def test_everything_works_without_scripts(visit, running_station):
    with visit(java_script_enabled=False, expected="422") as page:
        page.set_input_files("#images", [payload(13), payload(14)])
        page.locator("#upload button").click()
        expect(page.locator("article.result")).to_have_count(2)
        page.locator("#images").set_input_files(payload(15))
        page.locator("#upload button").click()
        page.wait_for_url("**/inspection/*")
        id = page.locator("article").get_attribute("data-result")
        label = another(stored(running_station, id))

        page.locator(".correct summary").click()
        page.locator(".correction [name=by]").fill("Abe")
        page.locator(".judgements [value=passed]").check()
        page.locator(".judgements [value=defective]").check()
        page.locator(f".modes [value={label['defect_mode']}]").check()
        row, column = divmod(PINS.index(label["defect_position"]), 9)
        page.locator(".hits").first.locator("div").nth(row).locator("label").nth(column).click()
        expect(page.get_by_role("radio", name=label["defect_position"])).to_be_checked()
        page.locator(".save").click()
        expect(page.locator("p.person")).to_contain_text("Corrected by Abe")
    correction = stored(running_station, id)["correction"]
    assert verdict(correction) == label
    assert stored_label(running_station, correction["capture"]) == label


def test_every_page_shows_a_broken_champion_while_the_last_good_version_works(visit, running_station):
    root = running_station.root
    params = load_register_settings(root)
    good = health(running_station)["version"]
    with open_registry(root, params) as client:
        broken = client.create_model_version(params.model_name, (root / "nowhere").as_uri()).version
    make_champion(root, str(broken))
    try:
        until(lambda: health(running_station)["last_error"], "the reason")
        with visit("/history") as page:
            expect(page.get_by_role("alert")).to_contain_text(f"cannot be loaded; version {good} still inspects")
        assert inspected(running_station, 0)["model_version"] == good
    finally:
        make_champion(root, good)


def test_the_page_shows_that_the_line_has_changed(visit, running_station):
    """The lamp fails. This must be the last test of the module because it changes the drift report."""
    results = ResultsTable.of_project(running_station.root, StationSettings())
    newest = results.list(limit=1)[0].to_dict()
    for number in range(200):
        dark = newest | {"brightness": 0.01 + number / 1e5, "file": f"dark-{number}.jpg"}
        results.record(dark, id=f"dark-{number}", sha256="0" * 64, source="watch", received=datetime.now(UTC))
    results.close()
    until(lambda: (health(running_station)["drift"] or {}).get("changed"), "the change")
    with visit(locale="ja-JP") as page:
        expect(page.locator("#drift")).to_contain_text("ラインの状態が変化しています。画像の明るさ")
