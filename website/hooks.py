"""What mkdocs cannot do by itself: pages from outside docs/, a notebook as a page, links that lead
out of docs/, and what `dsr --help` says. mkdocs.yml names this file.
"""

from __future__ import annotations

from command_line import help_of_all
from links import NOTEBOOKS, ROOT, ROOT_PAGES, rewrite_links
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from notebook import to_markdown

HELP = "<!-- dsr --help -->"  # what every command says takes its place


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    for source, page in ROOT_PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    for source, page in NOTEBOOKS.items():
        notebook = (ROOT / "docs" / source).read_text(encoding="utf-8")
        text, pictures = to_markdown(notebook, page.removesuffix(".md"))
        files.append(File.generated(config, page, content=text))
        for name, png in pictures.items():
            files.append(File.generated(config, name, content=png))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    if HELP in markdown:
        markdown = markdown.replace(HELP, help_of_all())
    return rewrite_links(markdown, page.file.src_uri, config.repo_url or "")
