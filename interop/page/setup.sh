#!/bin/sh
# Sets up what looks at the page: Node, Chromium, playwright-core. What cannot be had is left out: `python -m interop.page`
# says so. Run again, it only looks whether anything has changed.
set -u

here=$(cd "$(dirname "$0")" && pwd)
as_root=$([ "$(id -u)" = 0 ] || echo sudo)
have() { command -v "$1" >/dev/null 2>&1; }

packages=
have node || packages="$packages nodejs"
have npm || packages="$packages npm"
have chromium || have chromium-browser || have google-chrome || packages="$packages chromium"
if [ -n "$packages" ]; then
    $as_root apt-get update -qq
    # shellcheck disable=SC2086  # a list of packages
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages >/dev/null
fi

if have npm && ! cmp -s "$here/package.json" "$here/node_modules/.installed"; then
    # No lock file: it would name the registry it was made with. The version is pinned in package.json.
    (cd "$here" && npm install --silent --no-audit --no-fund --no-package-lock >/dev/null) &&
        cp "$here/package.json" "$here/node_modules/.installed"
fi
exit 0
