"""How a report looks."""

from typing import Final

STYLE: Final = """
body { margin: 0; background: #fafaf8; color: #1c1c1a; font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 24px 20px 48px; }
h1 { font-size: 24px; margin: 8px 0 20px; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 40px 0 12px; border-bottom: 1px solid #dddcd6; padding-bottom: 4px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; background: #fff; }
th { text-align: left; color: #66655f; font-weight: 600; white-space: nowrap; }
th, td { padding: 5px 12px; border-bottom: 1px solid #ecebe6; vertical-align: top; }
td { overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
tr.differs td { background: #fff6dd; }
.samples td { white-space: pre-wrap; max-width: 34em; }
.dot { display: inline-block; width: 9px; height: 9px; border-radius: 50%; margin-right: 8px; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(310px, 1fr)); gap: 16px; }
figure { margin: 0 0 16px; background: #fff; border: 1px solid #ecebe6; padding: 10px 12px; }
.grid figure { margin: 0; }
figcaption { font: 600 13px ui-monospace, monospace; margin-bottom: 4px; }
img { width: 100%; height: auto; display: block; }
details { margin-top: 12px; }
td details { margin: 0; }
details[open] > summary { color: #8a897f; }
summary { cursor: pointer; }
footer { margin-top: 40px; color: #8a897f; font-size: 13px; }
"""
