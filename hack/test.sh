#!/usr/bin/env bash
# test.sh runs tiers of tests, all that are named even if one fails, and ends
# with a line "N passed, N failed, N skipped" over all of them.
#
#   hack/test.sh unit|kernel|e2e|kubelet|crash|vm ...
#
#   unit     every package but test/e2e, without what needs root
#   kernel   the packages that touch the kernel, as root, nothing skipped
#   e2e      test/e2e against programs built with the race detector
#   kubelet  test/e2e/kubelet: a real kubelet, which hack/kubernetes/build.sh makes
#            if it is not there, and crid with the race detector
#   crash    test/e2e's TestCrash, with failpoints compiled in
#   vm       kernel and e2e (both cgroup drivers) in a VM: see hack/vm.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

out=bin/test
tags=runc_nocriu,seccomp
sums=()
failed=0

# kernel_packages are those with tests that call testutil.RequireRoot.
kernel_packages() { go list ./internal/... ./image/... ./cni/... ./monitor/... ./sandbox/... | grep -v -e /internal/repotest -e /cnitest; }

# tier NAME COMMAND...: COMMAND prints `go test -json`.
tier() {
	local name=$1
	shift
	say "$name"
	rm -f "$out/$name.json"
	sums+=("$out/$name.json")
	# tally judges: it also counts what does not compile.
	{ "$@" 2>&1 || true; } | "$out/tally" -tier "$name" -into "$out/$name.json" || failed=1
}

# The same command as in hack/verify.sh: what `make check` has run is not run again.
unit() {
	mapfile -t packages < <(go list ./... | grep -v /test/e2e)
	tier unit go test -json -short -race -tags "$tags" "${packages[@]}"
}

kernel() {
	mapfile -t packages < <(kernel_packages)
	CRID_REQUIRE_ROOT=1 CRID_CNI_BIN=$PWD/bin/cni tier kernel go test -json -race -tags "$tags" -count=1 -timeout 10m "${packages[@]}"
}

e2e() {
	CRID_REQUIRE_ROOT=1 tier e2e go test -json -count=1 -timeout 20m ./test/e2e -cni-bin "$PWD/bin/cni"
}

kubelet() {
	hack/kubernetes/build.sh
	CRID_REQUIRE_ROOT=1 tier kubelet go test -json -count=1 -timeout 20m ./test/e2e/kubelet -cni-bin "$PWD/bin/cni" -kubelet "$PWD/bin/kubernetes/kubelet"
}

crash() {
	CRID_REQUIRE_ROOT=1 tier crash go test -json -count=1 -timeout 20m -tags failpoint -run TestCrash ./test/e2e -cni-bin "$PWD/bin/cni"
}

vm() { tier vm hack/vm.sh test; }

[ $# -gt 0 ] || die "which tiers? unit, kernel, e2e, kubelet, crash, vm"
need_go
for t in "$@"; do
	case $t in
	unit) ;;
	kernel | e2e | kubelet | crash) need_root; hack/deps.sh test ;;
	vm) need_root; hack/deps.sh test vm ;;
	*) die "no such tier: $t" ;;
	esac
done
# The race detector needs a C compiler.
hack/deps.sh build
mkdir -p "$out"
make -s --no-print-directory bin/cni/.made
go build -o "$out/tally" ./hack/tally
# What takes minutes where it is not there yet begins beside the tests before its own;
# that tier waits for it, and says what is wrong with it.
case " $* " in
*" kubelet "* | *" vm "*) nice hack/kubernetes/build.sh >/dev/null 2>&1 & ;;
esac
for t in "$@"; do "$t"; done
wait
"$out/tally" -sum "${sums[@]}" || failed=1
exit $failed
