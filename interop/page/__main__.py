"""Look at the page of the admin listener with a real browser, as an operator would.

Is it whole, on a phone as well, and true? Does it come back after a loss, and does it stay small?

Without `--url` it is shown made-up proxies, whose figures are known: one that nobody calls, one with 50 open calls, one
with 5,000 and with names that mean harm. Where Node, playwright-core or Chromium is missing a line says so, and nothing
is looked at: `make page` installs them. Exit code 1 if something does not hold.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from interop.page.fake_admin import FakeAdmin

HERE = Path(__file__).parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def main() -> int:
    """Parse the arguments and look."""
    parser = argparse.ArgumentParser(prog="python -m interop.page", description=__doc__)
    parser.add_argument("--url", help="a real admin listener, http://127.0.0.1:9901/")
    parser.add_argument("--screenshots", type=Path, metavar="DIR", help="pictures of all that is looked at")
    given = parser.parse_args()
    node = shutil.which("node")
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if missing := [
        name
        for name, there in (
            ("node", node),
            ("chromium", browser),
            ("playwright-core", (HERE / "node_modules/playwright-core").exists()),
        )
        if not there
    ]:
        print(f"the page is left out: {', '.join(missing)} not installed")
        return 0
    assert node is not None
    assert browser is not None
    command = [node, str(HERE / "driver.js"), "--browser", browser]
    if given.screenshots is not None:
        given.screenshots.mkdir(parents=True, exist_ok=True)
        command += ["--screenshots", str(given.screenshots.resolve())]
    if given.url is not None:
        return subprocess.run([*command, "--url", given.url], check=False).returncode
    with FakeAdmin() as admin:
        command += ["--url", admin.url, "--control", admin.control_url]
        return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
