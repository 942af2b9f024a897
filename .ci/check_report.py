"""Exits with an error where the report of `reproduce` lacks what it should hold."""

import json
import re
import sys
from pathlib import Path

folder = Path(sys.argv[1])
page = (folder / "index.html").read_text(encoding="utf-8")
results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
print(json.dumps(run, indent=1)[:1500])

problems = []
for name in ("studies", "checks"):
    if not results.get(name):
        problems.append(f"results.json has no {name}")
for check in results["checks"]:
    print(check["name"], check["verdict"], check["control_verdict"])
    if check["verdict"] != "SUPPORTED" or check["control_verdict"] != "VIOLATED":
        problems.append(f"{check['name']}: verdict {check['verdict']}, control {check['control_verdict']}")
    if check["name"] not in page:
        problems.append(f"index.html does not speak of {check['name']}")
if outside := re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', page):
    problems.append(f"index.html is not self-contained: {outside[:3]}")
if "<svg" not in page and "data:image/png" not in page:
    problems.append("index.html has no figure")
for name in ("versions", "device", "seed", "arguments"):
    if name not in json.dumps(run):
        problems.append(f"run.json lacks {name}")
if problems:
    sys.exit("\n".join(problems))
print(f"report of {len(results['studies'])} studies and {len(results['checks'])} checks: complete")
