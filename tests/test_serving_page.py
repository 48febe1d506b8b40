"""The front page in headless Chromium: a real recording, from a file and from the microphone.

They need `chromium` and `chromedriver` on the PATH (Debian: `apt install chromium-driver`); without
them they are skipped, and say so.
"""

from __future__ import annotations

import contextlib
import itertools
import pathlib
import shutil
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import soundfile
import uvicorn

import mtp_jax
from mtp_jax.decoding import registry
from mtp_jax.serving.access import ApiKeys
from mtp_jax.serving.app import Service, Settings
from tests.pretrained import GOLDEN_WHISPER
from tests.recordings import RATE
from tests.test_live import Sure

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver on the PATH"
)
PATIENCE = 300  # s


@pytest.fixture(scope="module")
def model(workdir) -> mtp_jax.Transcriber:
    return mtp_jax.load(workdir, batch_size=1)


@pytest.fixture(scope="module")
def talk(waves, tmp_path_factory) -> pathlib.Path:
    """Three sentences."""
    pause = np.zeros(RATE, np.int16)
    file = tmp_path_factory.mktemp("audio") / "talk.wav"
    soundfile.write(file, np.concatenate([x for wave in waves for x in (wave, pause)]), RATE)
    return file


@contextlib.contextmanager
def served(
    model: mtp_jax.Transcriber, keys: ApiKeys | None = None, strategy: str = "verify"
) -> Iterator[str]:
    """The address of a service of `model`, called tiny."""
    settings = Settings(models=("tiny",), strategy=strategy, warm=(), keys=keys)
    service = Service(model, settings)
    server = uvicorn.Server(uvicorn.Config(service.app(), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        thread.join(0.05)
        assert thread.is_alive()
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def address(model) -> Iterator[str]:
    with served(model) as address:
        yield address


@pytest.fixture(scope="module")
def browser(talk):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (
        *("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"),
        *("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"),
        f"--use-file-for-fake-audio-capture={talk}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


class Page:
    """What a user sees and does."""

    def __init__(self, browser, address: str) -> None:
        self.browser = browser
        browser.get(address)
        self.until(lambda: self["model"].text == "tiny" or self["key-form"].is_displayed())

    def __getitem__(self, name: str):
        return self.browser.find_element("id", name)

    def until(self, condition) -> None:
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.browser, PATIENCE).until(lambda _: condition())

    def decoded(self) -> str:
        """What is said when a recording is decoded, or why it is not."""
        self.until(lambda: "busy" not in self["status"].get_attribute("class"))
        self.until(
            lambda: not self["stop"].is_displayed() and "ecording," not in self["status"].text
        )
        return self["status"].text

    def blocks(self) -> list[list[str]]:
        """Texts of the tokens of each block, without spaces; ■ is EOS."""
        return self.browser.execute_script(
            "return [...document.querySelectorAll('.block:not(.plain)')].map(block =>"
            " [...block.querySelectorAll('.token')].map(token => token.textContent.trim()))"
        )

    def choose(self, strategy: str) -> None:
        from selenium.webdriver.support.ui import Select

        Select(self["strategy"]).select_by_value(strategy)


@pytest.fixture
def page(browser, address) -> Page:
    return Page(browser, address)


def expected_blocks(model, talk, strategy) -> list[list[str]]:
    found = model.transcribe(talk, strategy=strategy)
    return [["■" if t.word < 0 else t.text.strip() for t in block] for block in found.blocks]


def test_a_file_becomes_blocks_and_their_count(page, model, talk):
    page["file"].send_keys(str(talk))
    assert "decoded in" in page.decoded()
    expected = model.transcribe(talk, strategy="verify")
    assert page.blocks() == expected_blocks(model, talk, "verify")
    lines = page.browser.find_elements("css selector", "#transcript p")
    said = " ".join(line.get_attribute("textContent").replace("■", " ") for line in lines)
    assert said.replace("\xa0", " ").split() == expected.text.split()
    tokens, calls = len(expected.tokens), expected.decoder_calls
    assert page["tokens"].text == str(tokens)
    assert page["calls"].text == str(calls)
    assert page["saved"].text.split()[0] == str(tokens - calls)
    colours = page.browser.execute_script(
        "return [...document.querySelectorAll('#transcript p:first-child .block')]"
        ".map(block => getComputedStyle(block).backgroundColor)"
    )
    assert all(a != b for a, b in itertools.pairwise(colours))

    # When words were said, and no language to choose of a model that knows but one.
    page.browser.find_element("css selector", "#times summary").click()
    words = [button.text.split() for button in page["words"].find_elements("tag name", "button")]
    assert [word for _, word in words] == expected.text.split()
    clocks = [f"{w.start // 60:.0f}:{w.start % 60:04.1f}" for w in expected.words]
    assert [clock for clock, _ in words] == clocks
    assert not page["language"].is_displayed() and not page["spoken"].is_displayed()

    # Another strategy decodes the same recording again; tau is its own, and moved by the keyboard.
    from selenium.webdriver.common.keys import Keys

    assert not page["tau"].is_enabled()
    page.choose("threshold")
    assert page["tau"].is_enabled()
    page.decoded()
    before = float(page["tau"].get_attribute("value"))
    page["tau"].send_keys(Keys.ARROW_LEFT)
    after = float(page["tau"].get_attribute("value"))
    assert after < before
    assert "with threshold" in page.decoded()
    assert page.blocks() == expected_blocks(model, talk, mtp_jax.Threshold(after))
    page.choose("ctc")
    assert "with ctc" in page.decoded()
    assert (page.blocks(), page["calls"].text) == ([], "0")
    severe = [line for line in page.browser.get_log("browser") if line["level"] == "SEVERE"]
    assert not severe


def test_the_language_of_a_whisper_is_chosen_and_shown(browser, talk):
    with served(mtp_jax.load(GOLDEN_WHISPER, batch_size=1)) as address:
        page = Page(browser, address)
        languages = page["language"].find_elements("tag name", "option")
        names = [option.text for option in languages]
        assert names[0] == "detected" and "German" in names
        page["language"].send_keys("German")
        page["file"].send_keys(str(talk))
        assert "decoded in" in page.decoded()
        assert page["spoken"].text == "German"


def test_the_page_asks_for_the_key_and_forgets_it_with_the_tab(browser, model, talk):
    key = "0123456789abcdef<&"
    with served(model, ApiKeys([key])) as address:
        page = Page(browser, address)
        assert page["status"].text == "The service asks for its API key."
        assert page["key"].get_attribute("type") == "password"
        for wrong, said in (
            ("x" * 20, "The service does not take this API key"),
            ("schlüssel", "An API key has no spaces"),
        ):
            page["key"].send_keys(wrong)
            page["key"].submit()
            page.until(lambda said=said: page["status"].text.startswith(said))
            assert page["key-form"].is_displayed()
            page["key"].clear()
        page["file"].send_keys(str(talk))  # before there is a right key: it waits for it
        page.until(lambda: not page["stop"].is_displayed())
        assert page["status"].text.startswith("The service does not take this API key")
        page["key"].send_keys(f" {key}")
        page["key"].submit()
        page.until(lambda: page["model"].text == "tiny")
        page.until(lambda: "decoded in" in page["status"].text)
        assert not page["key-form"].is_displayed()
        assert page.blocks() == expected_blocks(model, talk, "verify")
        browser.refresh()
        page.until(lambda: page["model"].text == "tiny")
        assert not page["key-form"].is_displayed()
        options = page.browser.find_elements("css selector", "#strategy option")
        assert len(options) == len(model.strategies)
        page["live"].click()  # the key opens live captions too
        page.until(lambda: page["status"].text.startswith("Listening"))
        page["live"].click()
        page.until(lambda: page["status"].text == "Captions ended.")
        held = "return [document.cookie, ...Object.values(localStorage)].join()"
        assert key not in browser.execute_script(held)
        browser.switch_to.new_window("tab")
        other = Page(browser, address)
        assert other["key-form"].is_displayed()
        browser.close()
        browser.switch_to.window(browser.window_handles[0])


def test_every_strategy_is_there_with_its_sentence(page, model):
    options = page.browser.find_elements("css selector", "#strategy option")
    assert [option.get_attribute("value") for option in options] == list(model.strategies)
    for name in model.strategies:
        page.choose(name)
        assert page["about"].text == registry.get(name).summary
        assert page["tau"].is_enabled() == registry.get(name).takes_tau


def test_the_microphone_records_by_keyboard(page):
    from selenium.webdriver.common.keys import Keys

    page["record"].send_keys(Keys.ENTER)
    page.until(lambda: page["record"].get_attribute("aria-pressed") == "true")
    page.until(lambda: page["status"].text.startswith("Recording, 3"))
    page["record"].send_keys(Keys.SPACE)
    page.until(lambda: page["record"].get_attribute("aria-pressed") == "false")
    page.until(lambda: "s of audio" in page["status"].text)
    assert page.blocks()


def test_captions_grow_while_one_speaks(browser, model):
    """The fake microphone says the talk over and over."""
    with served(Sure.of(model), strategy="auto") as address:
        grow(Page(browser, address))


def grow(page: Page) -> None:
    page.browser.get_log("browser")  # forgets what was logged before
    page["live"].click()
    page.until(lambda: page["live"].get_attribute("aria-pressed") == "true")
    lines = "return [...document.querySelectorAll('#transcript .caption')].map(line =>"
    lines += " ['committed', 'open'].map(kind => line.querySelector('.' + kind).textContent))"
    page.until(lambda: any(open_ for _, open_ in page.browser.execute_script(lines)))
    page.until(lambda: sum(not o and bool(c) for c, o in page.browser.execute_script(lines)) > 1)
    assert int(page["calls"].text) > 0 and int(page["tokens"].text) > 0
    page["live"].click()
    page.until(lambda: page["status"].text == "Captions ended.")
    assert page["live"].get_attribute("aria-pressed") == "false"
    assert all(said and not open_ for said, open_ in page.browser.execute_script(lines))
    severe = [line for line in page.browser.get_log("browser") if line["level"] == "SEVERE"]
    assert not severe


def test_what_the_microphone_heard_goes_before_the_end_of_the_captions(page):
    """A page that is busy has pieces of audio waiting as one clicks."""
    sent = "return sent.map(event => event.type.replace('input_audio_buffer.', ''))"
    page["live"].click()
    page.until(lambda: page["status"].text.startswith("Listening"))
    page.browser.execute_script(
        "window.sent = []; const send = live.socket.send.bind(live.socket);"
        "live.socket.send = text => (sent.push(JSON.parse(text)), send(text));"
        "const until = performance.now() + 1500; while (performance.now() < until);"
        "document.getElementById('live').click()"
    )
    page.until(lambda: page["status"].text == "Captions ended.")
    kinds = page.browser.execute_script(sent)
    assert kinds == ["append"] * (len(kinds) - 1) + ["commit"]
    assert len(kinds) > 10  # pieces of 0.1 s


def test_what_is_no_recording_gets_a_sentence(page, tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("no recording")
    page["file"].send_keys(str(file))
    assert page.decoded().startswith("Notes.txt is damaged or in a format")
    assert page["status"].get_attribute("class") == "wrong"


def test_the_page_fits_a_phone_and_has_a_name_for_every_control(page):
    for width in (360, 1200):
        page.browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500},
        )
        assert page.browser.execute_script(
            "return document.documentElement.scrollWidth <= innerWidth"
        )
    tree = page.browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    names = {
        node["role"]["value"]: node["name"]["value"]
        for node in tree
        if node["role"]["value"] in ("button", "combobox", "slider", "checkbox")
        and not node["ignored"]
    }
    assert names
    assert all(names.values())
    live = page["transcript"].get_attribute("aria-live")
    assert live == "polite"
