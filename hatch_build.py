"""The long description of the package: README.md, whose links get their whole address.

A package index shows it far from the files that it links to.
"""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_LINK = re.compile(r"(!?)(\[[^\[\]]*\])\((?!https?://|#)([^)\s]+)\)")


def absolute(markdown: str, home: str) -> str:
    """Markdown whose relative links lead to the files of the repository at `home`, those of pictures to their bytes."""
    return _LINK.sub(lambda link: f"{link[1]}{link[2]}({home}/{'raw' if link[1] else 'blob'}/main/{link[3]})", markdown)


class LongDescription(MetadataHookInterface):
    """What hatchling asks for the fields that pyproject.toml calls dynamic."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add the long description."""
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": absolute(text, metadata["urls"]["Homepage"])}
