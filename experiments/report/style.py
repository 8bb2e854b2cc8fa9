"""The look of a report in light and dark, narrow and wide, and on paper."""

# Nothing is fetched, and nothing runs.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
CSS = """\
:root {
  color-scheme: light dark;
  --ink: #1b1b1b; --soft: #555; --paper: #fff; --shade: #f4f4f2; --line: #d5d5d0;
  --link: #004f8a; --note: #fff4d6; --note-line: #b07800;
  --figure-ink: #1b1b1b; --figure-muted: #6b6b6b; --figure-paper: #fff;
  --figure-grid: #e2e2e2;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e8e6e1; --soft: #b0aea8; --paper: #16181a; --shade: #212427;
    --line: #3d4145; --link: #8ec5ff; --note: #3a2f12; --note-line: #e0a93a;
    --figure-ink: #e8e6e1; --figure-muted: #a5a39d; --figure-paper: #16181a;
    --figure-grid: #34383b;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: 1.25rem; max-width: 76rem;
  background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  overflow-wrap: break-word;
}
h1, h2, h3 { line-height: 1.25; text-wrap: balance; }
h1 { font-size: 1.9rem; margin: 0.5rem 0 1rem; }
h2 { font-size: 1.4rem; margin: 0 0 0.75rem; }
h3 { font-size: 1.1rem; margin: 1.75rem 0 0.5rem; }
p, ul, ol, pre { margin: 0.6rem 0; }
p, li { max-width: 46rem; }
a { color: var(--link); }
a:focus-visible, summary:focus-visible, .wide:focus-visible {
  outline: 3px solid var(--link); outline-offset: 2px;
}
nav { margin: 2rem 0; padding: 1rem 1.25rem; background: var(--shade);
  border-radius: 0.5rem; }
nav h2 { font-size: 1.1rem; margin: 0; }
nav ol { columns: 20rem; column-gap: 3rem; padding-left: 1.6rem; margin-bottom: 0;
  overflow-wrap: anywhere; }
section { margin-top: 2.5rem; padding-top: 1.5rem; border-top: 1px solid var(--line); }
.wide { overflow-x: auto; margin: 0.9rem 0; }
table { border-collapse: collapse; font-size: 0.9rem; min-width: min(26rem, 100%);
  font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); padding-bottom: 0.4rem; }
th, td { padding: 0.35rem 0.75rem; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
td { min-width: 8rem; max-width: 26rem; }
thead th { vertical-align: bottom; border-bottom: 2px solid var(--soft);
  min-width: 5rem; max-width: 14rem; }
tbody th { font-weight: 600; min-width: 8rem; max-width: 30rem; }
.number { text-align: right; }
td.number { white-space: nowrap; min-width: 4.5rem; max-width: none; }
figure { display: inline-block; vertical-align: top; max-width: 100%;
  margin: 1rem 1.5rem 1rem 0; }
figcaption { color: var(--soft); font-size: 0.9rem; }
.drawing svg { display: block; width: var(--width); max-width: 100%; height: auto;
  min-width: min(var(--width), 38rem); }
figure img { display: block; max-width: 100%; height: auto; min-width: 36rem;
  background: #fff; border-radius: 0.3rem; }
.note { background: var(--note); border-left: 0.3rem solid var(--note-line);
  padding: 0.5rem 0.8rem; border-radius: 0.2rem; }
details { margin: 0.9rem 0; border: 1px solid var(--line); border-radius: 0.4rem;
  padding: 0.3rem 0.8rem; }
summary { cursor: pointer; padding: 0.3rem 0; font-weight: 600; }
pre { background: var(--shade); padding: 0.6rem 0.8rem; border-radius: 0.3rem;
  font-size: 0.875rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.up { font-size: 0.9rem; }
@media (max-width: 36rem) {
  body { padding: 0.8rem; }
  h1 { font-size: 1.5rem; }
  h2 { font-size: 1.25rem; }
  th, td { padding: 0.3rem 0.5rem; }
  tbody th { min-width: 6rem; max-width: 9rem; }
  figure { margin-right: 0; }
}
@media print {
  :root {
    color-scheme: light;
    --ink: #000; --soft: #444; --paper: #fff; --shade: #fff; --line: #bbb;
    --link: #000; --note: #fff; --note-line: #000;
    --figure-ink: #000; --figure-muted: #555; --figure-paper: #fff;
    --figure-grid: #ddd;
  }
  @page { margin: 14mm; }
  body { padding: 0; max-width: none; font-size: 10pt; }
  nav { border: 1px solid var(--line); }
  .up { display: none; }
  .wide { overflow: visible; }
  table { font-size: 7pt; min-width: 0; max-width: 100%; }
  th, td, tbody th, thead th, td.number { min-width: 0; padding: 0.15rem 0.3rem; }
  td, tbody th { overflow-wrap: anywhere; }
  h2, h3 { break-after: avoid; }
  figure, tr, .note { break-inside: avoid; }
  .drawing svg, figure img { min-width: 0; max-width: 13cm; max-height: 20cm; }
  details::details-content { content-visibility: visible; block-size: auto; }
}
"""
