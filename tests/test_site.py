"""The documentation as a site, and what people read before they install."""

import importlib.util
import logging
import re
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import udaseg
from udaseg import contrast, losses, models

REPOSITORY = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ADDRESS = PROJECT["urls"]["Repository"]


def hooks():
    pytest.importorskip("mkdocs", reason="needs the extra docs")
    pytest.importorskip("griffe", reason="needs the extra docs")
    spec = importlib.util.spec_from_file_location("hooks", REPOSITORY / "docs/hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rendered(markdown, page):
    page = SimpleNamespace(file=SimpleNamespace(src_uri=page))
    return hooks().on_page_markdown(markdown, page, SimpleNamespace(repo_url=ADDRESS))


def reference(folder="docs/api"):
    pages = (REPOSITORY / folder).glob("*.md")
    return {
        name
        for page in pages
        for name in re.findall(r"^::: udaseg\.(\S+)", page.read_text(encoding="utf-8"), re.M)
    }


def test_the_reference_has_every_public_name():
    listed = reference()
    assert {name for name in listed if "." not in name} == set(udaseg.__all__) - {"__version__"} | {
        "errors"
    }
    for module, short in ((losses, "losses"), (models, "models")):
        names = {name.split(".")[1] for name in listed if name.startswith(f"{short}.")}
        assert names == set(module.__all__), short
    # shared names stand with the losses and networks, and capitals are documented as views
    elsewhere = set(losses.__all__) | set(models.__all__)
    names = {name for name in contrast.__all__ if not name.isupper()} - elsewhere
    assert {name.split(".")[1] for name in listed if name.startswith("contrast.")} == names


def test_links_lead_to_pages_of_the_site_or_to_the_repository(caplog):
    text = "[a](docs/eval.md#b) [c](CHANGELOG.md) [d](recipes/own) `x[0](e.md)` [f](https://g.h)"
    assert rendered(text, "index.md") == (
        f"[a](eval.md#b) [c](CHANGELOG.md) [d]({ADDRESS}/blob/main/recipes/own) `x[0](e.md)` "
        "[f](https://g.h)"
    )
    assert rendered("[a](../../README.md) [b](../eval.md)", "methods/mic.md") == (
        "[a](../index.md) [b](../eval.md)"
    )
    assert not caplog.records


def test_a_link_to_a_missing_file_is_a_warning_which_strict_builds_refuse(caplog):
    with caplog.at_level(logging.WARNING, "mkdocs.hooks"):
        rendered("[a](docs/no_such_page.md)", "index.md")
    assert "docs/no_such_page.md, which is not in the repository" in caplog.text


def test_examples_of_docstrings_become_code():
    examples = hooks().Examples()
    thing = SimpleNamespace(
        docstring=SimpleNamespace(value="Text.\n\nExample:\n    run = f(x)[0]\n")
    )
    examples.on_object(obj=thing)
    assert thing.docstring.value == "Text.\n\nExample:\n    ```python\n    run = f(x)[0]\n    ```\n"
    thing = SimpleNamespace(
        docstring=SimpleNamespace(value="Text.\n\nExample:\n    >>> 1\n    1\n")
    )
    examples.on_object(obj=thing)
    assert thing.docstring.value == "Text.\n\nExamples:\n    >>> 1\n    1\n"


def test_the_citation_names_this_version():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == PROJECT["version"] == udaseg.__version__
    assert citation["license"] == PROJECT["license"]
    assert citation["authors"] == PROJECT["authors"]


def test_the_address_stands_once():
    marked = ADDRESS.removeprefix("https://")
    for path in REPOSITORY.rglob("*"):
        if path.suffix in (".md", ".py", ".yml", ".toml", ".cff", ".ipynb", ".yaml"):
            if {"site", ".venv", ".git", "tests"} & set(path.relative_to(REPOSITORY).parts):
                continue
            times = path.read_text(encoding="utf-8").count(marked)
            assert times == (path.name == "pyproject.toml"), path


def test_pictures_of_the_docs_are_made_by_the_tool():
    made = (REPOSITORY / "docs/images/make.py").read_text(encoding="utf-8")
    for page in (REPOSITORY / "README.md", REPOSITORY / "docs/gallery.md"):
        for name in re.findall(r"!\[[^]]+\]\([^)]*images/([^)]+)\)", page.read_text("utf-8")):
            assert (REPOSITORY / "docs/images" / name).is_file()
            assert f'"{name}"' in made
