"""A page in a headless browser: what it logs to its console, and what a probe finds in it."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="neither Chromium nor Google Chrome is installed")

PROBE = """
(() => {
  const shown = [...document.querySelectorAll("main svg")].filter(svg => svg.getClientRects().length);
  const label = svg => svg.getAttribute("aria-label");
  const boxes = svg => [...svg.querySelectorAll("text")].map(text => [text.textContent, text.getBoundingClientRect()]);
  const outside = [], overlapping = [];
  for (const svg of shown) {
    const frame = svg.getBoundingClientRect(), texts = boxes(svg);
    for (const [text, box] of texts)
      if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1
          || box.bottom > frame.bottom + 1) outside.push([label(svg), text]);
    texts.forEach(([first, a], i) => texts.slice(i + 1).forEach(([second, b]) => {
      if (a.left < b.right && b.left < a.right && a.top + 2 < b.bottom && b.top + 2 < a.bottom)
        overlapping.push([label(svg), first, second]);
    }));
  }
  const told = [];
  for (const svg of shown) {
    const zone = svg.querySelector(".zone");
    if (!zone) continue;
    zone.scrollIntoView({ block: "center" });
    const box = zone.getBoundingClientRect();
    const at = { clientX: box.left + 1, clientY: box.top + box.height / 2, bubbles: true };
    zone.dispatchEvent(new PointerEvent("pointermove", at));
    const tip = document.querySelector(".tip"), place = tip.getBoundingClientRect();
    told.push([tip.textContent, place.left >= 0 && place.right <= document.documentElement.clientWidth]);
  }
  document.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape" }));
  const facts = {
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    pictures: shown.length, outside, overlapping, told,
    hidden: document.querySelector(".tip").hidden,
    ground: getComputedStyle(document.body).backgroundColor,
  };
  document.documentElement.dataset.facts = JSON.stringify(facts);
})();
"""


@dataclass(frozen=True, kw_only=True)
class Visit:
    """What came of opening a page: the lines of its console, and what the probe found."""

    console: list[str]
    facts: dict[str, Any]


def visit(page: str, folder: Path, width: int, dark: bool = False) -> Visit:
    """Open a page in a window of a width, under its own content policy, and probe it.

    The policy is widened by the hash of the probe alone, so that what it forbids is still logged as an error.
    """
    assert BROWSER is not None
    digest = base64.b64encode(hashlib.sha256(PROBE.encode()).digest()).decode()
    probed = page.replace("script-src '", f"script-src 'sha256-{digest}' '", 1)
    probed = probed.replace("</body>", f"<script>{PROBE}</script></body>")
    path = folder / "page.html"
    path.write_text(probed, encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0", "--dump-dom"]
    if dark:
        options.append("--blink-settings=preferredColorScheme=0")
    options += [f"--user-data-dir={folder / 'profile'}", f"--window-size={width},900", path.as_uri()]
    done = subprocess.run([BROWSER, *options], capture_output=True, encoding="utf-8", timeout=120, check=True)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    facts = re.search(r'data-facts="([^"]*)"', done.stdout)
    assert facts is not None, "\n".join(console) or done.stderr
    return Visit(console=console, facts=json.loads(html.unescape(facts[1])))
