"""The stylesheet of the report: light and dark, from a phone to a desktop, and on paper."""

CSS = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #1a2230; --muted: #5a6576; --line: #e1e5eb; --accent: #1f6fc4;
  --blue: #2173c6; --orange: #d5690a; --green: #23875f; --hit: #e4f4ec; --hit-ink: #12663f; --code: #f0f2f6;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #10141b; --card: #181e28; --ink: #e6eaf1; --muted: #9ca8ba; --line: #2b3444; --accent: #6fb1f5;
    --blue: #62aaf2; --orange: #f5993f; --green: #4fc08f; --hit: #16382a; --hit-ink: #82ddb0; --code: #202836;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-padding-top: 3.5rem; }
body {
  margin: 0; background: var(--page); color: var(--ink); line-height: 1.5; font-size: 1rem;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans",
    "Liberation Sans", Arial, sans-serif;
}
.wrap { max-width: 68rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding: 2.25rem 0 1.25rem; }
h1 {
  font-size: clamp(1.5rem, 1.1rem + 1.8vw, 2.15rem); line-height: 1.2; margin: 0; letter-spacing: -.015em;
  overflow-wrap: anywhere; text-wrap: balance;
}
h2 { font-size: 1.3rem; line-height: 1.3; margin: 0 0 .6rem; letter-spacing: -.01em; }
h3 { font-size: 1rem; margin: 0 0 .5rem; }
p { margin: -.3rem 0 1rem; }
.small { font-size: .875rem; margin: .6rem 0 0; }
.lead, .intro, figcaption, .muted { color: var(--muted); }
.lead { margin: .5rem 0 0; }
.intro { max-width: 46rem; }
section { padding: 1.75rem 0 .75rem; }
nav { position: sticky; top: 0; z-index: 2; background: var(--page); border-bottom: 1px solid var(--line); }
nav ul {
  display: flex; gap: 1.35rem; margin: 0 auto; list-style: none; overflow-x: auto; scrollbar-width: none;
  white-space: nowrap;
}
nav a { display: block; padding: .7rem 0; color: var(--muted); text-decoration: none; font-size: .925rem; }
nav a:hover, nav a:focus-visible { color: var(--ink); }
a { color: var(--accent); }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; border-radius: 4px; }
.cards {
  display: grid; gap: .75rem; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr));
  margin: 1.25rem 0 0; padding: 0;
}
.card, .panel { background: var(--card); border: 1px solid var(--line); border-radius: .75rem; }
.card { padding: .85rem 1rem; margin: 0; display: flex; flex-direction: column; }
.card dt { color: var(--muted); font-size: .85rem; }
.card dd {
  margin: 0; font-size: 1.6rem; font-weight: 650; letter-spacing: -.02em;
  font-variant-numeric: tabular-nums; line-height: 1.25;
}
.cards .card .note {
  color: var(--muted); font-size: .8rem; font-weight: 400; letter-spacing: 0; line-height: 1.35;
  margin-top: .15rem;
}
.cards.small { grid-template-columns: repeat(auto-fit, minmax(8rem, 1fr)); margin: .5rem 0 1rem; }
.cards.small dd { font-size: 1.15rem; }
.grid { display: grid; gap: 1rem; }
.two { grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr)); }
.stack { display: grid; gap: 1rem; grid-template-columns: minmax(0, 1fr); }
.stack > .cards { margin: 0; }
.facts { display: grid; grid-template-columns: auto minmax(0, 1fr); margin: 0; font-size: .9rem; }
.facts > * { margin: 0; padding: .3rem 0; border-bottom: 1px solid var(--line); }
.facts > :nth-last-child(-n + 2) { border-bottom: 0; }
.facts dd {
  text-align: right; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; padding-left: 1rem;
}
.panel { padding: 1rem 1.1rem; margin: 0; min-width: 0; }
figure { margin: 0; }
figure h3 { margin-bottom: .35rem; }
figcaption { font-size: .875rem; margin-top: .5rem; }
.plot { overflow-x: auto; }
.plot svg { display: block; width: 100%; height: auto; font-family: inherit; }
.plot svg * { stroke-linejoin: round; }
.plot svg image { image-rendering: pixelated; }
.wide .plot svg { min-width: 40rem; }
.table { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: 0 0 .4rem; font-size: 1rem; }
caption .muted { font-weight: 400; font-size: .875rem; display: block; }
th, td {
  padding: .38rem .65rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top;
}
th:first-child, td:first-child { padding-left: 0; }
th:last-child, td:last-child { padding-right: 0; }
thead th { color: var(--muted); font-weight: 500; white-space: nowrap; }
tbody th { font-weight: 500; }
tbody tr:last-child > * { border-bottom: 0; }
tfoot > tr > * { border-top: 1px solid var(--line); border-bottom: 0; font-weight: 600; }
.num { text-align: right; white-space: nowrap; }
.group > * { border-top: 2px solid var(--line); }
code, pre, .mono {
  font-family: ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace; font-size: .86em;
}
code, .mono { overflow-wrap: anywhere; }
pre {
  background: var(--code); border-radius: .5rem; padding: .85rem 1rem; margin: .5rem 0;
  white-space: pre-wrap; overflow-wrap: anywhere; font-size: .875rem;
}
details { background: var(--card); border: 1px solid var(--line); border-radius: .75rem; margin: .75rem 0; }
summary { padding: .75rem 1.1rem; cursor: pointer; font-weight: 600; }
summary .muted { font-weight: 400; }
details > .inside { padding: 0 1.1rem 1rem; }
.example header {
  padding: 0 0 .5rem; display: flex; flex-wrap: wrap; gap: .25rem .6rem; align-items: baseline;
  justify-content: space-between;
}
.example h3 { margin: 0; overflow-wrap: anywhere; }
.example h4 {
  font-size: .78rem; font-weight: 600; text-transform: uppercase; letter-spacing: .05em;
  color: var(--muted); margin: .9rem 0 .3rem;
}
.example ol { list-style: none; margin: 0; padding: 0; font-size: .9rem; }
.example li {
  padding: .22rem .5rem; margin: 0 -.5rem; border-radius: .4rem; display: flex; gap: .6rem;
  line-height: 1.4;
}
.example li > :first-child {
  color: var(--muted); min-width: 1.4rem; text-align: right; flex: none;
  font-variant-numeric: tabular-nums;
}
.title {
  flex: 1; min-width: 0; overflow-wrap: anywhere; display: -webkit-box; -webkit-box-orient: vertical;
  -webkit-line-clamp: 3; overflow: hidden;
}
.score { color: var(--muted); font-variant-numeric: tabular-nums; flex: none; }
.hit { background: var(--hit); color: var(--hit-ink); font-weight: 600; }
.example li.hit > :first-child, .hit .score { color: inherit; }
.pill {
  font-size: .8rem; padding: .1rem .55rem; border-radius: 1rem; border: 1px solid var(--line);
  color: var(--muted); white-space: nowrap;
}
.pill.hit { border-color: transparent; color: var(--hit-ink); }
.next {
  padding: .5rem .65rem; border-radius: .5rem; background: var(--code); font-size: .9rem;
  overflow-wrap: anywhere;
}
.bar { height: .55rem; border-radius: .3rem; background: var(--blue); min-width: 2px; margin-top: .45rem; }
.bars td:nth-child(3) { width: 45%; }
footer {
  color: var(--muted); font-size: .85rem; padding: 1.5rem 0 3rem; border-top: 1px solid var(--line);
  margin-top: 1.5rem;
}
footer p { margin: .2rem 0; }
@media (max-width: 36rem) {
  .wrap { padding: 0 .9rem; }
  header { padding: 1.4rem 0 1rem; }
  .cards, .cards.small { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: .6rem; }
  .cards > :last-child:nth-child(odd) { grid-column: 1 / -1; }
  .card { padding: .7rem .8rem; }
  .panel { padding: .85rem .85rem; }
  th, td { padding: .35rem .5rem; }
}
@media print {
  :root { color-scheme: light; }
  nav { display: none; }
  .panel, .card, figure { break-inside: avoid; }
}
"""
