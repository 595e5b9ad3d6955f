"""The explorer's page in Chromium: the first grid as the browser sees it, what is loaded for it, and its memory."""

import shutil
import sys
from pathlib import Path

_SCREENS = 500  # of the set that are looked at, evenly spaced
_PAUSE_MS = 50  # at each
# All pictures of the grid are there, and the maps over them where a patch is held.
_IS_COMPLETE = """() => {
  const cells = [...document.querySelectorAll("[role=option]")];
  return cells.length > 0 && cells.every((one) => one.querySelector("img").complete);
}"""
_LOADED = """() => {
  const all = [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")];
  const thumbnails = all.filter((one) => one.name.includes("/thumbnail/"));
  const own = all.filter((one) => !one.name.includes("/api/"));
  return {
    thumbnails: thumbnails.length,
    seconds: Math.max(...thumbnails.map((one) => one.responseEnd)) / 1000,
    bytes: own.reduce((sum, one) => sum + one.transferSize, 0),
  };
}"""
_SCROLL = "(share) => { const box = document.getElementById('grid'); box.scrollTop = share * box.scrollHeight; }"


def in_the_browser(address: str) -> list[tuple[str, str]]:
    """Open the page, hold a patch, scroll through the whole set, and return what each took."""
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        sys.exit(
            "--page needs Playwright and a browser: pip install playwright, and apt-get install chromium "
            "(or: playwright install chromium)"
        )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        devices, processes = page.context.new_cdp_session(page), browser.new_browser_cdp_session()

        def complete() -> None:
            while not page.evaluate(_IS_COMPLETE):
                page.wait_for_timeout(20)

        def memory() -> str:
            devices.send("HeapProfiler.collectGarbage")
            heap = devices.send("Runtime.getHeapUsage")["usedSize"] / 2**20
            found = processes.send("SystemInfo.getProcessInfo")["processInfo"]
            own = max(_own_memory(one["id"]) for one in found if one["type"] == "renderer")
            return f"{heap:.1f} MiB of JavaScript, {own:.0f} MiB of its process"

        page.goto(address)
        complete()
        loaded = page.evaluate(_LOADED)
        found = [
            ("first grid in the browser", f"{loaded['seconds']:.2f} s, {loaded['thumbnails']} thumbnails"),
            ("page without images", f"{loaded['bytes'] / 1000:.0f} KB transferred"),
            ("memory of the page at first", memory()),
        ]
        page.locator("#grid [role=option]").first.click()
        for screen in range(_SCREENS + 1):
            page.evaluate(_SCROLL, screen / _SCREENS)
            page.wait_for_timeout(_PAUSE_MS)
        complete()
        page.wait_for_timeout(1000)
        found.append((f"memory of the page after {_SCREENS} screens, a patch held", memory()))
        browser.close()
    return found


def _own_memory(process: int) -> float:
    """Return the anonymous memory of a process, MiB."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 2**10 for line in lines if line.startswith("RssAnon"))
