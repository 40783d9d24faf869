#!/usr/bin/env bash
# build.sh makes bin/kubernetes/kubelet, for test/e2e/kubelet, from the module in
# this folder, whose go.mod names the version. That takes minutes; what was built
# is kept by version, outside the repository, so that another clone finds it.
#
#   CRID_KUBELET_DIR   where programs are kept (/var/cache/crid-kubelet)
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
need_go

module=hack/kubernetes
to=bin/kubernetes/kubelet
version=$(go list -C "$module" -m -f '{{.Version}}' k8s.io/kubernetes)
# The same sources, built in the same way, for the same machine.
key=$(cat "$module/go.mod" "$module/go.sum" "$module/build.sh" <(go version) | sha256sum | cut -c1-16)
kept=${CRID_KUBELET_DIR:-/var/cache/crid-kubelet}/$version-$key

mkdir -p "$(dirname "$kept")"
# One build at a time on a machine; who waits then finds it made.
exec 9>"$kept.lock"
flock 9
if [ ! -x "$kept" ]; then
	say "building kubelet $version (some minutes, once)"
	CGO_ENABLED=0 go build -C "$module" -trimpath -o "$kept.new" \
		-ldflags "-s -w -X k8s.io/component-base/version.gitVersion=$version" k8s.io/kubernetes/cmd/kubelet 9>&-
	mv "$kept.new" "$kept"
fi
exec 9>&-
mkdir -p "$(dirname "$to")"
ln -sf "$kept" "$to"
