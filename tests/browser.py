"""A real browser for tests: Chromium without a head, driven over WebDriver."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support import PATIENCE_S

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
CHROMEDRIVER = shutil.which("chromedriver")
# The name by which WebDriver wraps a reference to an element.
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"

needs_chromium = pytest.mark.skipif(
    not (CHROMIUM and CHROMEDRIVER), reason="chromium and chromedriver are not installed"
)


class Browser:
    """One window of a Chromium. Waiting is by asking again until the page says yes."""

    def __init__(self, driver_url: str, profile: Path, *more: str) -> None:
        self._http = httpx.Client(base_url=driver_url, timeout=PATIENCE_S, trust_env=False)
        flags = [
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
            *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
            *("--no-proxy-server", "--window-size=1000,900", f"--user-data-dir={profile}", *more),
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


@contextlib.contextmanager
def running_browser(profile: Path, *flags: str) -> Iterator[Browser]:
    """Run a browser while a block runs; `flags` are for its command line."""
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
        browser = Browser(f"http://127.0.0.1:{port}", profile, *flags)
        yield browser
    finally:
        if browser is not None:
            browser.close()
        driver.terminate()
        driver.wait(PATIENCE_S)
        driver.stdout.close()
