"""The examples of README and documentation run as printed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMPUTES_LONG = {"docs/expressiveness.md"}  # longer than it compiles, so that some optimization pays


def code_of(page: Path) -> str:
    """All Python blocks of a page, as one program."""
    return "\n".join(re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL))


PAGES = [
    "docs/expressiveness.md",
    "docs/training.md",
    "docs/attacks.md",
    "README.md",
    "docs/index.md",
    "docs/certificates.md",
    "docs/constructions.md",
    "docs/empirical_kernels.md",
    "docs/gram.md",
    "docs/landscape.md",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(page, marks=pytest.mark.xdist_group(page)) for page in PAGES])
def test_the_code_of_a_page_runs_as_printed(name, tmp_path):
    code = code_of(ROOT / name)
    assert "from ntk_robust import" in code
    program = tmp_path / "example.py"
    program.write_text(code)
    environment = dict(os.environ)
    if name in COMPUTES_LONG:
        environment["XLA_FLAGS"] = environment["XLA_FLAGS"].replace("optimization_level=0", "optimization_level=1")
    command = [sys.executable, "-W", "error", str(program)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert "nan" not in ran.stdout


def test_continuous_integration_calls_the_commands_of_the_readme():
    readme, script = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    for command in ("uv run --group test pytest", "uv run ntk-robust reproduce --profile quick --out "):
        assert f"pip install uv && {command}" in readme
        assert re.search(rf"^{re.escape(command)}", script, flags=re.MULTILINE)
