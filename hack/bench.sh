#!/usr/bin/env bash
# bench.sh compares this tree's benchmarks with those of another commit, on this
# machine, in turns, and prints benchstat's table.
#
#   hack/bench.sh [REF [PACKAGE...]]      (default: HEAD ./...)
#
# Environment:
#   COUNT   how often each side runs (6, the least that benchstat can judge)
#   BENCH   which benchmarks, as for go test -bench (all)
#
# A machine that does something else at the time makes the numbers worthless.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
need_go
ref=${1:-HEAD}
shift || true
[ $# -gt 0 ] || set -- ./...
benchstat=golang.org/x/perf/cmd/benchstat@v0.0.0-20260908200009-22c9c6c9d4da

commit=$(git rev-parse --verify --quiet "$ref^{commit}") || die "no such commit: $ref"
old=$(mktemp -d)
trap 'git worktree remove --force "$old/tree" 2>/dev/null; rm -rf "$old"' EXIT
git worktree add --quiet --detach "$old/tree" "$commit"

# bench DIR FILE: appends one run of the tree in DIR.
bench() {
	local dir=$1 to=$2 packages
	shift 2
	mapfile -t packages < <(cd "$dir" && go list "$@" 2>/dev/null | grep -v /test/e2e)
	(cd "$dir" && go test -run '^$' -bench "${BENCH:-.}" -benchmem -count 1 "${packages[@]}") >>"$to"
}
for i in $(seq "${COUNT:-6}"); do
	say "run $i of ${COUNT:-6}"
	bench "$old/tree" "$old/before" "$@"
	bench . "$old/after" "$@"
done
go run "$benchstat" "$(git rev-parse --short "$commit")=$old/before" "this tree=$old/after"
