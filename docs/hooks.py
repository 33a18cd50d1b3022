"""Adds the pages at the root of the repository to the site, and makes links to and from them work.

A link may name any file of the repository, as on a code host. In the site, it leads to the page of
the file, or to the file in the repository, whose address stands in `pyproject.toml`. Examples of
docstrings become blocks of code.
"""

import logging
import posixpath
import re
import tomllib
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File

log = logging.getLogger("mkdocs.hooks")
_ROOT = Path(__file__).resolve().parents[1]
_PAGES = {
    "README.md": "index.md",
    "BENCHMARKS.md": "BENCHMARKS.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "ARCHITECTURE.md": "ARCHITECTURE.md",
}
"""Files at the root, and the pages of the site that they become."""
_FILES = {page: name for name, page in _PAGES.items()}
_LINK = re.compile(r"```.*?```|`[^`\n]+`|(?<=\]\()(?!\w+:|#)(?P<file>[^)\s#]+)", re.DOTALL)
_TITLE = re.compile(r"^```(\w+) ([\w/.]+)$", re.MULTILINE)
_EXAMPLE = re.compile(r"^Example:\n((?:    .*\n|\n)*(?:    .*\n?))", re.MULTILINE)


def on_config(config: Any) -> None:
    """Take the address of the repository from `pyproject.toml`."""
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    config.repo_url, config.repo_name = project["urls"]["Repository"], project["name"]


def on_files(files: Any, config: Any) -> None:
    """Add the pages at the root of the repository."""
    for name, page in _PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(_ROOT / name)))


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Turn links between files of the repository into links between pages of the site."""
    here = page.file.src_uri
    folder = posixpath.dirname(_FILES.get(here, f"docs/{here}"))

    def link(match: re.Match[str]) -> str:
        if match["file"] is None:
            return match[0]
        file = posixpath.normpath(posixpath.join(folder, match["file"]))
        if not (_ROOT / file).exists():
            log.warning("%s: links to %s, which is not in the repository", here, match["file"])
        if file not in _PAGES and not file.startswith("docs/"):
            return f"{config.repo_url.rstrip('/')}/blob/main/{file}"
        uri = _PAGES.get(file, file.removeprefix("docs/"))
        return posixpath.relpath(uri, posixpath.dirname(here) or ".")

    return _TITLE.sub(r'```\1 title="\2"', _LINK.sub(link, markdown))


class Examples(griffe.Extension):
    """Makes blocks of code of the examples in docstrings."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of an object that was read."""
        if obj.docstring is not None:
            obj.docstring.value = _EXAMPLE.sub(_as_code, obj.docstring.value)


def _as_code(match: re.Match[str]) -> str:
    """Return an example as a block of code; one with results has a section of its own form."""
    if ">>>" in match[1]:
        return f"Examples:\n{match[1]}"
    return f"Example:\n    ```python\n{match[1].rstrip()}\n    ```\n"
