"""Links of the pages, which are written for a reader of the repository, as the site needs them."""

from __future__ import annotations

import re
from pathlib import Path
from posixpath import dirname, normpath, relpath

ROOT = Path(__file__).parents[1]
# Of the repository's root: pages of the site, too.
ROOT_PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
NOTEBOOKS = {"tutorial.ipynb": "tutorial.md"}
# [text](target), not of a picture; the text may hold a picture or brackets.
LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|!?\[[^\]]*\](?:\([^)]*\))?)*)\]\(([^)\s]+)\)")


def rewrite_links(markdown: str, page: str, repository: str) -> str:
    """The Markdown of the site's page `page`, such as "howto/loop.md", with links that lead on.

    A link to a page leads to that page's place in the site. One to another file of the repository
    leads to it at the URL `repository`; where that is "", only the link's text is left.
    """
    at_root = {site: source for source, site in ROOT_PAGES.items()}
    folder = dirname(at_root.get(page, f"docs/{page}"))

    def rewrite(match: re.Match[str]) -> str:
        text, target = match.groups()
        name, mark, anchor = target.partition("#")
        if not name or re.match(r"\w+:", name):
            return match[0]
        path = normpath(f"{folder}/{name}" if folder else name)
        site = ROOT_PAGES.get(path)
        if path.startswith("docs/"):
            site = path.removeprefix("docs/")
            # The page of a notebook offers the notebook itself.
            site = site if page in NOTEBOOKS.values() else NOTEBOOKS.get(site, site)
        if site is not None:
            return f"[{text}]({relpath(site, dirname(page) or '.')}{mark}{anchor})"
        if not repository:
            return text
        kind = "tree" if (ROOT / path).is_dir() else "blob"
        return f"[{text}]({repository.rstrip('/')}/{kind}/main/{path}{mark}{anchor})"

    return LINK.sub(rewrite, markdown)
