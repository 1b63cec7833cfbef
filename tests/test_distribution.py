"""What travels with the package: its description, the files for its image, and what they say about it."""

import re
import runpy
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import defectgen
from defectgen import toml

ROOT = Path(defectgen.__file__).parents[1]
LINK = re.compile(r"(!?)\[[^\[\]]*\]\(([^)\s]+)\)")


@pytest.fixture
def project() -> dict[str, Any]:
    return dict(toml.parse(ROOT / "pyproject.toml").unwrap()["project"])


@pytest.mark.parametrize("page", ["README.md", "examples/README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_to_files(page: str) -> None:
    for _, target in LINK.findall((ROOT / page).read_text(encoding="utf-8")):
        if not target.startswith(("http", "#")):
            assert (ROOT / page).parent.joinpath(target.partition("#")[0]).exists(), target


def test_the_long_description_has_whole_addresses(project: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    hatchling: Any = ModuleType("hatchling.metadata.plugin.interface")  # which only building needs
    hatchling.MetadataHookInterface = object
    monkeypatch.setitem(sys.modules, hatchling.__name__, hatchling)
    hook = runpy.run_path(str(ROOT / "hatch_build.py"))["LongDescription"]()
    hook.root = str(ROOT)
    hook.update(project)
    text, home = project["readme"]["text"], project["urls"]["Homepage"]
    links = LINK.findall(text)
    assert all(target.startswith(("https://", "#")) for _, target in links)
    assert ("!", f"{home}/raw/main/examples/sheet.jpg") in links
    assert ("", f"{home}/blob/main/examples/README.md#control") in links
    assert len(text.splitlines()) == len((ROOT / "README.md").read_text(encoding="utf-8").splitlines())


def test_all_addresses_of_the_project_begin_alike(project: dict[str, Any]) -> None:
    urls = project["urls"]
    assert all(url.startswith(urls["Homepage"]) for url in urls.values())


def test_the_citation_is_of_this_version(project: dict[str, Any]) -> None:
    citation = dict(
        line.split(": ", 1) for line in (ROOT / "CITATION.cff").read_text(encoding="utf-8").splitlines() if ": " in line
    )
    assert citation["version"] == project["version"] == defectgen.__version__
    assert citation["license"] == project["license"]
    assert citation["title"] == project["name"]


def test_the_image_installs_the_pytorch_that_the_package_asks_for(project: dict[str, Any]) -> None:
    (torch,) = (each for each in project["dependencies"] if each.startswith("torch"))
    assert f'"{torch}"' in (ROOT / "Dockerfile").read_text(encoding="utf-8")
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert not {"README.md", "LICENSE", "examples", "weights.toml", "hatch_build.py"} & set(ignored)
