"""Sphinx's settings for the site. Build it with ``sphinx-build -W docs OUT``; nothing is downloaded."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

from lw_retinanet import __version__

project = "lw_retinanet"
author = "The lw_retinanet authors"
project_copyright = author
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "generated_pages"]
exclude_patterns = ["_ext", "notebook/*.ipynb"]
myst_enable_extensions = ["colon_fence"]
smartquotes = False  # they would make a dash of the two hyphens of an option
myst_heading_anchors = 4  # `page.md#a-heading` means on the site what it means on GitHub

html_theme = "furo"
html_title = f"lw_retinanet {version}"
html_copy_source = False
html_theme_options = {"top_of_page_buttons": []}

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_inherit_docstrings = False
maximum_signature_line_length = 100
python_use_unqualified_type_names = True
napoleon_use_rtype = False
napoleon_use_param = False
