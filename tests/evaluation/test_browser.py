"""Every report page in a real browser: pictures, a silent console, no request, no sideways scroll.

The checks are first shown to fail on pages that do what they forbid.
"""

import os
from pathlib import Path

import pytest

from tests.evaluation import browser, pages
from tests.evaluation.browser import DARK, LIGHT, PHONE, look, on_a_phone, size_and_corner

pytestmark = pytest.mark.skipif(
    browser.find() is None, reason="no Chromium on PATH: " + ", ".join(browser.NAMES)
)
LIGHT_PAGE, DARK_PAGE = (0xF7, 0xF7, 0xF5), (0x14, 0x17, 0x1A)  # --page of the style sheet
# One kind always; each takes about four seconds.
KINDS = [
    kind if kind == "claims" else pytest.param(kind, marks=pytest.mark.slow) for kind in pages.KINDS
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    kept = os.environ.get("PIPESTILL_SCREENSHOTS")
    return Path(kept) if kept else tmp_path_factory.mktemp("browser")


def _page(folder: Path, name: str, body: str, head: str = "") -> Path:
    path = folder / f"{name}.html"
    path.write_text(f'<!doctype html><meta charset="utf-8">{head}<body>{body}', encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_in_the_browser(kind, folder):
    own = folder / kind
    own.mkdir(parents=True, exist_ok=True)
    page = pages.build(kind, own)
    for scheme, colour in ((LIGHT, LIGHT_PAGE), (DARK, DARK_PAGE)):
        seen = look(page, own, scheme=scheme)
        assert (seen.console, seen.requested) == ([], [])
        assert size_and_corner(seen.picture) == (1200, 2400, colour)
        assert len(seen.picture) > 50_000  # an empty page of this size takes about 10,000
    found = on_a_phone(page, own)
    assert found["width"] == PHONE
    assert (found["page"], found["wide"]) == (PHONE, []), found


def test_what_a_page_requests_is_seen(folder):
    page = _page(folder, "loads", '<img src="http://127.0.0.1:9/x.png" alt="">')
    assert look(page, folder).requested == ["http://127.0.0.1:9/x.png"]


def test_an_error_in_the_console_is_seen(folder):
    rules = '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'">'
    blocked = look(_page(folder, "blocked", "<script>1</script>", rules), folder)
    assert len(blocked.console) == 1
    assert "Content Security Policy" in blocked.console[0]
    assert (
        len(look(_page(folder, "logs", "<script>console.error('x')</script>"), folder).console) == 1
    )


def test_a_page_that_is_too_wide_is_seen(folder):
    wide = _page(folder, "wide", '<div class="broad" style="width:700px">x</div>')
    found = on_a_phone(wide, folder)
    assert found["page"] >= 700
    assert found["wide"] == ["DIV.broad"]
    inside = '<div class="scroll" style="overflow-x:auto"><table style="width:700px"></table></div>'
    narrow = on_a_phone(_page(folder, "scrolls", inside, "<style>body{margin:0}</style>"), folder)
    assert (narrow["page"], narrow["wide"]) == (PHONE, [])


@pytest.mark.parametrize(("scheme", "answer"), [(DARK, "true"), (LIGHT, "false")])
def test_the_colour_scheme_reaches_the_page(folder, scheme, answer):
    script = "document.title = matchMedia('(prefers-color-scheme: dark)').matches"
    page = _page(folder, f"scheme-{scheme}", f"<script>{script}</script>")
    flag = f"--blink-settings=preferredColorScheme={scheme}"
    assert f"<title>{answer}</title>" in browser.run_script(page, folder, flag)
