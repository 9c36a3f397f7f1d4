"""Print the lowest versions that the package admits, as constraints of pip: the lower bounds of settings.ini.

python .ci/lowest.py > lowest.txt && pip install -c lowest.txt -e ".[notebooks,lite,export,stats]" pytest pytest-xdist
pytest-randomly
"""

import re
from configparser import ConfigParser
from pathlib import Path

GROUPS = ("requirements", "notebooks_requirements", "stats_requirements", "export_requirements", "lite_requirements")


def lowest(settings):
    "A line `name==version` for each requirement with a lower bound"
    found = {}
    for group in GROUPS:
        for name, version in re.findall(r"([\w.-]+)>=([\w.]+)", settings[group]):
            found[name] = version
    return [f"{name}=={version}" for name, version in found.items()]


if __name__ == "__main__":
    config = ConfigParser(delimiters=["="])
    config.read(Path(__file__).parent.parent / "settings.ini")
    print("\n".join(lowest(config["DEFAULT"])))
