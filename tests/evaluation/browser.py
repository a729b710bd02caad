"""A headless Chromium that looks at a page: a picture, the console, and what was requested."""

import html
import json
import re
import shutil
import struct
import subprocess
import zlib
from dataclasses import dataclass
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-extensions", "--disable-default-apps",
    # Whatever the browser or a page asks for, nothing but this machine can be found.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)  # fmt: skip
DARK, LIGHT = 0, 1  # values of blink's preferredColorScheme
PHONE = 390
# Widths of the page and of every table and card, read in the frame of a phone's width.
MEASURE = """<script>
addEventListener('load', () => {
  const frame = document.querySelector('iframe'), inside = frame.contentDocument;
  const wide = [...inside.querySelectorAll('body *')].filter(
    e => e.getBoundingClientRect().right > innerWidthOf(frame) + 1 && !e.closest('.scroll table'));
  document.querySelector('#found').textContent = JSON.stringify({
    width: frame.contentWindow.innerWidth, page: inside.documentElement.scrollWidth,
    height: inside.documentElement.scrollHeight,
    wide: wide.slice(0, 5).map(e => e.tagName + '.' + e.getAttribute('class'))});
});
function innerWidthOf(frame) { return frame.contentWindow.innerWidth; }
</script>"""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a run of the browser showed."""

    picture: bytes
    console: list[str]
    requested: list[str]


def find() -> str | None:
    """The browser's path; None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def look(page: Path, folder: Path, *, scheme: int = LIGHT, size: str = "1200,2400") -> Seen:
    """Opens a page and takes its picture.

    Args:
        page: the HTML file.
        folder: for the picture (``page's stem-scheme.png``) and the log of the network.
        scheme: what `prefers-color-scheme` answers.
        size: of the window, width and height.
    """
    name = f"{page.stem}-{'dark' if scheme == DARK else 'light'}-{size.partition(',')[0]}"
    picture, log = folder / f"{name}.png", folder / f"{name}.json"
    told = _run(
        folder, f"--blink-settings=preferredColorScheme={scheme}", f"--window-size={size}",
        "--enable-logging=stderr", "--v=0", f"--log-net-log={log}", f"--screenshot={picture}",
        page.as_uri(),
    ).stderr  # fmt: skip
    console = [line for line in told.splitlines() if re.search(r":CONSOLE[:(]", line)]
    return Seen(picture=picture.read_bytes(), console=console, requested=requests_of(log))


def requests_of(log: Path) -> list[str]:
    """The addresses that a page asked for, by the browser's own log of the network.

    What the browser itself asks for (updates) has no page as its origin and is left out.
    """
    found = json.loads(log.read_text(encoding="utf-8"))
    kind = found["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    asked = [item.get("params", {}) for item in found["events"] if item["type"] == kind]
    return [
        item["url"] for item in asked if item.get("initiator", "not an origin") != "not an origin"
    ]


def on_a_phone(page: Path, folder: Path) -> dict:
    """Widths of the page in a frame as wide as a phone, which no window of a desktop is."""
    framed = frame(page, folder)
    dom = _run(folder, "--window-size=500,900", "--dump-dom", framed.as_uri()).stdout
    return json.loads(html.unescape(re.search(r'id="found">(.*?)</pre>', dom, re.S)[1]))


def frame(page: Path, folder: Path, height: int = 2400) -> Path:
    """A file that shows the page in a frame of `PHONE` pixels, and measures it."""
    inside = html.escape(page.read_text(encoding="utf-8"), quote=True)
    path = folder / f"{page.stem}-framed.html"
    path.write_text(
        f'<!doctype html><meta charset="utf-8"><body style="margin:0">'
        f'<iframe style="border:0;display:block" width="{PHONE}" height="{height}" '
        f'srcdoc="{inside}"></iframe><pre id="found"></pre>{MEASURE}',
        encoding="utf-8",
    )
    return path


def run_script(page: Path, folder: Path, *flags: str) -> str:
    """The document of a page after its scripts ran."""
    return _run(folder, *flags, "--dump-dom", page.as_uri()).stdout


def _run(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [find(), *FLAGS, f"--user-data-dir={folder / 'profile'}", *arguments],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip


def size_and_corner(picture: bytes) -> tuple[int, int, tuple[int, int, int]]:
    """Width, height and the colour of the first pixel of a PNG with 8 bits a channel."""
    width, height = struct.unpack(">II", picture[16:24])
    data, at = b"", 8
    while at < len(picture):
        (length,) = struct.unpack(">I", picture[at : at + 4])
        if picture[at + 4 : at + 8] == b"IDAT":
            data += picture[at + 8 : at + 8 + length]
        at += length + 12
    # Of the first pixel every filter adds 0: there is nothing above it and nothing to its left.
    red, green, blue = zlib.decompress(data)[1:4]
    return width, height, (red, green, blue)
