"""The configuration speaks of folders that exist, and the documentation of names that exist."""

import importlib
import inspect
import re
import tomllib
from pathlib import Path

import pytest

import ntk_robust

ROOT = Path(__file__).parents[1]
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = [name for name in ntk_robust.__all__ if name != "__version__"]


def missing_modules(names: list[str], root: Path = ROOT) -> list[str]:
    """Dotted names that are neither a package nor a file under `root`."""
    paths = [root / name.replace(".", "/") for name in names]
    return [
        name
        for name, path in zip(names, paths, strict=True)
        if not (path.is_dir() or path.with_suffix(".py").is_file())
    ]


def named_by_import_linter(contracts: list[dict]) -> list[str]:
    """Every module of the project that the contracts name."""
    names: list[str] = []
    for contract in contracts:
        names += contract.get("containers", []) + contract.get("source_modules", [])
        for layer in contract.get("layers", []):
            names += [f"{contract['containers'][0]}.{part.strip()}" for part in layer.split("|")]
    return names


def documented(page: Path) -> set[str]:
    """The members listed on an API page."""
    return set(re.findall(r"^ +- ([A-Za-z_]\w*)$", page.read_text(), flags=re.MULTILINE))


def test_the_folders_that_pyright_and_import_linter_name_exist():
    assert missing_modules(CONFIG["tool"]["pyright"]["include"]) == []
    named = named_by_import_linter(CONFIG["tool"]["importlinter"]["contracts"])
    assert len(named) > 10
    assert missing_modules(named) == []


def test_a_folder_that_is_gone_would_be_noticed():
    contract = {"containers": ["ntk_robust"], "layers": ["cli | gone", "_core"]}
    assert missing_modules(named_by_import_linter([contract])) == ["ntk_robust.gone"]


def test_every_package_is_in_a_layer_and_offered_lazily():
    folders = {path.parent.name for path in (ROOT / "ntk_robust").glob("*/__init__.py")}
    layers = next(c for c in CONFIG["tool"]["importlinter"]["contracts"] if c["type"] == "layers")["layers"]
    assert {part.strip() for layer in layers for part in layer.split("|")} == folders
    assert set(PACKAGES) == folders - {"_core", "cli"}


@pytest.mark.parametrize("package", PACKAGES)
def test_the_api_page_lists_exactly_the_public_names(package):
    public = set(importlib.import_module(f"ntk_robust.{package}").__all__)
    assert documented(ROOT / "docs" / "api" / f"{package}.md") == public


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_has_a_docstring(package):
    module = importlib.import_module(f"ntk_robust.{package}")
    undocumented = [
        name
        for name in module.__all__
        if inspect.isroutine(getattr(module, name)) or inspect.isclass(getattr(module, name))
        if not (getattr(module, name).__doc__ or "").strip()
    ]
    assert undocumented == []


def test_a_public_name_that_is_missing_from_its_page_would_be_noticed(tmp_path):
    page = tmp_path / "models.md"
    page.write_text("::: ntk_robust.models\n    options:\n      members:\n        - FullyConnected\n")
    assert documented(page) == {"FullyConnected"} != set(ntk_robust.models.__all__)
