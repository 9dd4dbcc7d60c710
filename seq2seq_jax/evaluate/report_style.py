"""How a report looks: light or dark as the reader's system is, on screens from 360 pixels on, and on paper."""

STYLE = """
:root { color-scheme: light dark; --ink: #1b1d21; --soft: #5a6069; --ground: #ffffff; --raised: #f3f4f6;
  --rule: #d4d7dc; --s0: #1f5fbf; --s1: #b3470b; --s2: #1b7a43; --s3: #8a3fa0; --s4: #6b6212; --s5: #a3264f;
  --mark: #ffe3a3; --mark-ink: #4a3300; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --soft: #a3aab4; --ground: #15171a; --raised: #202429;
  --rule: #3b4048; --s0: #7fb0ff; --s1: #ff9d5c; --s2: #6fcf97; --s3: #d79bea; --s4: #d6cc63; --s5: #ff8fae;
  --mark: #5a4200; --mark-ink: #ffe9bd; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 70rem; background: var(--ground); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.2; } h2 { font-size: 1.2rem; margin-top: 2.5rem; } h3, h4 { font-size: 1rem; }
a { color: var(--s0); } a:focus-visible, summary:focus-visible, .scroll:focus-visible {
  outline: 3px solid var(--s0); outline-offset: 2px; }
.skip { position: absolute; left: -99rem; } .skip:focus { position: static; }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1rem; padding: 0; list-style: none; }
.note, figcaption, caption { color: var(--soft); } caption { text-align: left; padding-bottom: .25rem; }
.scroll { overflow-x: auto; margin: .75rem 0; }
table { border-collapse: collapse; } th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--rule);
  text-align: left; vertical-align: top; overflow-wrap: normal; } th { font-weight: 600; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.charts { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); }
.planes { grid-template-columns: 1fr; } .planes figure { max-width: 46rem; overflow-x: auto; }
.planes svg { min-width: 35rem; }
figure { margin: 0; max-width: 34rem; } figcaption strong { color: var(--ink); display: block; }
svg { width: 100%; height: auto; } svg text { font: 11px system-ui, sans-serif; fill: var(--soft); }
.grid { stroke: var(--rule); stroke-width: 1; } .line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.line.s0 { stroke: var(--s0); } .line.s1 { stroke: var(--s1); stroke-dasharray: 6 3; }
.line.s2 { stroke: var(--s2); stroke-dasharray: 2 3; } .line.s3 { stroke: var(--s3); stroke-dasharray: 9 3 2 3; }
.line.s4 { stroke: var(--s4); stroke-dasharray: 12 4; } .line.s5 { stroke: var(--s5); stroke-dasharray: 4 2 1 2; }
.spread { stroke-width: 1.5; } .spread.s0 { stroke: var(--s0); } .spread.s1 { stroke: var(--s1); }
.spread.s2 { stroke: var(--s2); } .spread.s3 { stroke: var(--s3); } .spread.s4 { stroke: var(--s4); }
.spread.s5 { stroke: var(--s5); } .dot.s2, .bar.s2 { fill: var(--s2); } .dot.s3, .bar.s3 { fill: var(--s3); }
.dot.s4, .bar.s4 { fill: var(--s4); } .dot.s5, .bar.s5 { fill: var(--s5); }
.dot.s0, .bar.s0 { fill: var(--s0); } .dot.s1, .bar.s1 { fill: var(--s1); } .bar.s1 { fill-opacity: .75; }
.entry { margin-right: 1rem; white-space: nowrap; } .key { display: inline-block; width: 1.2rem; height: .4rem;
  margin-right: .4rem; vertical-align: middle; } .key.s0 { background: var(--s0); }
.key.s1 { background: repeating-linear-gradient(90deg, var(--s1) 0 .4rem, transparent .4rem .55rem); }
.key.s2 { background: repeating-linear-gradient(90deg, var(--s2) 0 .2rem, transparent .2rem .4rem); }
.key.s3 { background: repeating-linear-gradient(90deg, var(--s3) 0 .5rem, transparent .5rem .6rem); }
.key.s4 { background: repeating-linear-gradient(90deg, var(--s4) 0 .7rem, transparent .7rem .85rem); }
.key.s5 { background: repeating-linear-gradient(90deg, var(--s5) 0 .25rem, transparent .25rem .35rem); }
.key.point { width: .6rem; height: .6rem; border-radius: 50%; } .key.point.s1 { background: var(--s1); }
.key.point.s2 { background: var(--s2); } .key.point.s3 { background: var(--s3); }
.key.point.s4 { background: var(--s4); } .key.point.s5 { background: var(--s5); }
article { margin: 1rem 0; padding: .75rem 1rem; background: var(--raised); border-radius: .5rem; }
article h4 { margin: 0 0 .4rem; } dl { display: grid; grid-template-columns: minmax(5rem, auto) 1fr; gap: .2rem .8rem;
  margin: 0; } dt { color: var(--soft); } dd { margin: 0; }
@media (max-width: 30rem) { dl { grid-template-columns: 1fr; } dd { margin-bottom: .5rem; } }
.step { display: inline-block; vertical-align: middle; text-align: center; margin: .1rem .15rem; padding: 0 .3rem;
  border: 1px solid currentColor; border-radius: .25rem; line-height: 1.25; } .step span { display: block; }
.step.substitution { color: var(--s1); } .step.deletion { color: var(--s0); } .step.insertion { color: var(--s3); }
.aligned { line-height: 2.1; margin: 0; }
mark { background: var(--mark); color: var(--mark-ink); text-decoration: underline; border-radius: .15rem; }
img { max-width: 100%; height: auto; background: #fff; } summary { cursor: pointer; }
code { font-size: .9em; } @media print { details > * { display: block; } nav { display: none; } }
"""
