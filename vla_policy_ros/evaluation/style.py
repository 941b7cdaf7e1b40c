# SPDX-License-Identifier: Apache-2.0
"""The style sheet of the report."""

STYLE = """
:root { color-scheme: light dark;
  --page: #f5f6f8; --card: #ffffff; --ink: #15181d; --muted: #5b6572; --edge: #e1e5ea; --soft: #f0f2f5;
  --policy: #1f66e5; --truth: #9fabb9; --seam: #8a95a3; --span: #e8f0fd;
  --robot: #c2570c; --start: #e3f3e8; --starved: #fdf0cf; --stopping: #fbe3e1;
  --good: #157347; --good-soft: #e4f4ea; --bad: #bf2a26; --bad-soft: #fce9e8; --warn: #8a5a00; --warn-soft: #fdf3dc; }
@media (prefers-color-scheme: dark) { :root {
  --page: #0e1116; --card: #161a21; --ink: #e7eaee; --muted: #97a1ae; --edge: #272d36; --soft: #1d222a;
  --policy: #62a4ff; --truth: #5d6875; --seam: #6d7885; --span: #182437;
  --robot: #f2a65a; --start: #15291d; --starved: #2f2610; --stopping: #351b1a;
  --good: #4cc38a; --good-soft: #12291e; --bad: #ff7b72; --bad-soft: #331716; --warn: #e0b252; --warn-soft: #2c2310; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif; }
main { max-width: 1200px; margin: 0 auto; padding: 28px 24px 56px; }
h1 { font-size: 26px; line-height: 1.25; margin: 2px 0 6px; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 0 0 2px; letter-spacing: -0.005em; }
h3 { font-size: 14px; margin: 6px 0; font-weight: 600; }
p { margin: 0 0 10px; max-width: 80ch; }
code, pre, .number { font-variant-numeric: tabular-nums; }
code, pre { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: 13px; }
pre { background: var(--soft); border-radius: 6px; padding: 10px 12px; margin: 0 0 14px; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.note { color: var(--muted); font-size: 13.5px; }
section, header { background: var(--card); border: 1px solid var(--edge); border-radius: 10px; padding: 20px 22px;
  margin: 0 0 16px; }
header { border-left: 6px solid var(--bad); }
header.good { border-left-color: var(--good); }
.overline { color: var(--muted); font-size: 13px; }
.head { display: flex; justify-content: space-between; align-items: flex-start; gap: 24px; }
.stamp { font-size: 22px; font-weight: 700; letter-spacing: 0.04em; padding: 6px 16px; border-radius: 8px;
  color: var(--bad); background: var(--bad-soft); white-space: nowrap; }
.stamp.good { color: var(--good); background: var(--good-soft); }
.cards { display: grid; grid-template-columns: repeat(3, 1fr); gap: 12px; margin-top: 16px; }
.card { background: var(--soft); border-radius: 8px; padding: 12px 16px; min-width: 0; }
.card .number { font-size: 28px; font-weight: 650; line-height: 1.2; letter-spacing: -0.02em; }
.card .number small { font-size: 15px; font-weight: 500; color: var(--muted); letter-spacing: 0; }
table { border-collapse: collapse; width: 100%; font-size: 14px; margin-top: 8px; }
th { text-align: left; font-weight: 600; color: var(--muted); font-size: 12.5px; padding: 6px 10px 6px 0;
  border-bottom: 1px solid var(--edge); vertical-align: bottom; }
td { padding: 5px 10px 5px 0; border-bottom: 1px solid var(--edge); vertical-align: top; overflow-wrap: break-word; }
.facts td { overflow-wrap: anywhere; } .facts td:first-child { color: var(--muted); min-width: 9em; }
tr:last-child td { border-bottom: 0; }
th.right, td.right { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.narrow { max-width: 720px; } b { font-weight: 650; }
td.wide { width: 28%; vertical-align: middle; }
th + th, td + td { padding-left: 10px; }
.pill { font-size: 12px; font-weight: 650; padding: 1px 8px; border-radius: 20px; white-space: nowrap;
  color: var(--bad); background: var(--bad-soft); }
.pill.good { color: var(--good); background: var(--good-soft); }
.pill.warn { color: var(--warn); background: var(--warn-soft); }
.meter { position: relative; height: 10px; background: var(--soft); border-radius: 3px; overflow: hidden; }
.meter i { position: absolute; inset: 0 auto 0 0; background: var(--policy); border-radius: 3px; }
.meter.bad i { background: var(--bad); }
.columns > div { min-width: 0; }
.columns { display: grid; grid-template-columns: 1fr 1fr; gap: 16px 32px; align-items: start; }
.columns.after { margin-top: 18px; }
.columns.uneven { grid-template-columns: 7fr 4.4fr; }
.joints { display: grid; grid-template-columns: repeat(3, 1fr); gap: 14px 18px; margin-top: 12px; }
.joints h3 { display: flex; justify-content: space-between; gap: 8px; margin: 0; font-size: 13px; }
.joints h3 span { color: var(--muted); font-weight: 400; font-variant-numeric: tabular-nums; white-space: nowrap; }
.frames { display: grid; grid-template-columns: repeat(auto-fill, minmax(165px, 1fr)); gap: 12px; margin-top: 12px; }
figure { margin: 0; } figure img { display: block; width: 100%; border-radius: 6px; background: var(--soft); }
figcaption { color: var(--muted); font-size: 12.5px; margin-top: 4px; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; color: var(--muted); font-size: 13px; margin-top: 8px; }
.legend svg { width: 26px; height: 10px; margin-right: 6px; vertical-align: 0; }
details { margin-top: 8px; } summary { cursor: pointer; color: var(--muted); font-size: 13.5px; padding: 4px 0; }
.chart { display: block; width: 100%; height: auto; }
.chart text { font-size: 10.5px; fill: var(--muted); font-variant-numeric: tabular-nums; }
.grid { stroke: var(--edge); } .axis { stroke: var(--truth); }
.line { fill: none; stroke-linejoin: round; stroke-linecap: round; stroke-width: 1.6; }
.line.thin { stroke-width: 1.1; }
.line.policy, .dots.policy { stroke: var(--policy); }
.line.truth { stroke: var(--truth); stroke-width: 3.4; }
.line.tail { stroke: var(--policy); stroke-width: 1; opacity: 0.28; }
.dots { stroke-width: 4; stroke-linecap: round; }
.seam { stroke: var(--seam); stroke-width: 1; } .bar { fill: var(--policy); } .span { fill: var(--span); }
.line.robot { stroke: var(--robot); stroke-width: 1.4; stroke-dasharray: 3 9; }
.seam.faint { opacity: 0.18; } .acted { stroke: var(--bad); stroke-width: 1.4; }
.band { stroke: none; } .band.soft_start { fill: var(--start); }
.band.starved { fill: var(--starved); } .band.stopping { fill: var(--stopping); }
.limit { stroke: var(--bad); stroke-width: 1.2; stroke-dasharray: 5 4; }
@media (max-width: 820px) { .columns, .columns.uneven, .cards { grid-template-columns: 1fr; }
  .joints { grid-template-columns: 1fr 1fr; } .head { flex-direction: column-reverse; gap: 8px; } }
@media print { body { background: #fff; } section { break-inside: avoid; } }
"""
