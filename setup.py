"""Installs opnorm; the package's metadata are in pyproject.toml."""

from setuptools import setup

setup()
