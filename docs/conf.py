"""The settings of the documentation as a site.

In the root of the repository ``sphinx-build -W -n --keep-going -c docs . SITE`` builds
it into the folder SITE. The root is the folder of its sources, so that links between
pages, notebooks and results are the same here and on GitHub. Pages are plain Markdown;
the modules of ``docs/sphinx_parts`` add the parts that GitHub cannot show.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

from sphinx_parts import api  # noqa: E402

import opnorm  # noqa: E402

project = "opnorm"
author = project_copyright = "the opnorm contributors"
release = opnorm.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_parts.api",
    "sphinx_parts.flags",
    "sphinx_parts.links",
    "sphinx_parts.mathematics",
    "sphinx_parts.navigation",
]
root_doc = "docs/README"
include_patterns = [
    "*.md",
    "docs/**.md",
    "experiments/README.md",
    "experiments/results/**/README.md",
    "experiments/results/**/table.md",
    "experiments/results/**/tables.md",
    "notebooks/*.ipynb",
    "notebooks/README.md",
    "opnorm/data/assets/README.md",
]
# A page of the site, in the order of its sidebar. A folder stands for its README.md,
# and the pages that its README.md links to follow below it.
NAVIGATION = {
    "First steps": [
        "docs/start.md",
        "docs/networks",
        "docs/questions.md",
        "notebooks",
    ],
    "Guides": [
        "docs/attacks.md",
        "docs/how_to",
        "docs/evaluation.md",
        "docs/data.md",
        "docs/features.md",
    ],
    "Background": ["docs/theory.md", "docs/equations.md"],
    "Command line": ["docs/commands.md", "docs/flags.md", "experiments/README.md"],
    "Results": ["docs/results", "docs/performance.md"],
    "Reference": ["docs/api", "docs/decisions"],
    "Project": [
        "README.md",
        "CHANGELOG.md",
        "docs/citation.md",
        "CONTRIBUTING.md",
        "WORKSPACE.md",
    ],
}

# Notebooks are shown with the outputs that they are stored with.
nb_execution_mode = "off"
# The default loads a library from another host.
nb_ipywidgets_js: dict[str, dict[str, str]] = {}
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
myst_dmath_allow_digits = False
suppress_warnings = [
    # A results page may begin with a smaller heading, as its command wrote it.
    "myst.header",
    # The output of a cell may not be Python, and is shown as it is.
    "misc.highlighting_failure",
]

napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
autodoc_member_order = "bysource"
add_module_names = False
maximum_signature_line_length = 72
toc_object_entries_show_parents = "hide"
python_display_short_literal_types = True
nitpick_ignore_regex = api.NOT_DOCUMENTED_HERE

html_theme = "furo"
html_title = f"opnorm {release}"
html_static_path = ["sphinx_parts/static"]
html_css_files = ["opnorm.css"]
html_copy_source = False
html_show_sphinx = False
# Pages are the same on each build.
html_last_updated_fmt = None
