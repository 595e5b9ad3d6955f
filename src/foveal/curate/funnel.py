"""The flow of a curation as SVG text: a bar for every stage, as long as what is left, and what fell, by reason."""

from collections.abc import Mapping, Sequence
from html import escape

_WIDTH, _LABELS, _BESIDE = 980, 90, 290  # the whole, names on the left, words on the right
_BAR, _GAP = 30, 26
_COLOURS = ("#c2571a", "#8a4fa3", "#a33b4a", "#3c8d5a", "#96701a", "#66727f")


def funnel(num_pool: int, stages: Sequence[tuple[str, int, Mapping[str, int]]]) -> str:
    """Draw what is left after every stage, joined to the next, with what each removed at its end.

    Args:
        num_pool: images at the start.
        stages: name, images kept, and images removed by reason.

    Returns:
        An `<svg>` element.
    """
    scale = (_WIDTH - _LABELS - _BESIDE) / max(num_pool, 1)
    height = (len(stages) + 1) * (_BAR + _GAP)
    parts = [f'<svg class="funnel" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="images after every stage">']
    parts += _row("pool", 0, num_pool, {}, scale)
    before = num_pool
    for number, (name, kept, reasons) in enumerate(stages, 1):
        top = number * (_BAR + _GAP)
        wide, narrow = _LABELS + before * scale, _LABELS + (kept + sum(reasons.values())) * scale
        parts.append(f'<path class="join" d="M{_LABELS} {top - _GAP} H{wide:.1f} L{narrow:.1f} {top} H{_LABELS} Z"/>')
        parts += _row(name, top, kept, reasons, scale)
        before = kept
    return "".join([*parts, "</svg>"])


def _row(name: str, top: int, kept: int, reasons: Mapping[str, int], scale: float) -> list[str]:
    middle = top + _BAR / 2 + 4.5
    width = kept * scale
    inside = width > 9 * len(f"{kept:,}") + 8
    parts = [
        f'<text x="{_LABELS - 10}" y="{middle}" text-anchor="end">{escape(name)}</text>',
        f'<rect class="kept" x="{_LABELS}" y="{top}" width="{width:.1f}" height="{_BAR}"/>',
    ]
    if inside:
        parts.append(f'<text class="inside" x="{_LABELS + 8}" y="{middle}">{kept:,}</text>')
    left = _LABELS + width
    beside = [] if inside else [f"{kept:,} kept"]
    for colour, (reason, count) in zip(_COLOURS * 4, reasons.items(), strict=False):
        share, words = count * scale, f"{count:,} {reason}"
        parts.append(
            f'<rect x="{left:.1f}" y="{top}" width="{share:.1f}" height="{_BAR}" fill="{colour}">'
            f"<title>{escape(words)}</title></rect>"
        )
        if share > 14 + 8 * len(words):
            parts.append(f'<text class="inside" x="{left + 8:.1f}" y="{middle}">{escape(words)}</text>')
        else:
            beside.append(words)
        left += share
    if beside:
        parts.append(f'<text class="beside" x="{left + 8:.1f}" y="{middle}">{escape(", ".join(beside))}</text>')
    return parts
