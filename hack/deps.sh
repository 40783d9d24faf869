#!/usr/bin/env bash
# deps.sh installs what is missing on this machine, with apt-get.
#
#   hack/deps.sh [build] [run] [test] [vm]      (default: build run)
#
#   build   a C compiler and libseccomp, for crid-monitor
#   run     what CNI plugins call, and busybox, of which tests make images
#   test    build and run, and what the tests call
#   vm      what makes the test VM (hack/vm.sh)
#
# It looks for the thing itself, not for the package, so on another distribution
# or with one's own compiler it does nothing. What it installs it names first.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

missing=()
# need PACKAGE COMMAND...: PACKAGE is missing unless COMMAND succeeds.
need() {
	local package=$1
	shift
	"$@" >/dev/null 2>&1 || missing+=("$package")
}
has() { command -v "$1"; }
package() { dpkg -s "$1"; }
# header FILE: the C compiler's own folders, whatever the architecture.
header() { compgen -G "/usr/include/$1" || compgen -G "/usr/include/*/$1" || compgen -G "/usr/local/include/$1"; }
static_seccomp() { compgen -G '/usr/lib/*/libseccomp.a' || compgen -G '/usr/lib*/libseccomp.a' || compgen -G '/usr/local/lib*/libseccomp.a'; }

build() {
	need make has make
	need ca-certificates test -d /etc/ssl/certs # Go fetches its modules over TLS
	need gcc has gcc
	need libc6-dev header stdio.h
	need pkg-config has pkg-config
	need libseccomp-dev header seccomp.h
	need libseccomp-dev static_seccomp
}
run() {
	need iptables has iptables # CNI's portmap, firewall and bridge (ipMasq)
	need iproute2 has ip
	need mount has umount
	need busybox-static test -x /bin/busybox
	need procps has ps
}
tests() {
	build
	run
	need util-linux has unshare
	need e2fsprogs has mkfs.ext4 # file systems with quota, in a file
	need xfsprogs has mkfs.xfs
}
vm() {
	local p
	for p in mmdebstrap e2fsprogs kmod patchelf; do need "$p" package "$p"; done
	need util-linux has setsid
}

[ $# -gt 0 ] || set -- build run
for part; do
	case $part in
	build | run | vm) "$part" ;;
	test) tests ;;
	*) die "no such part: $part (build, run, test, vm)" ;;
	esac
done

if [ ${#missing[@]} -gt 0 ]; then
	mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
	command -v apt-get >/dev/null ||
		die "missing here: ${missing[*]} (names of Debian's packages); there is no apt-get, so install them by hand"
	[ "$(id -u)" = 0 ] || die "missing here: ${missing[*]}; run 'sudo make deps'"
	say "installing ${missing[*]}"
	export DEBIAN_FRONTEND=noninteractive
	log=$(mktemp)
	apt=(apt-get -q -y -o DPkg::Lock::Timeout=300)
	if ! { "${apt[@]}" update && "${apt[@]}" install --no-install-recommends "${missing[@]}"; } >"$log" 2>&1 </dev/null; then
		cat "$log" >&2
		rm -f "$log"
		die "apt-get could not install ${missing[*]}"
	fi
	rm -f "$log"
fi
need_go
