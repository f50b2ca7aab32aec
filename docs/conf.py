"""How Sphinx makes the site and the man pages of Markdown. Rule: what it builds asks nothing of the network.

The source directory is the repository's root, so that a link from a page to README.md or a file of rules/ leads to the
same file here as on a code forge. `make docs` and `make man` run it, with Debian 12's Sphinx 5.3 and myst-parser 0.18.
"""

import re
import sys
from pathlib import Path

_HERE = Path(__file__).parent
sys.path[:0] = [str(_HERE.parent), str(_HERE)]

from logknock import __version__  # noqa: E402  # the checkout's, whatever is installed

project = "logknock"
author = "logknock developers"
version = release = __version__
root_doc = "docs/index"
extensions = ["myst_parser", "command_pages"]
include_patterns = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/**.md"]
exclude_patterns = [".*", "build", "dist", "logknock", "packaging", "rules", "tests", "docs/_*"]
nitpicky = True
smartquotes = False  # two dashes begin an option
highlight_language = "none"

# As a code forge does: each heading is a target, by its words.
myst_heading_anchors = 4

templates_path = ["_templates"]
html_theme = "alabaster"
html_title = f"logknock {__version__}"
html_theme_options = {
    "description": "port knocking from the firewall's log",
    "fixed_sidebar": False,
    "font_family": "system-ui, sans-serif",
    "head_font_family": "system-ui, sans-serif",
    "page_width": "64rem",
    "show_powered_by": False,
    "show_relbars": False,
}
html_sidebars = {"**": ["about.html", "searchbox.html", "navigation.html"]}
html_static_path = ["_static"]
html_additional_pages = {"index": "door.html"}
html_copy_source = html_show_sourcelink = html_show_copyright = html_show_sphinx = False
html_use_index = False
pygments_style = "default"

man_show_urls = True
man_make_section_directory = False
# A reference page whose title reads like a man page's NAME line is one.
_TITLE = re.compile(r"# (\S+)\(([158])\) - (.+)")
man_pages = [
    (f"docs/reference/{page.stem}", title[1], title[3], author, int(title[2]))
    for page in sorted((_HERE / "reference").glob("*.md"))
    if (title := _TITLE.match(page.read_text(encoding="utf-8")))
]
