"""How the report looks: the Jinja template of `report_page.py`. No script, nothing from the network."""

from data_tools.report_style import STYLE

TEMPLATE = (
    """\
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
{% macro text_figures(entry) %}
<td>{{ entry.loss_tokens | count }}</td>
<td>{{ ratio(tokens_of_text(entry), entry.characters, ".3f") }}</td>
<td>{{ ratio(entry.bytes, tokens_of_text(entry), ".2f") }}</td>
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
and {{ row.num_other_categories }} more
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
"""
    + STYLE
    + """</style>
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
{{ figure(ratio(tokens_of_text(manifest), manifest.characters, ".3f"), "tokens a character") }}
{{ figure(ratio(manifest.bytes, tokens_of_text(manifest), ".2f"), "bytes a token") }}
{{ figure(total(manifest.records.refused), "records refused") }}
{{ figure(total(manifest.tokens.dropped), "tokens dropped") }}
</dl>

<section>
<h2>Ledger</h2>
<p>Records read = refused + kept. Tokens in = dropped + in the bins.
{% if is_mixed %}The mixture leaves documents out or repeats them: <em>in bins</em> counts every copy, and
<em>repeated</em> the tokens of second and later copies, which are part of <em>in</em>.
{% endif %}
Ratios are over the text that bears loss, of whole documents.</p>
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
{{ text_figures(entry) }}
</tr>
{% endfor %}
{% if num_unknown %}
<tr><th scope="row" class="named">{{ swatch("none") }}records whose category cannot be read</th>
<td>{{ num_unknown | count }}</td><td>{{ num_unknown | count }}</td><td>0</td>
{% if is_mixed %}<td>0</td>{% endif %}
<td class="group" colspan="20"></td></tr>
{% endif %}
</tbody>
<tfoot>
<tr><th scope="row" class="named">{{ swatch("none") }}All</th>
{{ ledger_cells(manifest.records, manifest.tokens) }}
{{ text_figures(manifest) }}
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
<p>Documents by number of tokens before any is cut, each bar twice as wide a range as the one before, from
{{ shortest | count }} to {{ longest | count }}.
{{ swatch(1) }}At least a whole row ({{ manifest.max_length | count }} tokens).</p>
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
<li class="named">{{ swatch(colour) }}<bdi>{{ name }}</bdi> <span>{{ share }}</span></li>
{% endfor %}
</ul>
{% macro strip(title, drawing, label, kind) %}
<h3>{{ title }}</h3>
<div class="strip {{ kind }}" style="max-width: {{ 2 + 4 * manifest.num_buckets }}rem">
{{ bars(drawing, manifest.num_buckets, label) }}
</div>
{% endmacro %}
{{ strip("Share of each category", composition, "share of each category in each bucket", "tall") }}
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
)
