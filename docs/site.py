"""What the site's build does beyond MkDocs: the README is the front page, the changelog a page; records are files."""

import re
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from pipeline.paths import CHECKOUT

_PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md"}
_RECORDS = "benchmarks/records"
_SHORT_CODE = 24  # letters that fit into a table's column on a phone


def on_files(files: Files, config: MkDocsConfig, **options: Any) -> Files:
    """Add the records and the documents of the checkout's root, and let links between them and the pages lead there."""
    for path in sorted((CHECKOUT / _RECORDS).iterdir()):
        files.append(File.generated(config, f"{_RECORDS}/{path.name}", abs_src_path=str(path)))
    for name, page in _PAGES.items():
        text = (CHECKOUT / name).read_text().replace("](docs/", "](")
        text = re.sub(r"\]\((CHANGELOG|README)\.md", lambda found: f"]({_PAGES[found[1] + '.md']}", text)
        text = re.sub(
            r"\[([^\]]+)\]\((?:benchmarks/(?!records/)|examples/|LICENSE)[^)]*\)", r"\1", text
        )  # files that are no pages
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, **options: Any) -> str:
    """Let a page's links to the records and to the documents of the root lead to those of the site."""
    markdown = markdown.replace(f"](../{_RECORDS}/", f"]({_RECORDS}/")
    for name, page in _PAGES.items():
        markdown = markdown.replace(f"](../../{name}", f"](../{page}").replace(f"](../{name}", f"]({page}")
    return markdown


def on_page_content(html: str, **options: Any) -> str:
    """Let each picture lead to its file, where a phone can enlarge it; break no short code, such as an option."""
    html = re.sub(rf"(?<!</span>)<code>(?=[^<]{{1,{_SHORT_CODE}}}</code>)", '<code class="short">', html)
    return re.sub(r'(<img [^>]*src="([^"]+)"[^>]*>)', r'<a href="\2">\1</a>', html)
