"""What MkDocs does with these pages that it does not do by itself.

Pages are written to be read on GitHub as well, so their links lead to files of the repository. Here

- the pages in `_PAGES` become pages of the site;
- a link to a file that is no page leads to the repository, where its address is known (``SITE_REPOSITORY``, set by the
  workflow that publishes the site), and is plain text elsewhere;
- names of the API in code, as `torchorbit.find_orbits`, lead to their place in the reference.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_ROOT = Path(__file__).parent.parent
_REPOSITORY = os.environ.get("SITE_REPOSITORY", "").rstrip("/")

#: Pages of the site that lie elsewhere in the repository, and keep their paths.
_PAGES = ("CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/README.md", "results/*.md")

#: Modules whose ``__all__`` is public.
_MODULES = ("criteria", "selectors", "cost", "latency", "inspect", "edit", "rules", "errors")

_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"<code>(?:torchorbit\.)?([\w.]+)</code>(?![^<]*</(?:a|h\d)>)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie elsewhere."""
    for pattern in _PAGES:
        for path in sorted(_ROOT.glob(pattern)):
            name = path.relative_to(_ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links to files of the repository lead to where these are on the site, or to the repository."""
    here = _place(page.file)

    def changed(match: re.Match[str]) -> str:
        image, text, target = match.groups()
        path, hash_sign, anchor = target.partition("#")
        if not path or "://" in path or path.startswith("mailto:"):
            return match[0]
        meant = posixpath.normpath(posixpath.join(posixpath.dirname(here), path))
        source = meant.removeprefix("docs/") if meant.startswith("docs/") else meant
        if files.get_file_from_path(source) is not None:
            relative = posixpath.relpath(source, posixpath.dirname(page.file.src_uri))
            return f"{image}[{text}]({relative}{hash_sign}{anchor})"
        if not (_ROOT / meant).exists():
            return match[0]  # which MkDocs then warns of
        return f"[{text}]({_REPOSITORY}/blob/main/{meant})" if _REPOSITORY else text

    return _outside_of_fences(markdown, lambda text: _LINK.sub(changed, text))


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let names of the API lead to the reference."""

    def changed(match: re.Match[str]) -> str:
        known = _names().get(match[1], "")
        whole = match[0] == f"<code>{known}</code>"
        if not known or not (whole or (_telling(match[1]) and "<code>torchorbit." not in match[0])):
            return match[0]
        return f'<autoref identifier="{known}" optional>{match[0]}</autoref>'

    return _CODE.sub(changed, html)


def _place(file: File) -> str:
    """Path of a page's source in the repository."""
    return file.src_uri if file.generated_by else f"docs/{file.src_uri}"


def _outside_of_fences(markdown: str, change: Any) -> str:
    """Change what is not a block of code."""
    result, end = [], 0
    for fence in _FENCE.finditer(markdown):
        result += [change(markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*result, change(markdown[end:])])


def _telling(name: str) -> bool:
    """Whether a name alone can hardly mean anything else: `find_orbits` or `Bounds`, but not `plan` or `flops`."""
    return "_" in name or name[0].isupper()


_known: dict[str, str] = {}


def _names() -> dict[str, str]:
    """Public names as prose has them -> what the reference has them under."""
    if not _known:
        package = griffe.load("torchorbit", search_paths=[str(_ROOT)], resolve_aliases=True)
        for prefix in ("", *[f"{module}." for module in _MODULES]):
            holder = package[prefix[:-1]] if prefix else package
            for name in holder.exports or ():
                _add(f"{prefix}{name}", holder[str(name)])
    return _known


def _add(name: str, thing: Any) -> None:
    public = f"torchorbit.{name}"
    short = name.rpartition(".")[2]
    _known.setdefault(name, public)
    _known.setdefault(short, public)
    if thing.is_class:
        for member in thing.members:
            if not member.startswith("_"):
                _known.setdefault(f"{short}.{member}", f"{public}.{member}")
