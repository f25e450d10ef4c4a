"""A chart of bars, drawn by hand as SVG: CPU of each proxy as a multiple of what Go's ReverseProxy spends."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from report import Results
    from scenarios import Scenario

SHOWN = ("json-64", "json-1", "sse-500-paced", "sse-64-fast", "upload-50m", "download-200m")
COLUMNS, PANEL, NAMES, BAR, GAP = 2, 480, 165, 14, 7
ROOM = 180  # width of the longest bar; the figures stand behind it
LIMIT = 4.0  # times Go: what is longer is cut, and its figure says how long it would be

# Middle tones on no background: they read on white and on black alike.
INK, OURS, OTHERS = "#76808d", "#2f81f7", "#8b949e"


def draw(results: Results) -> str:
    """Draw one panel for each scenario of SHOWN that was measured, two in a row."""
    plan = {scenario.name: scenario for scenario in results.plan}
    panels = [plan[name] for name in SHOWN if name in plan]
    height = 50 + len(results.proxies) * (BAR + GAP)
    rows = -(-len(panels) // COLUMNS)
    parts = [
        _panel(results, scenario, (index % COLUMNS) * PANEL, (index // COLUMNS) * height)
        for index, scenario in enumerate(panels)
    ]
    width, total = COLUMNS * PANEL, rows * height + 28
    title = "CPU time of the proxy, each as a multiple of what Go's ReverseProxy spends. Shorter is better."
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {total}" width="{width}" height="{total}" '
        f'role="img" font-family="system-ui, sans-serif" font-size="12" fill="{INK}">\n'
        f"<title>{escape(title)}</title>\n" + "\n".join(parts) + "\n"
        f'<text x="8" y="{total - 10}">{escape(title)}</text>\n</svg>\n'
    )


def _panel(results: Results, scenario: Scenario, left: int, top: int) -> str:
    heading = f"{scenario.title}: CPU-us per {scenario.unit}"
    lines = [f'<text x="{left + 8}" y="{top + 22}" font-weight="600">{escape(heading)}</text>']
    for index, one in enumerate(results.proxies):
        lines += _bar(results, scenario, one.name, one.title, left, top + 34 + index * (BAR + GAP))
    return "\n".join(lines)


def _bar(results: Results, scenario: Scenario, name: str, title: str, left: int, top: int) -> list[str]:
    cpu, ratio = results.figure(scenario.name, name, "cpu_us"), results.ratio(scenario.name, name)
    base, start = top + BAR - 3, left + NAMES
    label = f'<text x="{start - 8}" y="{base}" text-anchor="end">{escape(title)}</text>'
    if cpu is None:
        return [label, f'<text x="{start + 4}" y="{base}">not measured</text>']
    length = ROOM * min(ratio or 0, LIMIT) / LIMIT
    colour = OURS if name.startswith("oxy") else OTHERS
    shade = "" if name != "oxy-httpx" else ' fill-opacity="0.6"'
    lines = [label, f'<rect x="{start}" y="{top}" width="{length:.1f}" height="{BAR}" rx="2" fill="{colour}"{shade}/>']
    if ratio and ratio > LIMIT:
        torn = start + length - 14
        lines.append(f'<path d="M{torn} {top - 1}l-5 {BAR + 2}m5 0l5 -{BAR + 2}" stroke="{INK}" stroke-width="1.5"/>')
    figure = f"{cpu:,.0f}" if cpu >= 100 else f"{cpu:.1f}"
    more = f" · {ratio:.2f} x" if ratio and ratio < 10 else f" · {ratio:,.0f} x" if ratio else ""
    return [*lines, f'<text x="{start + length + 6:.1f}" y="{base}">{figure}{more}</text>']
