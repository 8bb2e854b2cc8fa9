"""Installs opnorm; what pyproject.toml cannot say is here.

The commands, the package ``experiments``, are installed inside ``opnorm``: there may be
other packages of that name. The links of the README are relative, for a checkout; its
copy in the metadata has absolute ones.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

_REPOSITORY = "https://github.com/opnorm/opnorm"
_COMMANDS = "opnorm.commands"


def _description() -> str:
    """Returns the README with absolute links."""
    text = (Path(__file__).parent / "README.md").read_text(encoding="utf-8")
    to_image = re.compile(r"(!\[[^\]]*\]\()(?![a-z]+:|#)")
    to_page = re.compile(r"((?<!!)\[(?:[^\[\]]|\[[^\]]*\])*\]\()(?![a-z]+:|#)")
    text = to_image.sub(rf"\1{_REPOSITORY}/raw/main/", text)
    return to_page.sub(rf"\1{_REPOSITORY}/blob/main/", text)


commands = find_packages(include=["experiments", "experiments.*"])
setup(
    long_description=_description(),
    long_description_content_type="text/markdown",
    packages=[
        *find_packages(include=["opnorm", "opnorm.*"]),
        *(f"{_COMMANDS}.{name}" for name in commands),
    ],
    package_dir={f"{_COMMANDS}.experiments": "experiments"},
)
