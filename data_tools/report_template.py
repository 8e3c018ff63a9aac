"""How the report looks: the Jinja template of `report_page.py`. No script, nothing from the network."""

TEMPLATE = """\
{% macro bars(drawn, num_columns, label) %}
<svg class="bars" viewBox="0 0 {{ num_columns * column_width }} 100" preserveAspectRatio="none"
 role="img" aria-label="{{ label }}">
{% for bar in drawn %}
<rect x="{{ bar.x | units }}" y="{{ bar.y | units }}" width="8.5" height="{{ bar.height | units }}"
 class="c{{ bar.colour }}"><title>{{ bar.title }}</title></rect>
{% endfor %}
</svg>
{% endmacro %}
{% macro total(counts) %}{{ counts.values() | sum | count }}{% endmacro %}
{% macro loss(counts) %}
<td{{ ' class="zero"' | safe if not counts.values() | sum }}>{{ total(counts) }}</td>
{% endmacro %}
{% macro many(number, what, plural="") -%}
{{ number | count }} {{ what if number == 1 else plural or what ~ "s" }}
{%- endmacro %}
{% macro swatch(colour) %}<span class="swatch b{{ colour }}"></span>{% endmacro %}
{% macro figure(value, label) %}
<div><dd>{{ value }}</dd><dt>{{ label }}</dt></div>
{% endmacro %}
{% macro text_figures(loss_tokens, characters, bytes) %}
<td>{{ loss_tokens | count }}</td>
<td>{{ ratio(loss_tokens, characters, ".3f") }}</td>
<td>{{ ratio(bytes, loss_tokens, ".2f") }}</td>
{% endmacro %}
{% macro ledger_cells(records, tokens) %}
<td>{{ records.read | count }}</td>
{{ loss(records.refused) }}
<td>{{ records.kept | count }}</td>
{% if is_mixed %}<td>{{ records.placed | count }}</td>{% endif %}
<td class="group">{{ tokens["in"] | count }}</td>
{% if is_mixed %}<td>{{ tokens.repeated | count }}</td>{% endif %}
{{ loss(tokens.dropped) }}
<td>{{ tokens.in_bins | count }}</td>
<td>{{ ratio(tokens.in_bins, manifest.tokens.in_bins, ".1%") }}</td>
{% endmacro %}
{% macro reason_list(reasons, whole) %}
<div class="scroll">
<table class="meters">
{% for row in reasons %}
<tr><th scope="row"><bdi>{{ row.reason | name }}</bdi></th><td>{{ row.count | count }}</td>
<td>{{ ratio(row.count, whole, ".2%") }}</td>
<td class="meter"><div style="width: {{ (100 * row.count / reasons[0].count) | units }}%"></div></td>
<td class="where">{% for name, count in row.categories %}
<bdi title="{{ name | name }}">{{ name | shortened }}</bdi> {{ count | count }}{{ ", " if not loop.last }}
{% endfor %}
{% if row.num_other_categories %}
and {{ many(row.num_other_categories, "more category", "more categories") }}
{% endif %}</td></tr>
{% endfor %}
</table>
</div>
{% endmacro %}
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Prepared dataset: {{ manifest.tokens.in_bins | count }} tokens</title>
<style>
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
</style>
</head>
<body>
<main>
<h1>Prepared dataset</h1>
<p>{{ many(manifest.records.placed, "document") }} of {{ many(ranked | length, "category", "categories") }}
in {{ many(manifest.num_buckets, "bucket") }} of rows of at most {{ manifest.max_length | count }} tokens.</p>
<dl class="figures">
{{ figure(manifest.tokens.in_bins | count, "tokens in the bins") }}
{{ figure(manifest.loss_tokens | count, "of them bear loss") }}
{{ figure(num_rows | count, "rows") }}
{{ figure("{:.2%}".format(manifest.fill), "of their places filled") }}
{{ figure(ratio(manifest.loss_tokens, manifest.characters, ".3f"), "tokens a character") }}
{{ figure(ratio(manifest.bytes, manifest.loss_tokens, ".2f"), "bytes a token") }}
{{ figure(total(manifest.records.refused), "records refused") }}
{{ figure(total(manifest.tokens.dropped), "tokens dropped") }}
</dl>

<section>
<h2>Ledger</h2>
<p>Records read = refused + kept. Tokens in = dropped + in the bins.
{% if is_mixed %}The mixture leaves documents out or repeats them: <em>in bins</em> counts every copy, and
<em>repeated</em> the tokens of second and later copies, which are part of <em>in</em>.
{% endif %}
Ratios are over the text that bears loss.</p>
<div class="scroll">
<table class="ledger">
<thead>
<tr><th></th><th colspan="{{ 4 if is_mixed else 3 }}">Records</th>
<th class="group" colspan="{{ 5 if is_mixed else 4 }}">Tokens</th><th class="group" colspan="3">Text</th></tr>
<tr><th class="first">Category</th><th>read</th><th>refused</th><th>kept</th>
{% if is_mixed %}<th>in bins</th>{% endif %}

<th class="group">in</th>{% if is_mixed %}<th>repeated</th>{% endif %}<th>dropped</th><th>in bins</th><th>share</th>
<th class="group">loss tokens</th><th>tokens/char</th><th>bytes/token</th></tr>
</thead>
<tbody>
{% for name in ranked %}
{% set entry = manifest.categories[name] %}
<tr><th scope="row" class="named">{{ swatch(colours[name] if entry.tokens.in_bins else "none") }}
<bdi>{{ name | name }}</bdi></th>
{{ ledger_cells(entry.records, entry.tokens) }}
{{ text_figures(entry.loss_tokens, entry.characters, entry.bytes) }}
</tr>
{% endfor %}
{% if num_unknown %}
<tr><th scope="row" class="named">{{ swatch("none") }}records whose category cannot be read</th>
<td>{{ num_unknown | count }}</td><td>{{ num_unknown | count }}</td><td>0</td>
<td class="group" colspan="20"></td></tr>
{% endif %}
</tbody>
<tfoot>
<tr><th scope="row" class="named">{{ swatch("none") }}All</th>
{{ ledger_cells(manifest.records, manifest.tokens) }}
{{ text_figures(manifest.loss_tokens, manifest.characters, manifest.bytes) }}
</tr>
</tfoot>
</table>
</div>
</section>

{% if refused %}
<section>
<h2>Refused records, by reason</h2>
<p>Shares are of the {{ manifest.records.read | count }} records that were read.
<code>refused.jsonl</code> names file, line and byte of each.</p>
{{ reason_list(refused, manifest.records.read) }}
</section>
{% endif %}
{% if dropped %}
<section>
<h2>Dropped tokens, by reason</h2>
<p>Shares are of the {{ manifest.tokens["in"] | count }} tokens that came in.</p>
{{ reason_list(dropped, manifest.tokens["in"]) }}
</section>
{% endif %}

<section>
<h2>Length of documents</h2>
<p>Documents by number of tokens, each bar twice as wide a range as the one before, from {{ shortest | count }} to
{{ longest | count }}. {{ swatch(1) }}At least a whole row ({{ manifest.max_length | count }} tokens).</p>
<div class="cards">
{% for card in lengths %}
<div class="card"><strong title="{{ card.name | name }}"><bdi>{{ card.name | name }}</bdi></strong>
<small>{{ many(card.num_documents, "document") }}, <span>median {{ card.median }}</span></small>
{{ bars(card.bars, num_lengths, "documents by length") }}
<div class="axis"><span>{{ shortest | count }}</span><span>{{ longest | count }}</span></div></div>
{% endfor %}
</div>
</section>

<section>
<h2>Buckets</h2>
<p>A bucket is to be a small copy of the whole mixture.
{% if farthest[1] and manifest.num_buckets > 1 %}
The share of a category in a bucket is farthest from its share of all tokens in {{ farthest[1] }}:
<bdi>{{ farthest[2] | shortened }}</bdi>, by {{ "{:.2f}".format(100 * farthest[0]) }} percentage points.
{% endif %}
</p>
<ul class="legend">
{% for colour, name, share in legend %}
<li class="named">{{ swatch(colour) }}<bdi>{{ name | shortened }}</bdi> <span>{{ share }}</span></li>
{% endfor %}
</ul>
{% macro strip(title, drawing, label, kind) %}
<h3>{{ title }}</h3>
<div class="strip {{ kind }}" style="max-width: {{ 2 + 4 * manifest.num_buckets }}rem">
{{ bars(drawing, manifest.num_buckets, label) }}
</div>
{% endmacro %}
{{ strip("Share of each category", composition, "share of each category in each bucket, by tokens", "tall") }}
{{ strip("Tokens: " ~ bucket_tokens.extent, bucket_tokens.bars, "tokens of each bucket", "") }}
{{ strip("Empty places in rows: " ~ bucket_room.extent, bucket_room.bars, "empty places of each bucket", "") }}
<div class="axis" style="max-width: {{ 2 + 4 * manifest.num_buckets }}rem">
<span>{{ manifest.buckets[0].path | name }}</span>
{% if manifest.num_buckets > 1 %}<span>{{ manifest.buckets[-1].path | name }}</span>{% endif %}
</div>
<details>
<summary>Every bucket in figures</summary>
<div class="scroll">
<table>
<thead><tr><th class="first">Bucket</th><th>rows</th><th>documents</th><th>tokens</th><th>loss tokens</th><th>fill</th>
<th>sha256 of the rows</th></tr></thead>
<tbody>
{% for bucket in manifest.buckets %}
<tr><th scope="row">{{ bucket.path | name }}</th><td>{{ bucket.rows | count }}</td>
<td>{{ bucket.documents | count }}</td>
<td>{{ bucket.tokens | count }}</td><td>{{ bucket.loss_tokens | count }}</td>
<td>{{ ratio(bucket.tokens, bucket.rows * manifest.max_length, ".2%") }}</td>
<td><code>{{ bucket.sha256[:12] }}</code></td></tr>
{% endfor %}
</tbody>
</table>
</div>
</details>
</section>

<section>
<h2>Fill of rows</h2>
<p>Rows by the share of their {{ manifest.max_length | count }} places that hold a token; steps without rows are left
out.</p>
<div class="scroll">
<table class="meters">
{% for step, rows in fill_steps %}
<tr><th scope="row">{{ step }}</th><td>{{ many(rows, "row") }}</td><td>{{ ratio(rows, num_rows, ".2%") }}</td>
<td class="meter"><div style="width: {{ (100 * rows / num_rows) | units }}%"></div></td></tr>
{% endfor %}
</table>
</div>
</section>

<footer>
Tokenizer <code>{{ manifest.tokenizer_fingerprint }}</code>, seed {{ manifest.seed }};
{{ many(manifest.files.read, "file") }}
read.
{% if manifest.files.skipped %}
Not read:
{% for suffix, number in manifest.files.skipped.items() %}
{{ number | count }} <bdi>{{ suffix | name }}</bdi>{{ "." if loop.last else "," }}
{% endfor %}
{% endif %}
All figures are those of <code>manifest.json</code>.
</footer>
</main>
</body>
</html>
"""
