"""A headless Chromium that shows a page as a reader sees it, and what can be measured of it: overlaps, overflow, contrast."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

_TEXTS = """
const clip = (box, element) => {
  let {left, right, top, bottom} = box;
  for (let around = element; around && around !== document.body; around = around.parentElement) {
    const style = getComputedStyle(around);
    if (style.overflowX === 'visible' && style.overflowY === 'visible') continue;
    const room = around.getBoundingClientRect();
    left = Math.max(left, room.left); right = Math.min(right, room.right);
    top = Math.max(top, room.top); bottom = Math.min(bottom, room.bottom);
  }
  return {left, right, top, bottom};
};
const found = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
for (let node = walker.nextNode(); node; node = walker.nextNode()) {
  if (!node.data.trim() || !node.parentElement.checkVisibility()) continue;
  const range = document.createRange();
  range.selectNodeContents(node);
  for (const box of range.getClientRects()) {
    const seen = clip(box, node.parentElement);
    if (seen.right - seen.left > 1 && seen.bottom - seen.top > 1) found.push({text: node.data.trim(), parent: node.parentElement, ...seen});
  }
}
"""

_OVERLAPS = (
    _TEXTS
    + """
found.sort((a, b) => a.top - b.top);
const pairs = [];
for (let i = 0; i < found.length; i++) {
  for (let j = i + 1; j < found.length && found[j].top < found[i].bottom; j++) {
    const wide = Math.min(found[i].right, found[j].right) - Math.max(found[i].left, found[j].left);
    const high = Math.min(found[i].bottom, found[j].bottom) - found[j].top;
    if (wide > 1 && high > 3) pairs.push([found[i].text, found[j].text, Math.round(wide), Math.round(high)]);
  }
}
return pairs;
"""
)

_OUTSIDE = (
    _TEXTS
    + """
const width = document.documentElement.clientWidth;
const beyond = found.filter(box => box.left < -0.5 || box.right > width + 0.5).map(box => box.text);
if (document.documentElement.scrollWidth > width) beyond.push(`the page is ${document.documentElement.scrollWidth} wide in ${width}`);
return beyond;
"""
)

_FAINT = (
    _TEXTS
    + """
const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
const light = ([r, g, b]) => {
  const part = value => (value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
};
const behind = element => {
  for (; element; element = element.parentElement) {
    const colour = numbers(getComputedStyle(element).backgroundColor);
    if (colour.length === 3 || colour[3] > 0.99) return colour;
  }
  return [255, 255, 255];
};
const faint = new Set();
for (const {text, parent} of found) {
  const [a, b] = [light(numbers(getComputedStyle(parent).color)), light(behind(parent))];
  if ((Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) < 4.5) faint.add(text);
}
return [...faint];
"""
)


class Browser:
    """One browser with one page."""

    def __init__(self, driver: Any) -> None:
        self._driver = driver

    def show(self, page: Path, width: int, scheme: str) -> None:
        """Open a file in a window of this width, in the scheme `light` or `dark`."""
        self._driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self._driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self._driver.get(page.as_uri())

    def unfold(self) -> None:
        """Open everything that is folded."""
        self.run("document.querySelectorAll('details').forEach(d => d.open = true)")

    def run(self, script: str) -> Any:
        """Run a script in the page and return what it returns."""
        return self._driver.execute_script(script)

    def overlaps(self) -> list[Any]:
        """Return the pairs of texts that lie on each other."""
        return list(self.run(_OVERLAPS))

    def outside(self) -> list[str]:
        """Return the texts that stick out of the page."""
        return list(self.run(_OUTSIDE))

    def faint(self) -> list[str]:
        """Return the texts whose contrast is below 4.5, the limit of WCAG AA."""
        return list(self.run(_FAINT))

    def complaints(self) -> list[str]:
        """Return what the browser's console says since it was last asked."""
        return [entry["message"] for entry in self._driver.get_log("browser")]

    def screenshot(self, path: Path) -> None:
        """Write the whole page as an image."""
        shot = self._driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
        path.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def open_browser(profile: Path) -> Iterator[Browser]:
    """Yield a browser; the test is skipped where Chromium, its driver or selenium is missing."""
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or chromedriver is None:
        pytest.skip("chromium and chromedriver are not installed: apt-get install chromium chromium-driver")
    selenium = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: it comes with the extra dev")
    from selenium.webdriver.chrome.service import Service

    options = selenium.ChromeOptions()
    options.binary_location = chromium
    for flag in (*_FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = selenium.Chrome(options=options, service=Service(chromedriver))
    try:
        yield Browser(driver)
    finally:
        driver.quit()
