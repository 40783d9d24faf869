#!/usr/bin/env bash
# fuzz.sh runs every fuzz target for a while, one after the other.
#
#   hack/fuzz.sh [TIME [PACKAGE...]]      (default: 20s ./...)
#
# A target that fails leaves its input in the package's testdata/fuzz: commit it.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
need_go
time=${1:-20s}
shift || true
[ $# -gt 0 ] || set -- ./...

failed=0 ran=0
for package in $(go list "$@"); do
	dir=$(go list -f '{{.Dir}}' "$package")
	for target in $(grep -ho '^func Fuzz[A-Za-z0-9_]*' "$dir"/*_test.go 2>/dev/null | cut -d' ' -f2); do
		say "$package $target"
		ran=$((ran + 1))
		# By itself Go takes up to a minute to shorten each new input, with no other run meanwhile.
		go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" -fuzzminimizetime 20x "$package" || failed=$((failed + 1))
	done
done
echo "$((ran - failed)) passed, $failed failed"
[ "$failed" = 0 ] && [ "$ran" -gt 0 ]
