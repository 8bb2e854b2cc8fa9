"""Parts of the site that Sphinx and GitHub have no common form for."""
