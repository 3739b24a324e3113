"""Pages with JavaScript, served by the real command, in a real browser: Chromium without a head.

A browser asks for much at once, over several connections, with caching and compression, and complains on its console
when anything comes back broken. It is driven through ChromeDriver's own HTTP interface (W3C WebDriver), which takes
forty lines and no package.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from tests.browser import Browser, needs_chromium
from tests.conftest import StartCommand

pytestmark = [
    pytest.mark.peer,
    needs_chromium,
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
