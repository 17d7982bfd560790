"""The page in a real browser: from choosing a class to loading the settings of a file again."""

import json
import os
import re
import shutil
import threading
import time

import pytest
import uvicorn
from PIL import Image
from served import Slow, open_run

from condiff.web import Guard, Limits, Uploads, build_app
from condiff.web.server import listen

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: apt-get install chromium")
WAIT = 30_000  # milliseconds


class Served:
    """An application on a port of this machine, in a thread."""

    def __init__(self, source, token=None, **limits) -> None:
        self.bound = listen("127.0.0.1", 0)
        port = self.bound.getsockname()[1]
        self.url, bounds = f"http://127.0.0.1:{port}/", Limits(**limits)
        uploads = getattr(source, "uploads", None) or Uploads(bounds)
        app = build_app(source, Guard.of("127.0.0.1", port, token), bounds, uploads)
        config = uvicorn.Config(app, log_level="warning", ws="websockets-sansio", timeout_graceful_shutdown=2)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.bound]})
        self.thread.start()

    def __enter__(self):
        ends = time.monotonic() + 20
        while not self.server.started:
            assert time.monotonic() < ends and self.thread.is_alive()
            time.sleep(0.02)
        return self

    def __exit__(self, *_):
        self.server.should_exit = True
        self.thread.join(20)
        self.bound.close()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def served(digits):
    with Served(open_run(digits)) as running:
        yield running


@pytest.fixture
def page(browser, served):
    """A page that is connected; whatever its scripts complain of fails the test."""
    with browser.new_context(viewport={"width": 1280, "height": 900}) as context:
        yield from opened(context, served.url)


def opened(context, url):
    page = context.new_page()
    page.set_default_timeout(WAIT)
    complaints = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    page.goto(url)
    page.locator("#link.on").wait_for()
    yield page
    assert not complaints


def field(page, side, name):
    return page.locator(f".setting.side-{side} [data-name={name}] input[type=number]")


def panel(page, side="a"):
    return page.locator(f".panel.side-{side}")


def finished(page, side="a"):
    panel(page, side).locator(".files:not([hidden])").wait_for()
    return panel(page, side)


def test_choose_a_class_and_watch_the_steps(page):
    assert page.get_by_text("No samples yet").is_visible()
    page.get_by_role("checkbox", name="3", exact=True).check()
    page.get_by_label("Samples", exact=True).fill("4")
    field(page, "a", "steps").fill("30")
    heard = []
    page.on("websocket", lambda socket: heard.append(socket))
    page.get_by_role("button", name="Sample").click()
    one = finished(page)
    assert one.locator("figure").count() == 4 and one.locator("figcaption").all_inner_texts() == ["3"] * 4
    assert one.locator(".status").inner_text().startswith("30 network calls each")
    shown = one.locator("figure img").first
    last = shown.get_attribute("src")
    slider = one.get_by_role("slider", name="Step that is shown")
    assert slider.input_value() == "30"
    slider.focus()
    page.keyboard.press("Home")
    assert (
        slider.input_value() == "1"
        and one.get_by_text("1/30", exact=True).is_visible()
        and shown.get_attribute("src") != last
    )
    page.keyboard.press("End")
    assert shown.get_attribute("src") == last


def test_steps_arrive_one_by_one_and_can_be_cancelled(browser):
    source = Slow()
    with Served(source) as running, browser.new_context() as context:
        for page in opened(context, running.url):
            field(page, "a", "steps").fill("9")
            page.get_by_role("button", name="Sample").click()
            for index in (1, 2):
                source.go.release()
                page.get_by_text(f"Step {index} of 9").wait_for()
            assert page.locator("progress").evaluate("bar => bar.value") == pytest.approx(2 / 9)
            page.keyboard.press("Escape")
            page.wait_for_timeout(300)
            source.go.release()
            page.get_by_text("Cancelled after step 2").wait_for()
            source.go.release(20)
            field(page, "a", "steps").fill("1")
            page.keyboard.press("Control+Enter")
            finished(page)


def test_two_settings_side_by_side(page):
    page.get_by_role("switch").check()
    field(page, "b", "steps").fill("3")
    page.locator(".setting.side-b select").select_option("ddim")
    page.get_by_label("Samples", exact=True).fill("2")
    page.get_by_role("button", name="Sample").click()
    first, second = finished(page, "a"), finished(page, "b")
    assert first.locator("h2").inner_text().startswith("euler · 25 steps")
    assert second.locator("h2").inner_text().startswith("ddim · 3 steps")
    boxes = first.bounding_box(), second.bounding_box()
    assert boxes[0]["y"] == boxes[1]["y"] and boxes[0]["x"] < boxes[1]["x"]
    slider = first.get_by_role("slider", name="Step that is shown")
    slider.focus()
    page.keyboard.press("Home")  # the other one follows
    assert second.get_by_role("slider", name="Step that is shown").input_value() == "1"
    page.get_by_role("switch").uncheck()
    assert panel(page, "b").count() == 0 and page.locator(".setting.side-b").count() == 0


def test_equal_settings_give_equal_samples(page):
    page.get_by_role("switch").check()
    field(page, "a", "steps").fill("4")
    field(page, "b", "steps").fill("4")
    page.get_by_role("button", name="Sample").click()
    pictures = [
        finished(page, side).locator("figure img").evaluate_all("all => all.map(one => one.src)") for side in "ab"
    ]
    assert len(pictures[0]) == 10 and pictures[0] == pictures[1]


def test_files_bring_their_settings_back(page, tmp_path):
    page.get_by_role("checkbox", name="7", exact=True).check()
    field(page, "a", "steps").fill("5")
    field(page, "a", "guidance").fill("2.5")
    page.get_by_label("Seed", exact=True).fill("41")
    page.get_by_role("button", name="Sample").click()
    one, saved = finished(page), {}
    for name in ("PNG", "NumPy", "Settings"):
        with page.expect_download() as download:
            one.get_by_role("link", name=name).click()
        saved[name] = tmp_path / download.value.suggested_filename
        download.value.save_as(saved[name])
    assert sorted(path.suffix for path in saved.values()) == [".json", ".npz", ".png"]
    with Image.open(saved["PNG"]) as picture:
        inside = json.loads(picture.text["condiff"])
    assert inside == json.loads(saved["Settings"].read_text()) and inside["settings"]["seed"] == 41
    for name in ("PNG", "Settings"):
        page.reload()
        page.locator("#link.on").wait_for()
        assert page.get_by_label("Seed", exact=True).input_value() == "0"
        page.locator("#load").set_input_files(saved[name])
        page.get_by_role("checkbox", name="7", exact=True, checked=True).wait_for()
        assert field(page, "a", "steps").input_value() == "5" and field(page, "a", "guidance").input_value() == "2.5"
        assert page.get_by_label("Seed", exact=True).input_value() == "41"
    Image.new("L", (4, 4)).save(tmp_path / "other.png")
    page.locator("#load").set_input_files(tmp_path / "other.png")
    page.get_by_text("other.png holds no settings").wait_for()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("steps", "0", "steps must be from 1 to 1000 here, got 0"),
        ("guidance", "1e31", "guidance must be a finite number"),
    ],
)
def test_bad_input_is_shown_where_it_is(page, name, value, words):
    field(page, "a", name).fill(value)
    page.get_by_role("button", name="Sample").click()
    assert panel(page).get_by_role("alert").inner_text().startswith(words)
    assert field(page, "a", name).get_attribute("aria-invalid") == "true"
    field(page, "a", name).fill("2")
    assert field(page, "a", name).get_attribute("aria-invalid") is None
    page.get_by_role("button", name="Sample").click()
    finished(page)
    assert not panel(page).get_by_role("alert").is_visible()


def test_colours(page):
    back = lambda: page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.emulate_media(color_scheme="light")
    light = back()
    page.emulate_media(color_scheme="dark")
    dark = back()
    brightness = lambda colour: sum(int(n) for n in re.findall(r"\d+", colour)[:3])
    assert brightness(light) > 600 > 150 > brightness(dark)
    page.get_by_role("button", name="Colours").click()  # light, whatever the system has
    assert back() == light
    page.reload()
    assert back() == light
    page.get_by_role("button", name="Colours").click()
    page.emulate_media(color_scheme="light")
    assert back() == dark


@pytest.mark.parametrize("width", [320, 390, 768, 1024, 1920])
def test_nothing_is_cut_off(page, width):
    page.set_viewport_size({"width": width, "height": 800})
    page.get_by_role("switch").check()
    field(page, "a", "steps").fill("2")
    page.get_by_role("button", name="Sample").click()
    finished(page, "b")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_by_keyboard_alone(page):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.type"))
    assert {"theme", "compare", "seed", "dice", "num", "go", "load"} <= reached
    page.locator("#num").focus()
    page.keyboard.press("Control+Enter")
    one = finished(page)
    one.locator("button.open").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("#zoom").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("#zoom").is_visible()


def test_pictures_are_sent_and_shown_beside(browser, pairs, tmp_path):
    Image.new("RGB", (20, 10), (200, 30, 30)).save(tmp_path / "red.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with Served(open_run(pairs)) as running, browser.new_context() as context:
        for page in opened_with_refusals(context, running.url):
            page.locator("input[type=file]").first.set_input_files(tmp_path / "bad.png")
            page.get_by_text("no picture that can be read").wait_for()
            page.locator("input[type=file]").first.set_input_files(tmp_path / "red.png")
            page.get_by_text("red.png, 20 × 10").wait_for()
            field(page, "a", "steps").fill("2")
            page.get_by_role("button", name="Sample").click()
            strip = finished(page).locator(".strip").first
            assert [text.strip() for text in strip.locator("small").all_inner_texts()] == ["degraded", "sample"]


def opened_with_refusals(context, url):
    """As :func:`opened`; a browser writes refused uploads into its console."""
    page = context.new_page()
    page.set_default_timeout(WAIT)
    page.goto(url)
    page.locator("#link.on").wait_for()
    yield page


def test_text_and_curves(browser, text, series):
    for run, what in ((text, "pre"), (series, "svg polyline")):
        with Served(open_run(run)) as running, browser.new_context() as context:
            for page in opened(context, running.url):
                field(page, "a", "steps").fill("4")
                page.get_by_role("button", name="Sample").click()
                assert finished(page).locator(what).count() >= 8


def test_the_token_and_a_server_that_goes(browser, digits):
    with browser.new_context() as context:
        with Served(open_run(digits), token="a-token-that-is-long") as running:
            page = context.new_page()
            page.set_default_timeout(WAIT)
            page.goto(running.url)
            page.get_by_label("Token").fill("a-token-that-is-long")
            page.get_by_role("button", name="Open").click()
            page.locator("#link.on").wait_for()
            assert page.url == running.url
        page.get_by_text("Trying again").wait_for()
        assert page.get_by_role("button", name="Sample").is_disabled()
