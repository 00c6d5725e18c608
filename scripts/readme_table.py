"""Write the table of layer types into forcereg/layers/README.md, as `forcereg layers --markdown` prints it.

python scripts/readme_table.py
"""

from __future__ import annotations

import re
from pathlib import Path

import forcereg
from forcereg.net.support import markdown

README = Path(__file__).resolve().parents[1] / "forcereg" / "layers" / "README.md"
BETWEEN = re.compile(r"(?<=<!-- forcereg layers --markdown -->\n).*?(?=<!-- end -->)", re.DOTALL)


def main() -> None:
    text = README.read_text(encoding="utf-8")
    README.write_text(BETWEEN.sub(lambda _: markdown(forcereg.layer_types()), text), encoding="utf-8")


if __name__ == "__main__":
    main()
