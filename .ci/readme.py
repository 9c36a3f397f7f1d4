"README.md from nbs/index.ipynb: the cells one after the other, links turned from the notebook's folder to the root."

import json
import re
from pathlib import Path


def turned(link):
    return link if re.match(r"[a-z]+:|#", link) else link[3:] if link.startswith("../") else "nbs/" + link


def text(cell):
    source = "".join(cell["source"])
    if cell["cell_type"] == "code":
        return f"```python\n{source}\n```"
    source = re.sub(r"\]\(([^)\s]+)\)", lambda m: f"]({turned(m[1])})", source)
    return re.sub(r'src="([^"]+)"', lambda m: f'src="{turned(m[1])}"', source)


root = Path(__file__).resolve().parents[1]
cells = json.loads((root / "nbs/index.ipynb").read_text(encoding="utf-8"))["cells"]
(root / "README.md").write_text("\n\n".join(map(text, cells)) + "\n", encoding="utf-8")
