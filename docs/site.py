"""What the site's build does beyond MkDocs: the README is the front page, the changelog a page."""

import re
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from pipeline.paths import CHECKOUT

_PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md"}


def on_files(files: Files, config: MkDocsConfig, **options: Any) -> Files:
    """Add the documents of the checkout's root, and let links between them and the pages lead to pages."""
    for name, page in _PAGES.items():
        text = (CHECKOUT / name).read_text().replace("](docs/", "](")
        text = re.sub(r"\]\((CHANGELOG|README)\.md", lambda found: f"]({_PAGES[found[1] + '.md']}", text)
        text = re.sub(r"\[([^\]]+)\]\((?:benchmarks|examples)/[^)]*\)", r"\1", text)  # files that are no pages
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, **options: Any) -> str:
    """Let a page's links to the documents of the root lead to their pages."""
    for name, page in _PAGES.items():
        markdown = markdown.replace(f"](../../{name}", f"](../{page}").replace(f"](../{name}", f"]({page}")
    return markdown
