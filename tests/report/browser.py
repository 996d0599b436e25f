"""Pages opened in a real browser, with everything that they write to the console or ask of the network."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
MISSING = "no Chromium on this machine to open the page with"
PATIENCE = 180_000  # milliseconds for whatever a browser does on a busy machine
DESKTOP, PHONE = (1440, 900), (390, 844)
AXE_TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]


@dataclass
class Opened:
    """A page in the browser. `said`: console messages and errors. `asked`: requests for anything but the page."""

    page: object
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def violations(self, part: str = "body") -> list[str]:
        """What axe finds in a part of the page, a line each."""
        source = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
        self.page.evaluate(source)
        options = {"runOnly": {"type": "tag", "values": AXE_TAGS}, "resultTypes": ["violations"]}
        found = self.page.evaluate(f"axe.run({json.dumps(part)}, {json.dumps(options)})")["violations"]
        return [f"{rule['id']}: {node['target']} {node['failureSummary']}" for rule in found for node in rule["nodes"]]


@contextmanager
def chromium() -> Iterator[object]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"], timeout=PATIENCE
        )
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(
    browser, page: Path, address: str = "", size: tuple[int, int] = DESKTOP, theme: str = "light"
) -> Iterator[Opened]:
    """The page after its scripts ran, in a context of its own."""
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]}, color_scheme=theme, reduced_motion="reduce"
    )
    context.set_default_timeout(PATIENCE)
    try:
        found = Opened(context.new_page())
        found.page.on("console", lambda message: found.said.append(f"{message.type}: {message.text}"))
        found.page.on("pageerror", lambda error: found.said.append(f"error: {error}"))
        found.page.on("request", lambda request: found.asked.append(request.url))
        found.page.goto(f"{page.as_uri()}{address}")
        found.asked = [url for url in found.asked if not url.startswith(("data:", page.as_uri()))]
        yield found
    finally:
        context.close()


def fragment(page) -> str:
    """What stands behind the # as the page has it: what Playwright knows of it may come later."""
    return page.evaluate("location.hash.slice(1)")
