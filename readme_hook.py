"""Gives the package the README with absolute links, so that they work on a package index."""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_LINK = re.compile(r"(?P<image>!?)(?P<text>\[[^]]*\]\()(?!\w+:|#)(?P<path>[^)]+)")


class ReadmeHook(MetadataHookInterface):
    """Sets `readme` from `README.md` and the address of the repository."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set `readme`; links to files lead to their pages, pictures to the files themselves."""
        address = metadata["urls"]["Repository"].rstrip("/")

        def absolute(match: re.Match[str]) -> str:
            view = "raw" if match["image"] else "blob"
            return f"{match['image']}{match['text']}{address}/{view}/main/{match['path']}"

        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": _LINK.sub(absolute, text),
        }
