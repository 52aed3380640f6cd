"""Draws docs/measured.svg from the table of speed and memory in README.md: bars for each row that has both programs' figures.

    python benches/plots.py

Needs the standard library only. Run it when the table changes.
"""

import re
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FIGURES = re.compile(r"([\d,]+) tokens/s, ([\d,]+) MiB")
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f; } .small { font-size: 11.5px; fill: #57606a; }
.head { font-weight: 600; } .burnish { fill: #b5541c; } .peft { fill: #9aa4af; }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3; } .small { fill: #9aa4af; } .burnish { fill: #e8824a; } .peft { fill: #57606a; } }
"""
WIDTH, LEFT, BARS, GAP, BAR, ROW, TOP = 920, 330, 200, 80, 11, 44, 58


def rows():
    """The name of each row, and (tokens/s, MiB) of burnish and of PEFT."""
    for line in (ROOT / "README.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        found = [FIGURES.search(cell) for cell in cells[1:3]]
        if len(cells) == 5 and all(found):
            yield cells[0].rstrip(" *").replace("`", ""), [[int(number.replace(",", "")) for number in figures.groups()] for figures in found]


def drawn(table):
    parts = []
    columns = [(LEFT, 0, "tokens a second (more is better)"), (LEFT + BARS + GAP, 1, "peak memory in MiB (less is better)")]
    for x, _, title in columns:
        parts.append(f'<text class="head" x="{x}" y="44">{title}</text>')
    parts.append('<rect class="burnish" x="0" y="12" width="12" height="12"/><text x="18" y="23">burnish</text>')
    parts.append('<rect class="peft" x="90" y="12" width="12" height="12"/><text x="108" y="23">PEFT and PyTorch</text>')
    for number, (name, tools) in enumerate(table):
        y = TOP + number * ROW
        parts.append(f'<text x="0" y="{y + 17}">{escape(name)}</text>')
        for x, which, _ in columns:
            most = max(figures[which] for _, of_row in table for figures in of_row)
            for index, (kind, figures) in enumerate(zip(("burnish", "peft"), tools)):
                length, top = BARS * figures[which] / most, y + index * (BAR + 2)
                parts.append(f'<rect class="{kind}" x="{x}" y="{top}" width="{length:.1f}" height="{BAR}"/>')
                parts.append(f'<text class="small" x="{x + length + 5:.1f}" y="{top + 10}">{figures[which]:,}</text>')
    height = TOP + len(table) * ROW
    what = "Speed and memory of burnish and of PEFT with PyTorch: the table below as bars."
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{what}">'
            f"<title>{what}</title><style>{STYLE}</style>{''.join(parts)}</svg>\n")  # fmt: skip


(ROOT / "docs/measured.svg").write_text(drawn(list(rows())))
