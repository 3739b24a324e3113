"""Refusals as clients see them: which form is chosen, and what stands in each."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import threading
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardserve import refusals
from hardserve.pages import ACCEPT_MAX, HTML, JSON, OFFERS, PROBLEM, TEXT, ErrorPages, preferred
from hardserve.protocol import REASONS
from hardserve.refusals import BANNED, RATE_LIMITED, Refusal
from hardserve.settings import ErrorPageSettings, HeaderSettings
from tests.support import PATIENCE_S, switching_often

DECLARED = [value for value in vars(refusals).values() if isinstance(value, Refusal)]
ID = "6616402ce32e6dce"
DATE = "Sun, 22 Nov 2026 15:30:12 GMT"
CHROMIUM = (
    "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8,"
    "application/signed-exchange;v=b3;q=0.7"
)
OLD_EXPLORER = (
    "image/gif, image/jpeg, image/pjpeg, application/x-ms-application, application/xaml+xml, "
    "application/x-ms-xbap, application/vnd.ms-excel, application/vnd.ms-powerpoint, application/msword, */*"
)

CHOSEN = {
    "a client without the field gets text": ("", TEXT),
    "curl, which takes anything, gets text": ("*/*", TEXT),
    "Chromium gets a page": (CHROMIUM, HTML),
    "Firefox gets a page": ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", HTML),
    "Internet Explorer 11, which gives no weights, gets a page": ("text/html, application/xhtml+xml, */*", HTML),
    "an older one, which does not say that it reads HTML, gets text": (OLD_EXPLORER, TEXT),
    "Java, whose weights have no zero, gets a page": ("text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2", HTML),
    "jQuery asking for JSON gets it": ("application/json, text/javascript, */*; q=0.01", JSON),
    "HTTPie asking for JSON gets it": ("application/json, */*;q=0.5", JSON),
    "one that asks for nothing but JSON gets it": ("application/json", JSON),
    "one that knows problem details gets them": ("application/problem+json", PROBLEM),
    "problem details are the better JSON": ("application/json, application/problem+json", PROBLEM),
    "unless they are liked less": ("application/json, application/problem+json;q=0.9", JSON),
    "any type of application is problem details": ("application/*", PROBLEM),
    "any type of text is plain text": ("text/*", TEXT),
    "a tie of text and HTML is text": ("text/html, text/plain", TEXT),
    "a tie of JSON and text is text": ("application/json, text/plain, */*", TEXT),
    "a tie of HTML and JSON is JSON": ("text/html;q=0.5, application/json;q=0.5", JSON),
    "what is named wins over a wildcard of its weight": ("*/*, application/json", JSON),
    "also over half a wildcard": ("text/*, text/html", HTML),
    "but not over a wildcard of more weight": ("text/html;q=0.5, */*", TEXT),
    "the most specific range counts, not the highest weight": ("text/plain;q=0.1, text/*, text/html;q=0.2", HTML),
    "what is refused is not given because of a wildcard": ("text/plain;q=0, */*", PROBLEM),
    "nor because of half of one": ("text/*;q=0, */*;q=0.1", PROBLEM),
    "three decimals count": ("text/html;q=0.801, text/plain;q=0.800", HTML),
    "types have no case": ("Text/HTML", HTML),
    "nor has the name of the weight": ("text/html;Q=0.1, text/plain;Q=0.2", TEXT),
    "blanks may stand around everything": (" \t text/html \t ; \t q=1 \t , \t text/plain ; q=0.5", HTML),
    "empty elements are nothing": (",, , text/html,,", HTML),
    "empty parameters are nothing": ("text/html;;;q=0.5;, text/plain;q=0.1", HTML),
    "other parameters do not matter": ("application/json;charset=utf-8", JSON),
    "wherever the weight stands": ("text/html;q=0.1;level=1, text/plain;q=0.2;x=y", TEXT),
    "of two weights for one type the higher counts": ("text/html;q=0.9, text/plain;q=0.5, text/html;q=0.1", HTML),
    "a comma in quotes separates nothing": ('text/html;x="a,text/plain";q=0.5', HTML),
    "a weight in quotes is in another parameter": ('text/html;x=";q=0", text/plain;q=0.5', HTML),
    "an escaped quote does not end a quoted string": ('text/html;x="\\",text/plain,", image/png', HTML),
    "a quote that nothing closes hides what follows": ('text/html;q=0.5, text/plain;q=0.1;x=", text/plain', HTML),
    "an element whose weight is none is passed over": ("text/html;q=high, application/json;q=0.1", JSON),
    "so is one with something after its weight": ("text/html;q=1x, application/json;q=0.1", JSON),
    "so is one whose weight is negative": ("text/html;q=-1, application/json;q=0.1", JSON),
    "so is one whose weight is empty": ("text/html;q=, application/json;q=0.1", JSON),
    "so is one whose weight is not finite": ("text/html;q=inf, application/json;q=nan", TEXT),
    "so is one in other digits than ASCII": ("text/html;q=\u0661, application/json;q=0.1", JSON),
    "a weight past one is one": ("text/html;q=1.5, text/plain;q=1.0", TEXT),
    "one who accepts none of them gets text": ("image/png, audio/*;q=0.5", TEXT),
    "so does one who refuses all of them": ("*/*;q=0", TEXT),
    "so does one who says nothing but garbage": ("\x00\xff;;;===\"'/,/", TEXT),
    "a type without a slash is garbage": ("html, json", TEXT),
    "half a wildcard at the wrong end is garbage": ("*/html, */json", TEXT),
    "a value of the greatest length is read": ("text/html".ljust(ACCEPT_MAX), HTML),
    "a longer one is not": ("text/html".ljust(ACCEPT_MAX + 1), TEXT),
}


@pytest.mark.parametrize(("accept", "expected"), CHOSEN.values(), ids=CHOSEN)
def test_the_form_is_chosen_by_accept(accept: str, expected: str) -> None:
    assert preferred(accept) == expected


RANGES = st.sampled_from([*OFFERS, "text/*", "application/*", "*/*", "image/png", "TEXT/html"])
WEIGHTS = st.sampled_from(["", ";q=0", ";q=0.000", ";q=0.5", ";q=1", "; Q=0.25", ";level=1;q=.75", ';x=",";q=0.1'])
ELEMENTS = st.builds(str.__add__, RANGES, WEIGHTS)
GARBAGE = st.text(st.sampled_from(" \t;=/*q01.-\\x"), max_size=8).filter(lambda text: "*/*" not in text)
ANYTHING = st.text(st.sampled_from('*/;,="\\ \tq01.plainhtmtext') | st.characters(max_codepoint=0xFF), max_size=600)


@given(accept=ANYTHING | st.lists(ELEMENTS | ANYTHING).map(",".join))
def test_anything_is_answered_in_one_of_the_forms(accept: str) -> None:
    assert preferred(accept) in OFFERS


@given(elements=st.lists(ELEMENTS, max_size=8, unique=True), garbage=st.lists(GARBAGE, max_size=4), seed=st.integers())
def test_neither_order_nor_case_nor_garbage_changes_the_form(
    elements: list[str], garbage: list[str], seed: int
) -> None:
    shuffled = [*elements, *garbage]
    random.Random(seed).shuffle(shuffled)
    assert preferred(" , ".join(shuffled).upper()) == preferred(",".join(elements))


@given(elements=st.lists(ELEMENTS, max_size=8), refused=st.sampled_from(OFFERS[1:]))
def test_a_form_that_a_client_refuses_is_not_given(elements: list[str], refused: str) -> None:
    others = [element for element in elements if not element.lower().startswith(refused)]
    assert preferred(",".join([*others, f"{refused};q=0"])) != refused


HOSTILE = {
    "commas": ",",
    "semicolons": ";",
    "quotes": '"',
    "quotes that close nothing": '"\\',
    "blanks": " ",
    "weights": "*/*;q=1,",
    "parameters": "text/html;a=b;c=d,",
    "digits": "text/html;q=0." + "9" * 400 + ",",
}


@pytest.mark.parametrize("piece", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("length", [ACCEPT_MAX, 16384])
def test_a_hostile_value_costs_little(piece: str, length: int) -> None:
    accept = (piece * length)[:length]
    started = time.thread_time()
    for _ in range(20):
        preferred(accept)
    assert time.thread_time() - started < 0.1  # a hundred times what it takes


# --- responses ---


def parse(answer: bytes) -> tuple[str, dict[str, str], str]:
    """Return the status line, the fields and the body of a response."""
    head, _, body = answer.partition(b"\r\n\r\n")
    status_line, *lines = head.decode("ascii").split("\r\n")
    fields = dict(line.split(": ", 1) for line in lines)
    assert len(fields) == len(lines), "a field stands twice"
    return status_line, fields, body.decode()


def respond(
    refusal: Refusal = refusals.QUEUE_FULL,
    accept: str = "",
    *,
    using: ErrorPages | None = None,
    request_id: str = ID,
    head_only: bool = False,
    close: bool = False,
) -> bytes:
    return (using or ErrorPages()).response(
        refusal, accept=accept, request_id=request_id, date=DATE, head_only=head_only, close=close
    )


@pytest.mark.parametrize("accept", ["", *OFFERS])
@pytest.mark.parametrize("refusal", DECLARED, ids=lambda refusal: refusal.name)
def test_every_refusal_in_every_form(refusal: Refusal, accept: str) -> None:
    status_line, fields, body = parse(respond(refusal, accept))
    assert status_line == f"HTTP/1.1 {refusal.status} {REASONS[refusal.status]}"
    assert fields["Content-Type"].removesuffix("; charset=utf-8") == (accept or TEXT)
    assert int(fields["Content-Length"]) == len(body)
    assert fields["Cache-Control"] == "no-store"
    assert fields["X-Content-Type-Options"] == "nosniff"
    assert fields["Vary"] == "Accept"
    assert fields["X-Request-ID"] == ID
    assert fields["Date"] == DATE
    assert fields.get("Retry-After") == (
        "1" if refusal.status in (429, 503) and refusal not in (BANNED, RATE_LIMITED) else None
    )
    assert "Connection" not in fields
    assert refusal.text in body
    assert body.count(ID) == 1
    assert "{{" not in body


@pytest.mark.parametrize("accept", OFFERS)
def test_head_gets_the_same_without_the_body(accept: str) -> None:
    whole = respond(accept=accept)
    assert respond(accept=accept, head_only=True) == whole[: whole.index(b"\r\n\r\n") + 4]


def test_a_client_is_told_when_its_connection_ends() -> None:
    assert parse(respond(close=True))[1]["Connection"] == "close"


def test_text() -> None:
    _, fields, body = parse(respond(refusals.BODY_TOO_LARGE))
    assert fields["Content-Type"] == "text/plain; charset=utf-8"
    assert body == f"413 Content Too Large\n\nThe request body is too large.\nRequest id: {ID}\n"


@pytest.mark.parametrize("accept", [PROBLEM, JSON])
def test_json(accept: str) -> None:
    _, fields, body = parse(respond(refusals.BODY_TOO_LARGE, accept))
    assert fields["Content-Type"] == accept
    assert json.loads(body) == {
        "type": "about:blank",
        "title": "Content Too Large",
        "status": 413,
        "detail": "The request body is too large.",
        "request_id": ID,
    }


class Page(HTMLParser):
    """What a page is made of; it must be well-formed enough that every element ends."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, list[tuple[str, str | None]]]] = []
        self.style = self.words = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, attrs))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["style"]:
            self.style += data
        else:
            self.words += data


def test_a_page_is_whole_in_itself_and_works_under_its_own_policy() -> None:
    _, fields, body = parse(respond(refusals.BODY_TOO_LARGE, CHROMIUM))
    assert fields["Content-Type"] == "text/html; charset=utf-8"
    page = Page(body)
    assert [line for line in page.words.split("\n") if line] == [
        "413 Content Too Large",
        "Content Too Large",
        "The request body is too large.",
        f"Status 413, request id {ID}",
    ]
    assert {tag for tag, _ in page.seen} == {
        "html", "head", "meta", "title", "style", "body", "h1", "p", "small",
    }  # fmt: skip
    names = {name for _, attributes in page.seen for name, _ in attributes}
    assert names == {"lang", "charset", "name", "content"}, "something that loads, links or acts"
    assert "url(" not in page.style
    assert "light dark" in page.style
    digest = base64.b64encode(hashlib.sha256(page.style.encode()).digest()).decode()
    assert fields["Content-Security-Policy"] == f"default-src 'none'; style-src 'sha256-{digest}'"
    assert "width=device-width" in body


def test_only_a_page_has_a_policy() -> None:
    for accept in (TEXT, PROBLEM, JSON):
        assert "Content-Security-Policy" not in parse(respond(accept=accept))[1]


def test_what_a_refusal_says_is_text_in_every_form() -> None:
    refusal = Refusal("odd", 400, 'Not </p><b>this</b> & "that".', True, "RFC 9110 15.5.1")
    assert refusal.text in Page(parse(respond(refusal, HTML))[2]).words
    assert json.loads(parse(respond(refusal, PROBLEM))[2])["detail"] == refusal.text
    assert refusal.text in parse(respond(refusal))[2]


IDS = {
    "markup": ('<script>alert(\'"&")</script>', "_script_alert_______/script_"),
    "a field of its own": ("a\r\nSet-Cookie: b=c", "a__Set-Cookie:_b=c"),
    "the end of a string": ('"}\\', "___"),
    "what is not ASCII": ("\xe9\u20ac", "__"),
    "too much": ("x" * 10_000, "x" * 128),
    "nothing": ("", ""),
    "all that may be in one": ("09AZaz._:+/=@-", "09AZaz._:+/=@-"),
}


@pytest.mark.parametrize(("given_id", "shown"), IDS.values(), ids=IDS)
@pytest.mark.parametrize("accept", OFFERS)
def test_an_id_is_harmless_whatever_is_in_it(accept: str, given_id: str, shown: str) -> None:
    _, fields, body = parse(respond(accept=accept, request_id=given_id))
    assert fields["X-Request-ID"] == shown
    assert int(fields["Content-Length"]) == len(body)
    if accept in (PROBLEM, JSON):
        assert json.loads(body)["request_id"] == shown
    elif accept == HTML:
        assert Page(body).words.endswith(f"request id {shown}\n\n\n")
    else:
        assert body.endswith(f"Request id: {shown}\n")


# --- what is kept ---


def test_a_client_that_never_repeats_itself_costs_no_memory() -> None:
    using = ErrorPages()
    for number in range(5000):
        respond(accept=f"text/html;x={number}", using=using)
        assert len(using._remembered) <= 256
    respond(accept="text/html".ljust(ACCEPT_MAX + 1), using=using)
    assert max(map(len, using._remembered)) <= ACCEPT_MAX


def test_threads_answer_side_by_side() -> None:
    using, start, wrong = ErrorPages(), threading.Barrier(4), list[str]()
    expected = {(refusal.name, offer): respond(refusal, offer) for refusal in DECLARED for offer in OFFERS}

    def answer(number: int) -> None:
        start.wait(PATIENCE_S)
        for turn in range(10):
            for refusal in DECLARED:
                for offer in OFFERS:
                    accept = f"{offer};x={number % 2}{turn}{refusal.name}"  # two threads each, often
                    if respond(refusal, accept, using=using) != expected[refusal.name, offer]:
                        wrong.append(accept)

    with switching_often():
        threads = [threading.Thread(target=answer, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
    assert not wrong
    assert not any(thread.is_alive() for thread in threads)


# --- custom pages ---


def load(directory: Path, **files: str | bytes) -> ErrorPages:
    """Write and load custom pages; `html_503` is that status's page."""
    entries = []
    for name, content in files.items():
        suffix, _, status = name.partition("_")
        path = directory / f"{status}.{suffix}"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        entries.append(ErrorPageSettings(status=int(status), file=str(path)))
    return ErrorPages.load(entries)


def test_a_custom_page_is_what_those_who_read_html_get(tmp_path: Path) -> None:
    using = load(tmp_path, html_503="<p>Zur\u00fcck um acht: {{ request_id }}")
    _, fields, body = parse(respond(accept=CHROMIUM, using=using))
    assert body == f"<p>Zur\u00fcck um acht: {ID}"
    assert int(fields["Content-Length"]) == len(body.encode())
    assert fields["Content-Type"] == "text/html; charset=utf-8"
    assert "Content-Security-Policy" not in fields, "it may load what its author likes"
    assert fields["X-Content-Type-Options"] == "nosniff"
    assert fields["Retry-After"] == "1"
    for accept in (TEXT, PROBLEM, JSON):
        assert respond(accept=accept, using=using) == respond(accept=accept)


def test_a_custom_page_is_for_every_refusal_of_its_status_and_no_other(tmp_path: Path) -> None:
    using = load(tmp_path, html_503="ours")
    for refusal in DECLARED:
        _, _, body = parse(respond(refusal, HTML, using=using))
        assert (body == "ours") == (refusal.status == 503), refusal


def test_a_status_may_have_a_page_in_every_form(tmp_path: Path) -> None:
    using = load(tmp_path, html_413="page", json_413='{"id": "{{ request_id }}"}', txt_413="text\n")
    shown = {accept: parse(respond(refusals.BODY_TOO_LARGE, accept, using=using)) for accept in OFFERS}
    assert {accept: body for accept, (_, _, body) in shown.items()} == {
        TEXT: "text\n",
        PROBLEM: f'{{"id": "{ID}"}}',
        JSON: f'{{"id": "{ID}"}}',
        HTML: "page",
    }
    # Nobody said that the operator's JSON is problem details.
    assert shown[PROBLEM][1]["Content-Type"] == "application/json"
    assert shown[TEXT][1]["Content-Type"] == "text/plain; charset=utf-8"


MARKS = {
    "as it is documented": ("{{ request_id }}", ID),
    "without blanks": ("{{request_id}}", ID),
    "with tabs": ("{{\trequest_id\t}}", ID),
    "as often as it stands": ("{{ request_id }}{{ request_id }} {{ request_id }}", f"{ID}{ID} {ID}"),
    "not in single braces": ("{ request_id }", "{ request_id }"),
    "no other name": ("{{ request }}", "{{ request }}"),
    "percent signs are what they are": ("100% %s %b %%", "100% %s %b %%"),
    "backslashes too": ("\\1\\g<0>", "\\1\\g<0>"),
    "an empty page": ("", ""),
    "a byte order mark is left out": ("\ufeffpage", "page"),
}


@pytest.mark.parametrize(("content", "shown"), MARKS.values(), ids=MARKS)
def test_the_id_is_put_into_a_custom_page(tmp_path: Path, content: str, shown: str) -> None:
    _, fields, body = parse(respond(accept=HTML, using=load(tmp_path, html_503=content)))
    assert body == shown
    assert int(fields["Content-Length"]) == len(shown.encode())


def test_custom_pages_are_read_once(tmp_path: Path) -> None:
    using = load(tmp_path, html_503="at start")
    (tmp_path / "503.html").unlink()
    assert parse(respond(accept=HTML, using=using))[2] == "at start"


def test_a_suffix_has_no_case(tmp_path: Path) -> None:
    path = tmp_path / "BUSY.HTML"
    path.write_text("busy")
    using = ErrorPages.load([ErrorPageSettings(status=503, file=str(path))])
    assert parse(respond(accept=HTML, using=using))[2] == "busy"


def test_a_page_that_cannot_be_read_is_an_error_at_start(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ErrorPages.load([ErrorPageSettings(status=503, file=str(tmp_path / "none.html"))])


# --- the fields of all responses ---

CONFIGURED = HeaderSettings(
    frame_options="DENY",
    referrer_policy="off",
    permissions_policy="camera=()",
    content_security_policy="default-src 'self'",
    server="hardserve",
)


def test_refusals_have_the_fields_that_all_responses_have(tmp_path: Path) -> None:
    using = ErrorPages({(503, ".html"): b"custom"}, CONFIGURED)
    answers = {accept: parse(respond(refusals.BODY_TOO_LARGE, accept, using=using))[1] for accept in OFFERS}
    answers["custom"] = parse(respond(accept=HTML, using=using))[1]
    answers["turned away"] = parse(using.turned_away(refusals.QUEUE_FULL, DATE))[1]
    for name, fields in answers.items():
        assert fields["X-Content-Type-Options"] == "nosniff"
        assert fields["X-Frame-Options"] == "DENY"
        assert "Referrer-Policy" not in fields
        assert fields["Permissions-Policy"] == "camera=()"
        assert fields["Server"] == "hardserve"
        assert (fields["Content-Security-Policy"] == "default-src 'self'") == (name != HTML), "a page has its own"
    assert answers[HTML]["Content-Security-Policy"].startswith("default-src 'none'; style-src 'sha256-")


def test_they_can_be_left_out() -> None:
    off = HeaderSettings(content_type_options="off", frame_options="off", referrer_policy="off")
    for answer in (respond(using=ErrorPages(headers=off)), ErrorPages(headers=off).turned_away(refusals.BANNED, DATE)):
        assert not {"X-Content-Type-Options", "X-Frame-Options", "Referrer-Policy", "Server"} & parse(answer)[1].keys()


def test_pages_that_are_loaded_have_them_too(tmp_path: Path) -> None:
    using = ErrorPages.load([], CONFIGURED)
    assert parse(respond(using=using))[1]["X-Frame-Options"] == "DENY"


# --- before a request ---


@pytest.mark.parametrize("refusal", DECLARED, ids=lambda refusal: refusal.name)
def test_a_connection_is_turned_away_in_plain_text(tmp_path: Path, refusal: Refusal) -> None:
    using = load(tmp_path, txt_503="custom {{ request_id }}")
    status_line, fields, body = parse(using.turned_away(refusal, DATE))
    assert status_line == f"HTTP/1.1 {refusal.status} {REASONS[refusal.status]}"
    assert body == f"{refusal.status} {REASONS[refusal.status]}\n\n{refusal.text}\n"
    assert int(fields.pop("Content-Length")) == len(body)
    assert fields.pop("Retry-After", None) == (
        "1" if refusal.status in (429, 503) and refusal not in (BANNED, RATE_LIMITED) else None
    )
    assert fields == {
        "Content-Type": "text/plain; charset=utf-8",
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "SAMEORIGIN",
        "Referrer-Policy": "strict-origin-when-cross-origin",
        "Date": DATE,
        "Connection": "close",
    }


def test_it_says_in_a_line_what_it_holds() -> None:
    using = ErrorPages({(503, ".html"): b""})
    respond(using=using)
    assert repr(using) == "<ErrorPages 1 custom, 1 Accept fields remembered>"
