#!/bin/sh
# What `make check` runs, in this order:
#
#	hack/verify.sh            all steps
#	hack/verify.sh vet lint   these steps
#
# A step that fails does not keep the others from running. Needs Go, a C compiler
# and libseccomp's headers (make deps installs them); the tools are built from
# the module hack/lint. Root is not needed: tests that do need it are skipped
# without it, and `make kernel` runs them.
set -u
cd "$(dirname "$0")/.." || exit 1

# The tags that the monitor is built with, and those under which all code is seen.
tags=runc_nocriu,seccomp
all_tags=$tags,failpoint
bin=$PWD/bin/lint

step_tools() { # the linters, cached by go build
	go build -C hack/lint -o "$bin/" tool
}

step_format() { # gofumpt changes nothing
	out=$("$bin/gofumpt" -l .) || return 1
	[ -z "$out" ] || {
		echo "these files are not formatted; run: bin/lint/gofumpt -w ."
		echo "$out"
		return 1
	}
}

step_vet() { # go vet, as a newcomer builds, as we build, and with failpoints
	go vet ./... && go vet -tags "$tags" ./... && go vet -tags "$all_tags" ./...
}

step_staticcheck() {
	"$bin/staticcheck" -tags "$tags" ./... && "$bin/staticcheck" -tags "$all_tags" ./internal/failpoint
}

step_lint() { # the linters of .golangci.yml, which says why each
	"$bin/golangci-lint" run ./...
}

step_tidy() { # go.mod and go.sum of each module are what go mod tidy makes
	untidy=0
	for mod in go.mod hack/*/go.mod; do
		[ -f "$mod" ] || continue
		dir=$(dirname "$mod")
		diff=$(go -C "$dir" mod tidy -diff 2>&1) || {
			printf '%s\n' "$diff" | head -n 40
			echo "$mod is not tidy; run: go -C $dir mod tidy"
			untidy=1
		}
	done
	return $untidy
}

step_test() { # unit tests, with the race detector; failpoints both ways
	go test -short -race -tags "$tags" $(go list ./... | grep -v /test/e2e) &&
		go test -race -tags "$all_tags" ./internal/failpoint
}

steps="tools format vet staticcheck lint tidy test"
case " $* " in
*" -h "* | *" --help "*)
	sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"
	echo "steps: $steps"
	exit 0
	;;
esac
for step in "$@"; do
	case " $steps " in
	*" $step "*) ;;
	*)
		echo "verify.sh: no step is called $step; steps are: $steps" >&2
		exit 2
		;;
	esac
done

failed=
for step in ${*:-$steps}; do
	echo "== $step"
	began=$(date +%s)
	if "step_$step"; then
		echo "   ok, $(($(date +%s) - began)) s"
	else
		echo "   FAILED, $(($(date +%s) - began)) s"
		failed="$failed $step"
		[ "$step" != tools ] || break # the other steps need them
	fi
done
[ -z "$failed" ] || {
	echo "failed:$failed" >&2
	exit 1
}
