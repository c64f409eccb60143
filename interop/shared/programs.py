"""Programs of the system that others are measured beside: where they are, and which version."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

from interop.shared.processes import Trouble

#: Where Debian puts servers, which is not on everybody's PATH.
SYSTEM_PATH = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"


def find(program: str) -> str:
    """Its path. Raises `Trouble` if it is not installed."""
    path = shutil.which(program, path=SYSTEM_PATH)
    if path is None:
        raise Trouble(f"{program} is not installed")
    return path


def output_of(*command: str) -> str:
    """What a command that ends at once prints, on either stream."""
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Trouble(f"{command[0]} did not run: {error}") from error
    if done.returncode:
        raise Trouble(f"{' '.join(command)} failed: {done.stdout.strip()[-600:]}")
    return done.stdout.strip()


def version_of(program: str, option: str) -> str:
    """The first version number that a program prints when it is asked."""
    text = output_of(find(program), option)
    number = re.search(r"\d+\.\d+[\w.+~-]*", text)
    return number[0] if number else text
