"""How what is optional is installed, from where this package is: no index has it."""

from __future__ import annotations

import json
from importlib import metadata
from urllib.parse import unquote, urlparse


def install_command(extra: str) -> str:
    """The command that installs an optional group of dependencies of this package.

    It names the folder or address that the package was installed from, which pip notes (PEP 610).

    Args:
        extra: the group, such as ``"demo"``.
    """
    try:
        noted = metadata.distribution("bae-lens").read_text("direct_url.json")
        origin = json.loads(noted or "{}")
    except (metadata.PackageNotFoundError, ValueError):
        origin = {}
    url = str(origin.get("url", ""))
    if url.startswith("file://"):
        is_editable = bool(origin.get("dir_info", {}).get("editable"))
        path = unquote(urlparse(url).path)
        return f"pip install {'-e ' if is_editable else ''}'{path}[{extra}]'"
    if url:
        kind = origin.get("vcs_info", {}).get("vcs")
        return f"pip install 'bae-lens[{extra}] @ {f'{kind}+' if kind else ''}{url}'"
    return f"pip install -e '.[{extra}]'  # in a clone of bae-lens"
