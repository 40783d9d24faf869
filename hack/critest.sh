#!/usr/bin/env bash
# critest.sh runs critest, the CRI conformance suite, against a crid that runs.
#
#   CRITEST=PROGRAM|CHECKOUT hack/critest.sh [FLAG...]
#
# CRITEST is the critest program, or a checkout of its repository, cri-tools, of
# which it is then built (with crictl, into bin/). This script fetches neither.
# FLAGs go to critest, such as --ginkgo.focus='port mapping'.
#
# Environment:
#   CRID_SOCKET   the socket to test (/run/crid/crid.sock)
#   OUT           folder of the reports and the log (bin/critest)
#   IMAGES        program that serves the suite's images; when set, it is started
#                 in its folder with `go run .` and ended afterwards. crid's
#                 registry configuration must send registry.k8s.io, gcr.io and
#                 k8s.gcr.io to it.
#   SKIP          specs that are left out, a regular expression. By default those
#                 that cannot pass with images made on the spot: one pulls a fixed
#                 digest, one wants a shell that does not run ls by itself.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
[ -n "${CRITEST-}" ] || die "CRITEST must name the critest program or a checkout of cri-tools"
endpoint=unix://${CRID_SOCKET:-/run/crid/crid.sock}
[ -S "${endpoint#unix://}" ] || die "no socket ${endpoint#unix://}: start crid first (make run)"
out=${OUT:-bin/critest}
mkdir -p "$out" bin

if [ -d "$CRITEST" ]; then
	need_go
	top=$PWD
	say "building critest and crictl of $CRITEST"
	(cd "$CRITEST" && go test -c -o "$top/bin/critest.bin" ./cmd/critest && go build -o "$top/bin/crictl" ./cmd/crictl)
	CRITEST=$top/bin/critest.bin
fi
[ -x "$CRITEST" ] || die "$CRITEST is not a program"

images=''
stop_images() { [ -z "$images" ] || kill -- "-$images" 2>/dev/null || true; }
trap stop_images EXIT
if [ -n "${IMAGES-}" ]; then
	need_go
	(cd "$IMAGES" && exec setsid go run .) >"$out/images.log" 2>&1 &
	images=$!
	say "waiting for the images"
	for _ in $(seq 120); do
		! grep -qi 'serving\|listening\|ready' "$out/images.log" || break
		kill -0 "$images" 2>/dev/null || { cat "$out/images.log" >&2; die "the images' server ended"; }
		sleep 1
	done
fi

printf 'runtime-endpoint: %s\nimage-endpoint: %s\ntimeout: 30\n' "$endpoint" "$endpoint" >"$out/crictl.yaml"
rc=0
"$CRITEST" --config "$out/crictl.yaml" -runtime-endpoint "$endpoint" -image-endpoint "$endpoint" \
	--ginkgo.no-color --report-dir "$out" --ginkgo.skip "${SKIP-with digest|MaskedPaths}" "$@" >"$out/log" 2>&1 || rc=$?
grep -aE '^ *\[(FAIL|PANICKED|TIMEDOUT|INTERRUPTED)\]' "$out/log" | sort -u || true
grep -aE '^Ran |Passed \|' "$out/log" | tail -2 || tail -n 20 "$out/log"
exit "$rc"
