"""The hardware, versions and revision that a result was made with."""

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import jax

from opnorm.runs.json_values import JsonObject


def version() -> str:
    """Returns the version of opnorm, "unknown" in a checkout that is not installed."""
    try:
        return metadata.version("opnorm")
    except metadata.PackageNotFoundError:
        return "unknown"


def command() -> list[str]:
    """Returns the words that started this process, those of Python itself included."""
    return list(sys.orig_argv)


def git_revision() -> str | None:
    """Returns the revision of the checkout opnorm lies in, "-dirty" if changed."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != here.parent.parent:
            return None
        dirty = "-dirty" if git("status", "--porcelain") else ""
        return git("rev-parse", "HEAD") + dirty
    except (OSError, subprocess.CalledProcessError):
        return None


def environment() -> JsonObject:
    """Returns the hardware and the versions that a result was made with.

    The version of a package that is not installed is None.
    """
    devices = jax.devices()
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {
        "device": devices[0].device_kind,
        "platform": devices[0].platform,
        "device_count": len(devices),
        "cpu_count": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "opnorm": version(),
        **{name: _installed(name) for name in packages},
    }


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
