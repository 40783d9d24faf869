# Sourced by the scripts of this folder: strict mode, the repository's top as
# working folder, and Go found where sudo has taken it out of PATH.
# shellcheck shell=bash
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PATH=$PATH:/usr/local/go/bin:/usr/local/sbin:/usr/sbin:/sbin
export HOME=${HOME:-/root} # Go keeps its caches there
export GORACE="${GORACE:-} atexit_sleep_ms=0" # else each program with the race detector ends a second late

say() { printf '%s\n' "== $*" >&2; }
die() {
	printf '%s: %s\n' "${0##*/}" "$*" >&2
	exit 1
}
need_go() { command -v go >/dev/null || die "Go is not there: install it in /usr/local/go, or put it into PATH"; }
need_root() { [ "$(id -u)" = 0 ] || die "needs root: call it with sudo"; }
