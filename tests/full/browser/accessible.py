"""What people who cannot see, or use no mouse, need of a page: names, contrast, and controls that Tab reaches."""

from collections.abc import Iterator
from typing import Any

from playwright.sync_api import Page

ENOUGH = 4.5  # contrast of text to its ground, WCAG 2.2, 1.4.3
SMALLEST = 24  # pixels of what a finger has to hit, WCAG 2.2, 2.5.8
NAMED = frozenset(
    {"button", "checkbox", "combobox", "dialog", "grid", "img", "image", "link", "listbox", "menuitem", "option"}
    | {"radio", "searchbox", "slider", "spinbutton", "switch", "tab", "textbox", "toolbar", "application"}
)
# The ground is the first opaque colour behind a text; pictures do not count.
CONTRASTS = """() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = ([red, green, blue]) => {
    const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = [red, green, blue].map((one) => linear(one / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = numbers(getComputedStyle(at).backgroundColor);
      if ((colour[3] ?? 1) === 1) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const element of document.body.querySelectorAll("*")) {
    const own = [...element.childNodes].filter((one) => one.nodeType === Node.TEXT_NODE);
    const text = own.map((one) => one.data.trim()).join(" ");
    const box = element.getBoundingClientRect();
    if (!text.trim() || box.width < 2 || box.height < 2 || !element.checkVisibility()) continue;
    if (element instanceof SVGElement || element.closest("canvas, script, style, :disabled, option")) continue;
    const [one, two] = [light(numbers(getComputedStyle(element).color)), light(ground(element))];
    found.push([text.trim().slice(0, 60), (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05)]);
  }
  return found;
}"""
FOCUSED = """() => {
  const at = document.activeElement;
  if (!at || at === document.body) return null;
  const style = getComputedStyle(at);
  const shown = (style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0) || style.boxShadow !== "none";
  const name = at.getAttribute("aria-label") || at.textContent.trim() || at.id;
  const number = [...document.querySelectorAll("*")].indexOf(at);
  return { number, name: name.slice(0, 60), tag: at.tagName, shown };
}"""

# Controls and texts of which a corner or the middle is not seen even when they are scrolled to, and small controls.
UNREACHED = """(smallest) => {
  const controls = "button, input, select, a[href], [tabindex='0']";
  const at = document.querySelector("dialog[open]") ?? document.body;
  const found = [];
  for (const element of at.querySelectorAll(`${controls}, p, h1, h2, dt, dd`)) {
    if (!element.checkVisibility() || element.closest(".hidden") || !element.getClientRects().length) continue;
    element.scrollIntoView({ block: "nearest", inline: "nearest" });
    const box = element.getBoundingClientRect();
    if (!box.width || !box.height) continue;
    const name = `${element.tagName} ${element.id || element.textContent.trim().slice(0, 40)}`;
    const [left, right, top, bottom] = [box.left + 3, box.right - 3, box.top + 3, box.bottom - 3];
    const middle = [(left + right) / 2, (top + bottom) / 2];
    const places = [[left, top], [right, top], [left, bottom], [right, bottom], middle];
    const hits = places.map(([x, y]) => document.elementFromPoint(x, y));
    const over = hits.find((hit) => !element.contains(hit));
    if (over !== undefined) found.push(`${name} is under ${over?.id || over?.tagName || "the edge"}`);
    if (element.matches(controls) && Math.min(box.width, box.height) < smallest) found.push(`${name} is small`);
  }
  const { scrollWidth, scrollHeight } = document.documentElement;
  if (scrollWidth > innerWidth || scrollHeight > innerHeight) found.push(`all is ${scrollWidth} x ${scrollHeight}`);
  return found;
}"""


def unnamed(page: Page) -> list[str]:
    """Return the controls and pictures of a page that have no accessible name, as the browser works it out."""
    session = page.context.new_cdp_session(page)
    nodes: list[dict[str, Any]] = session.send("Accessibility.getFullAXTree")["nodes"]
    session.detach()
    shown = [one for one in nodes if not one.get("ignored")]
    found = [one for one in shown if one.get("role", {}).get("value") in NAMED]
    assert len(found) > 3, "there is no page to look at"
    return [str(one["role"]["value"]) for one in found if not one.get("name", {}).get("value", "").strip()]


def faint(page: Page) -> list[tuple[str, str, float]]:
    """Return (scheme, text, contrast) of texts with too little of it, in the light and in the dark scheme."""
    return [(scheme, text, round(contrast, 2)) for scheme, text, contrast in _contrasts(page) if contrast < ENOUGH]


def _contrasts(page: Page) -> Iterator[tuple[str, str, float]]:
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        found = page.evaluate(CONTRASTS)
        assert found, "there is no text to look at"
        yield from ((scheme, text, contrast) for text, contrast in found)
    page.emulate_media(color_scheme="light", reduced_motion="null")


def walked(page: Page, *, most: int = 60) -> list[str]:
    """Press Tab through a page and return the names of what it reaches; each shows that it has the focus."""
    found: dict[int, str] = {}
    for _ in range(most):
        page.keyboard.press("Tab")
        at = page.evaluate(FOCUSED)
        if at is None:
            continue
        if at["number"] in found:
            break
        assert at["shown"], f"nothing shows that {at['tag']} {at['name']!r} has the focus"
        found[at["number"]] = at["name"]
    return list(found.values())


def unreached(page: Page) -> list[str]:
    """Return what nobody can get at in this window: hidden under something, cut off, or too small for a finger."""
    found: list[str] = page.evaluate(UNREACHED, SMALLEST)
    return found
