#!/bin/sh
# Sets up the interop suite: sh interop/setup.sh PYTHON, where PYTHON is the virtual environment's.
# Run again, it only looks whether anything has changed.
set -eu

python=$1
here=$(cd "$(dirname "$0")" && pwd)
as_root=$([ "$(id -u)" = 0 ] || echo sudo)
have() { PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null 2>&1; }

packages=
have etcd || packages="$packages etcd-server"
have etcdctl || packages="$packages etcd-client"
have node || packages="$packages nodejs"
have npm || packages="$packages npm"
have h2load || packages="$packages nghttp2-client" # for the soak
# For the faults. Debian starts no service of either.
have dnsmasq || packages="$packages dnsmasq-base"
have ip || packages="$packages iproute2"
if [ -n "$packages" ]; then
    $as_root apt-get update -qq
    # shellcheck disable=SC2086  # a list of packages
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $packages >/dev/null
fi

pinned() {
    "$python" - "$here/requirements.txt" <<'PYTHON'
import sys
from importlib.metadata import PackageNotFoundError, version

for line in open(sys.argv[1]):
    name, wanted = line.strip().split("==")
    try:
        if version(name) != wanted:
            sys.exit(1)
    except PackageNotFoundError:
        sys.exit(1)
PYTHON
}
pinned || "$python" -m pip install --quiet --disable-pip-version-check -r "$here/requirements.txt"

js=$here/peers/grpc_js
if ! cmp -s "$js/package.json" "$js/node_modules/.installed"; then
    # No lock file: it would name the registry it was made with. The versions are pinned in package.json.
    (cd "$js" && npm install --silent --no-audit --no-fund --no-package-lock >/dev/null)
    cp "$js/package.json" "$js/node_modules/.installed"
fi

generated=$here/peers/generated
if [ ! "$generated/test_pb2.py" -nt "$here/peers/test.proto" ]; then
    mkdir -p "$generated"
    "$python" -m grpc_tools.protoc -I "$here/peers" --python_out="$generated" --pyi_out="$generated" \
        "$here/peers/test.proto"
fi

# The peers below need toolchains that not every machine has. What cannot be built here is left out of the matrix, which
# says so.
built=$here/peers/build
mkdir -p "$built"

# build NAME MADE COMMAND...: run the command in the folder of the peer, unless what it made is newer than all sources.
build() {
    name=$1 made=$2
    shift 2
    [ ! -e "$made" ] || [ -n "$(find "$here/peers/$name" -type f -newer "$made")" ] || return 0
    echo "building $name"
    rm -rf "${built:?}/$name"
    if (cd "$here/peers/$name" && "$@") >"$built/$name.log" 2>&1; then
        touch "$made"
    else
        echo "$name could not be built: $(grep -v '^go: downloading' "$built/$name.log" | head -n 1)" >&2
    fi
}

# Unpacked, not installed: the package would start one that listens everywhere.
if ! have prometheus && [ ! -x "$built/prometheus/usr/bin/prometheus" ] && have apt-get; then
    rm -rf "$built/prometheus.new" && mkdir "$built/prometheus.new"
    # shellcheck disable=SC2015  # whatever fails, it is left out
    (cd "$built/prometheus.new" && { apt-get download -qq prometheus || { $as_root apt-get update -qq && apt-get download -qq prometheus; }; } &&
        dpkg-deb -x ./*.deb . && rm ./*.deb) >/dev/null 2>&1 && rm -rf "$built/prometheus" &&
        mv "$built/prometheus.new" "$built/prometheus" || echo "prometheus could not be fetched" >&2
fi

if have go; then
    # With the Go that is here: by itself it would fetch a newer one where the module asks for it.
    build grpc_go "$built/grpc_go" env GOTOOLCHAIN=local go build -buildvcs=false -o "$built/grpc_go" .
fi
if have mvn; then
    build grpc_java "$built/grpc_java/classes/Peer.class" mvn --quiet --batch-mode compile dependency:copy-dependencies \
        -DincludeScope=runtime "-DoutputDirectory=$built/grpc_java/lib"
fi
