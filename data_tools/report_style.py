"""The colours and measures of the report: the style sheet in the head of `report_template.py`, also a template."""

STYLE = """\
:root {
  color-scheme: light dark;
  --paper: #faf9f6; --card: #ffffff; --ink: #25282d; --soft: #6c7178; --line: #e4e1da;
  --c0: #4e79a7; --c1: #e39a4c; --c2: #76b0a8; --c3: #cd6a63; --c4: #6f9f5c; --c5: #dcc15b; --c6: #9d7ba6;
  --c7: #e5a3ac; --c8: #8f7461; --c9: #b4b1ab;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #17191c; --card: #1f2226; --ink: #e4e3df; --soft: #9aa0a8; --line: #34383e;
    --c0: #6c99c9; --c9: #77777a;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; padding: 3rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Noto Sans CJK SC", sans-serif;
  -webkit-print-color-adjust: exact; print-color-adjust: exact;
}
main { max-width: 74rem; margin: 0 auto; }
h1 { font-size: 1.75rem; font-weight: 600; letter-spacing: -0.01em; margin: 0 0 0.25rem; }
h2 { font-size: 1.15rem; font-weight: 600; margin: 0 0 0.25rem; }
h3 { font-size: 0.85rem; font-weight: 600; margin: 1.25rem 0 0.35rem; }
p { margin: 0 0 0.9rem; max-width: 48rem; color: var(--soft); }
section { margin-top: 2.75rem; }
bdi, tbody th { overflow-wrap: anywhere; }
.figures, .cards { display: grid; gap: 0.75rem; }
.figures { grid-template-columns: repeat(4, 1fr); margin: 1.5rem 0 0; }
@media (max-width: 40rem) { .figures { grid-template-columns: 1fr 1fr; } }
.figures div, .card {
  display: flex; flex-direction: column; background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 0.8rem 0.9rem; min-width: 0; break-inside: avoid;
}
.figures dd { margin: 0; font-size: 1.35rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.figures dt { color: var(--soft); font-size: 0.8rem; }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-size: 0.84rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.32rem 0.6rem; text-align: right; font-weight: 400; vertical-align: top; }
td, thead th { white-space: nowrap; }
thead th { color: var(--soft); font-size: 0.76rem; vertical-align: bottom; }
thead tr:first-child th { padding-top: 0.6rem; text-align: center; }
tbody tr, tfoot tr { border-top: 1px solid var(--line); break-inside: avoid; }
tfoot { font-weight: 600; }
tfoot th { font-weight: 600; }
th[scope="row"], thead th.first { text-align: left; }
.ledger th[scope="row"] { min-width: 12rem; max-width: 20rem; padding-left: 1.75rem; }
.group { border-left: 1px solid var(--line); }
.zero { color: var(--soft); }
.swatch { display: inline-block; width: 0.7rem; height: 0.7rem; border-radius: 2px; margin-right: 0.3rem; }
.named { position: relative; padding-left: 1.15rem; }
.named .swatch { position: absolute; margin: 0.3rem 0 0 -1.1rem; }
.meters { min-width: 48rem; }
.meters tr:first-child { border-top: 0; }
.meters th { width: 15rem; }
.meters td { width: 6rem; }
.meters td.meter { width: 30%; vertical-align: middle; }
.meter div { height: 0.6rem; min-width: 2px; border-radius: 2px; background: var(--c0); }
.meters td.where {
  width: auto; min-width: 14rem; white-space: normal; text-align: left; color: var(--soft); overflow-wrap: anywhere;
}
.cards { grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); }
.card strong {
  font-weight: 600; font-size: 0.84rem; overflow: hidden; overflow-wrap: anywhere; line-height: 1.35;
  display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 2;
}
.card small { color: var(--soft); font-size: 0.76rem; }
.card small span, .axis { white-space: nowrap; }
.card .bars { height: 3.4rem; margin-top: auto; padding-top: 0.5rem; border-bottom: 1px solid var(--line); }
.axis { display: flex; justify-content: space-between; gap: 1rem; color: var(--soft); font-size: 0.74rem; }
.bars { display: block; width: 100%; height: 3.4rem; overflow: visible; }
.strip .bars { border-bottom: 1px solid var(--line); }
.tall .bars { height: 14rem; }
.legend { display: flex; flex-wrap: wrap; gap: 0.3rem 1.1rem; margin: 0 0 0.9rem; padding: 0; list-style: none; }
.legend li { font-size: 0.84rem; max-width: 22rem; }
.legend span:last-child { color: var(--soft); }
details { margin-top: 1.25rem; }
summary { cursor: pointer; margin-bottom: 0.5rem; }
footer { margin-top: 3rem; border-top: 1px solid var(--line); padding-top: 1rem; }
footer, summary { color: var(--soft); font-size: 0.84rem; }
code { font: 0.92em ui-monospace, "SF Mono", Menlo, Consolas, monospace; overflow-wrap: anywhere; }
{% for colour in range(num_colours) %}
.c{{ colour }} { fill: var(--c{{ colour }}); } .b{{ colour }} { background: var(--c{{ colour }}); }
{% endfor %}
@media print {
  :root { --paper: #ffffff; }
  html { font-size: 11px; }
  body { padding: 0; font-size: 1rem; }
  h2, h3, section > p { break-after: avoid; }
  tfoot { display: table-row-group; }
  .scroll { overflow: visible; }
  .meters { min-width: 0; }
  .ledger { font-size: 0.72rem; }
  .ledger th, .ledger td { padding: 0.2rem 0.3rem; }
  .ledger th[scope="row"] { min-width: 8rem; }
}
"""
