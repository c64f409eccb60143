#!/bin/sh
# Sets up the benchmark: sh interop/bench/setup.sh [PYTHON]. The proxies and the load generator come from Debian, all
# else goes into .venv-bench at the root of the repository. Run again, it only looks whether anything has changed.
#
# A package that cannot be had is no reason to stop: the run reports the peer as missing and measures the others.
set -eu

python=${1:-${PYTHON:-python3}}
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
venv=$root/.venv-bench
as_root=$([ "$(id -u)" = 0 ] || echo sudo)
have() { PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null 2>&1; }

packages=
have nginx || packages="$packages nginx"
have haproxy || packages="$packages haproxy"
have nghttpx || packages="$packages nghttp2-proxy"
have nghttpd || packages="$packages nghttp2-server"
have h2load || packages="$packages nghttp2-client"
have taskset || packages="$packages util-linux"
have go || packages="$packages golang-go"
[ -d /usr/share/gocode/src/google.golang.org/grpc ] || packages="$packages golang-google-grpc-dev"
if [ -n "$packages" ]; then
    # Debian starts the services it installs, and nobody asked for a web server on port 80.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e $policy ]; then
        printf '#!/bin/sh\nexit 101\n' | $as_root tee $policy >/dev/null
        $as_root chmod +x $policy
        trap '$as_root rm -f $policy' EXIT
    fi
    $as_root apt-get update -qq || true
    for package in $packages; do
        echo "installing $package"
        $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$package" >/dev/null ||
            echo "$package could not be installed; what needs it will be missing" >&2
    done
fi

stamp=$venv/.made-from
wanted=$(cat "$here/requirements.txt" "$root/pyproject.toml" | cksum)
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "making .venv-bench"
    "$python" -m venv --clear "$venv"
    echo '*' >"$venv/.gitignore"
    pip() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }
    pip -e "$root"
    complete=yes
    while read -r requirement; do
        pip "$requirement" || {
            echo "$requirement could not be installed; what needs it will be missing" >&2
            complete=
        }
    done <"$here/requirements.txt"
    [ -z "$complete" ] || echo "$wanted" >"$stamp"
fi

forwarder=$venv/bin/grpc_go_proxy
source=$here/forwarders/grpc_go_proxy.go
if have go && { [ ! -e "$forwarder" ] || [ "$source" -nt "$forwarder" ]; }; then
    echo "building the forwarder on grpc-go"
    # Debian's packages of Go libraries are sources in a workspace, with no modules and nothing to download.
    GO111MODULE=off GOPATH=/usr/share/gocode GOCACHE=$venv/go-cache go build -o "$forwarder" "$source" ||
        echo "it could not be built; it will be missing" >&2
fi
