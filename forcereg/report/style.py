"""How a page looks: for wide and narrow windows, for light and dark ones, and on paper."""

STYLE = """
:root { color-scheme: light dark; --text: #1d2129; --quiet: #5b6472; --line: #d9dee5; --back: #ffffff;
  --box: #f5f7f9; --link: #1f5fbf; --bar0: #c3d9f2; --bar1: #86b4e3; --bar2: #3f86cc; --bar3: #14538f; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e7eb; --quiet: #9aa4b2; --line: #3a424d; --back: #15181d;
  --box: #1f242b; --link: #7db1f5; --bar0: #23405f; --bar1: #2f6297; --bar2: #4a90d9; --bar3: #a8d0ff; } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1.5rem clamp(0.8rem, 3vw, 2rem) 4rem; max-width: 76rem; background: var(--back);
  color: var(--text); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 1rem }
h2 { font-size: 1.3rem; margin: 2.5rem 0 0.6rem; padding-top: 0.8rem; border-top: 2px solid var(--line) }
h3 { font-size: 1.05rem; margin: 1.6rem 0 0.5rem }
p { margin: 0.5rem 0; max-width: 50rem }
.quiet { color: var(--quiet); font-size: 0.88rem }
a { color: var(--link) }
nav ul { display: flex; flex-wrap: wrap; gap: 0.2rem 1.2rem; list-style: none; margin: 0; padding: 0 }
dl { display: grid; grid-template-columns: fit-content(35%) minmax(0, 1fr); gap: 0.15rem 1.2rem; margin: 0.5rem 0 }
dt { color: var(--quiet) }
dd { margin: 0 }
dd, td, th, pre, h1, h2, h3, summary, nav a { unicode-bidi: isolate }
.wide { overflow-x: auto; max-width: 100%; margin: 0.6rem 0 }
table { border-collapse: collapse; font-size: 0.88rem; font-variant-numeric: tabular-nums }
th, td { padding: 0.25rem 0.8rem 0.25rem 0; text-align: left; border-bottom: 1px solid var(--line);
  vertical-align: top; overflow-wrap: normal }
td.text { min-width: 4rem; max-width: 36rem; overflow-wrap: break-word }
th { color: var(--quiet); font-weight: 600; vertical-align: bottom }
.number { text-align: right; white-space: nowrap }
th.number { white-space: normal }
td svg { display: block; width: 9rem; height: 0.8rem; margin-top: 0.3rem }
.whole { fill: var(--line) } .bar0 { fill: var(--bar0) } .bar1 { fill: var(--bar1) } .bar2 { fill: var(--bar2) }
.bar3 { fill: var(--bar3) }
figure { margin: 0.8rem 0 }
.large { max-height: 40rem; overflow: auto }
.gallery { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 0 1rem }
.gallery figure { margin: 0.4rem 0 }
img { background: #ffffff; border-radius: 0.3rem }
.fitted img { max-width: 100%; max-height: 40rem; height: auto }
pre { background: var(--box); border-radius: 0.3rem; padding: 0.7rem 0.9rem; overflow: auto; max-height: 30rem;
  font: 0.85rem/1.45 ui-monospace, monospace; margin: 0.5rem 0; overflow-wrap: normal }
.command { white-space: pre-wrap; overflow-wrap: anywhere }
summary { cursor: pointer; color: var(--link); margin: 0.4rem 0 }
@media (max-width: 30rem) { dl { grid-template-columns: minmax(0, 1fr); gap: 0 } dd { margin-bottom: 0.4rem } }
@media print { body { max-width: none; padding: 0; font-size: 10pt } nav { display: none }
  pre { max-height: none; white-space: pre-wrap; overflow-wrap: anywhere } .wide { overflow: visible }
  h2, h3 { break-after: avoid } figure, tr { break-inside: avoid } .large { max-height: none; overflow: visible }
  img, .fitted img { max-width: 100%; max-height: 20cm } }
"""
