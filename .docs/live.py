"""The picture of `tt-jax serve`: the embedded model in Chromium, after 16 seconds of video.

Take it on an idle machine: the page shows the frames a second.
"""

import re
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

HERE = Path(__file__).parent / "pages"
SCENES = {10: "a small blue square moving up on a black background", 16: None}


def main() -> None:
    """Starts a server, plays, and writes live.png."""
    command = [sys.executable, "-m", "tt_jax", "serve", "--port", "0", "--cache", "infinity-rope"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            told = (re.search(r"http://\S+", line) for line in server.stdout)
            photograph(next(found[0] for found in told if found))
        finally:
            server.terminate()


def photograph(address: str) -> None:
    """Plays the scenes on the page."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": 1180, "height": 910})
        page.goto(address)
        page.locator("#status[data-state=ready]").wait_for()
        page.click("#go")
        for second, prompt in SCENES.items():
            while int(page.locator("#video").get_attribute("data-frame") or 0) < 16 * second:
                page.wait_for_timeout(100)
            if prompt is not None:
                page.fill("#prompt", prompt)
                page.click("#go")
        page.screenshot(path=HERE / "live.png")
        print(page.inner_text("#numbers"))
        browser.close()


if __name__ == "__main__":
    main()
