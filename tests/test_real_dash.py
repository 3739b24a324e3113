"""Pages with JavaScript, served by the real command, in a real browser: Chromium without a head.

A browser asks for much at once, over several connections, with caching and compression, and complains on its console
when anything comes back broken. It is driven through ChromeDriver's own HTTP interface (W3C WebDriver), which takes
forty lines and no package.
"""

from __future__ import annotations

import contextlib
import importlib.util
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import PATIENCE_S, StartCommand

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
CHROMEDRIVER = shutil.which("chromedriver")
# The name by which WebDriver wraps a reference to an element.
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"

pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif(not (CHROMIUM and CHROMEDRIVER), reason="chromium and chromedriver are not installed"),
]

DASH_APP = """\
from dash import Dash, Input, Output, callback, dcc, html

app = Dash(__name__)
app.layout = html.Div(
    [
        html.Button("Press", id="press"),
        dcc.Input(id="name", value="World"),
        html.P(id="greeting"),
        # The largest thing that Dash sends: a drawing library of some megabytes, fetched when it is needed.
        dcc.Graph(id="graph"),
    ]
)


@callback(Output("greeting", "children"), Output("graph", "figure"), Input("press", "n_clicks"), Input("name", "value"))
def greet(presses, name):
    presses = presses or 0
    return f"Hello, {name}, {presses} times", {"data": [{"y": list(range(presses + 1))}]}
"""


class Browser:
    """One window of a Chromium. Waiting is by asking again until the page says yes."""

    def __init__(self, driver_url: str, profile: Path) -> None:
        self._http = httpx.Client(base_url=driver_url, timeout=PATIENCE_S, trust_env=False)
        flags = [
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
            *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
            *("--no-proxy-server", "--window-size=1000,900", f"--user-data-dir={profile}"),
        ]
        capabilities = {
            "browserName": "chrome",
            "goog:chromeOptions": {"binary": CHROMIUM, "args": flags},
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        session = self._call("POST", "/session", {"capabilities": {"alwaysMatch": capabilities}})
        self._session = f"/session/{session['sessionId']}"

    def _call(self, method: str, path: str, body: object = None) -> Any:
        response = self._http.request(method, path, json=body)
        value = response.json()["value"]
        assert response.status_code == 200, value
        return value

    def close(self) -> None:
        with contextlib.suppress(httpx.HTTPError):
            self._call("DELETE", self._session)
        self._http.close()

    def open(self, url: str) -> None:
        """Go to `url`, and forget what the console has said so far."""
        self.console()
        self._call("POST", f"{self._session}/url", {"url": url})

    def run(self, script: str) -> Any:
        """Return what the body of a JavaScript function returns."""
        return self._call("POST", f"{self._session}/execute/sync", {"script": script, "args": []})

    def wait_until(self, condition: str) -> None:
        """Wait until a JavaScript expression is true."""
        deadline = time.monotonic() + PATIENCE_S
        # The page looks after it has had time for other things.
        while not self.run(f"return new Promise(tell => setTimeout(() => tell(Boolean({condition})), 20))"):
            assert time.monotonic() < deadline, (condition, self.console(), self.run("return document.body.innerText"))

    def _element(self, selector: str) -> str:
        found = self._call("POST", f"{self._session}/element", {"using": "css selector", "value": selector})
        return f"{self._session}/element/{found[ELEMENT]}"

    def click(self, selector: str) -> None:
        self._call("POST", f"{self._element(selector)}/click", {})

    def type(self, selector: str, text: str) -> None:
        self._call("POST", f"{self._element(selector)}/value", {"text": text})

    def console(self) -> list[str]:
        """Return what Chromium found wrong with the page since it was last asked."""
        entries = self._call("POST", f"{self._session}/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] == "SEVERE"]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert CHROMEDRIVER is not None
    driver = subprocess.Popen(
        [CHROMEDRIVER, "--port=0"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert driver.stdout is not None
    browser = None
    try:
        port = next(
            found[1] for line in driver.stdout if (found := re.search(r"started successfully on port (\d+)", line))
        )
        browser = Browser(f"http://127.0.0.1:{port}", tmp_path_factory.mktemp("chromium"))
        yield browser
    finally:
        if browser is not None:
            browser.close()
        driver.terminate()
        driver.wait(PATIENCE_S)
        driver.stdout.close()


def test_a_browser_shows_a_missing_file_on_its_console(browser: Browser, start_command: StartCommand) -> None:
    """What the tests below rely on when they find the console empty."""
    with start_command(f"{Path(__file__).parent / 'apps' / 'hello.py'}:app") as command:
        browser.open(command.url)
        assert browser.run("return document.body.innerText") == "Hello, World!"
        browser.run("return fetch('/missing').then(answer => answer.text())")
        console = browser.console()
    assert any("/missing" in message and "404" in message for message in console)


@pytest.mark.skipif(importlib.util.find_spec("dash") is None, reason="dash is not installed")
def test_a_dash_app_works_in_a_browser(browser: Browser, start_command: StartCommand, tmp_path: Path) -> None:
    (tmp_path / "front.py").write_text(DASH_APP)
    greeting = "document.querySelector('#greeting')?.innerText"
    with start_command("front:app", directory=tmp_path) as command:
        browser.open(command.url)
        browser.wait_until(f"{greeting} == 'Hello, World, 0 times'")
        browser.click("#press")
        browser.wait_until(f"{greeting} == 'Hello, World, 1 times'")
        browser.type("#name", "!")
        browser.wait_until(f"{greeting} == 'Hello, World!, 1 times'")
        browser.wait_until("document.querySelector('#graph .trace')")
        console = browser.console()
    assert console == []
    statuses = re.findall(r'" (\d{3}) ', command.access_log.read_text())
    assert set(statuses) <= {"200", "304"}
    assert len(statuses) > 10


def test_the_demo_works_in_a_browser(browser: Browser, start_command: StartCommand, tmp_path: Path) -> None:
    def text(selector: str) -> str:
        return f"document.querySelector('{selector}').innerText"

    with start_command("demo", directory=tmp_path) as command:
        browser.open(command.url)
        browser.wait_until(f"{text('#clock [role=status]')}.startsWith('event 2 ')")
        browser.click("#slow button")
        browser.click("#echo button")
        browser.wait_until(f"{text('#echo pre')}.includes('<b>bold?</b>')")
        browser.wait_until("document.querySelectorAll('#slow li').length == 4")
        browser.wait_until(f"{text('#slow ol')}.match(/answered after/g)?.length == 4")
        assert browser.console() == []

        # Refused by the app while it arrives; Chromium reports that, and the page has the answer to show.
        browser.click("#upload .script")
        browser.wait_until(f"{text('#upload [role=status]')}.startsWith('413 ')")
        assert [message for message in browser.console() if "413" not in message] == []
        # A drain waits for a stream that somebody reads, and this one lasts a minute.
        browser.click("#clock button")
        browser.wait_until(f"{text('#clock [role=status]')}.startsWith('stopped')")
