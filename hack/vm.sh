#!/usr/bin/env bash
# vm.sh runs tests in a VM, for what the machine's own kernel may lack: cgroup v2
# with all controllers, systemd as cgroup manager, AppArmor.
#
#   hack/vm.sh build            make the VM unless it is there and up to date
#   hack/vm.sh run COMMAND      boot, run COMMAND (for bash) with bin/ at /mnt, exit as it did
#   hack/vm.sh test [PART...]   run tests in it and print `go test -json`:
#                                 kernel          the packages that touch the kernel,
#                                                 monitor/server with both drivers
#                                 e2e-systemd     test/e2e with that cgroup driver
#                                 e2e-cgroupfs    those of test/e2e that have to do with
#                                                 cgroups, with that driver
#                                 kubelet         a few of test/e2e/kubelet, systemd driver
#                               (default: all of them)
#
# Environment:
#   CRID_VM_DIR       where the VM is kept (/var/cache/crid-vm)
#   CRID_VM_RUN       tests to run in test/e2e, as for go test -run
#   CRID_VM_KUBELET   the same for test/e2e/kubelet (those about cgroups and events)
#   CRID_VM_KERNEL    uml-deb (default: Debian's ready-made kernel), uml or tcg;
#                     see hack/vm/build-vm.sh
#
# The VM is User-Mode Linux: it needs root for its root file system, but no
# virtualisation. System calls in it are slow, so nothing is measured there.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

export VM_DIR=${CRID_VM_DIR:-/var/cache/crid-vm}
kernel=${CRID_VM_KERNEL:-uml-deb}
limit=2700 # seconds for one boot and what runs in it
# Tests in which the cgroup driver has a say: limits, figures, what ends a whole
# container, what is left. The others run once, with systemd's, as on most nodes.
cgroup_tests='Cgroup|Resource|OOM|Limit|Unified|Stats|Device|Stop|Kill|ExecSync|ConcurrentExecs|StartFail|CreateFail|PodLifecycle|ExitCodes|Restart|NoLeak|Inspect|Leftovers|PIDNamespace$'

build() {
	need_root
	local key
	key="$kernel $(cat hack/vm/build-vm.sh hack/vm/guest/* | sha256sum | cut -d' ' -f1)"
	[ "$(cat "$VM_DIR/made-of" 2>/dev/null)" != "$key" ] || return 0
	hack/deps.sh vm
	mkdir -p "$VM_DIR"
	# One build at a time on a machine; the other one then finds it made.
	exec 9>"$VM_DIR/lock"
	flock 9
	if [ "$(cat "$VM_DIR/made-of" 2>/dev/null)" != "$key" ]; then
		say "making the VM in $VM_DIR (a minute or two)"
		rm -f "$VM_DIR/made-of"
		hack/vm/build-vm.sh rootfs "$kernel" image >"$VM_DIR/build.log" 2>&1 9>&- || {
			tail -n 40 "$VM_DIR/build.log" >&2
			die "could not make the VM; the whole log is $VM_DIR/build.log"
		}
		echo "$key" >"$VM_DIR/made-of"
	fi
	exec 9>&-
}

boot() {
	local backend=uml
	[ "$kernel" != tcg ] || backend=tcg
	hack/vm/run-vm.sh --share "$PWD/bin" --backend "$backend" --timeout "$limit" --mem 4096 -- "$1"
}

# compile puts everything that runs in the VM into bin/vm.
compile() {
	local to=bin/vm p
	rm -rf "$to"
	mkdir -p "$to/kernel"
	make -s --no-print-directory build
	cp -a bin/crid bin/crid-monitor bin/crid-verify bin/cni "$to/"
	go test -c -ldflags '-s -w' -o "$to/e2e.test" ./test/e2e
	go test -c -ldflags '-s -w' -o "$to/kubelet.test" ./test/e2e/kubelet
	hack/kubernetes/build.sh
	cp -L bin/kubernetes/kubelet "$to/"
	# Each test binary runs in a copy of its package's folder, for its testdata.
	go list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}} {{.Dir}}{{end}}' \
		./internal/... ./image/... ./cni/... ./monitor/... ./sandbox/... |
		grep -v -e internal/repotest -e internal/metrics | # these look into the repository
		while read -r path dir; do
			p=$to/kernel/${path//\//%}
			mkdir -p "$p"
			[ ! -d "$dir/testdata" ] || cp -a "$dir/testdata" "$p/"
			go test -c -tags runc_nocriu,seccomp -ldflags '-s -w' -o "$p/pkg.test" "$path"
		done
}

# in_vm is the script that the VM runs: the parts named, from its own disk.
in_vm() {
	cat <<-'E'
		set -u
		mkdir -p /srv/t && cp -a /mnt/vm/. /srv/t/ && cd /srv/t || exit 1
		export CRID_REQUIRE_ROOT=1 CRID_CNI_BIN=/srv/t/cni TMPDIR=/srv/tmp
		mkdir -p $TMPDIR
		rc=0
		# As the go command does: a program that panics or is killed does not
		# say FAIL itself, and may stop in the middle of a line.
		failed() { printf '\n\x16FAIL\n'; rc=1; }
		kernel() {
			for d in kernel/*; do
				echo "package ${d#kernel/}"
				(cd "$d" && ./pkg.test -test.v=test2json -test.timeout 10m) 2>&1 || failed
			done
			# Once more with the other cgroup driver.
			for d in kernel/*monitor%server; do
				echo "package ${d#kernel/}%systemd"
				(cd "$d" && CRID_TEST_CGROUP_DRIVER=systemd ./pkg.test -test.v=test2json -test.timeout 10m) 2>&1 || failed
			done
		}
		kubelet() {
			echo "package test%e2e%kubelet"
			./kubelet.test -test.v=test2json -test.timeout 20m -test.run "$1" -kubelet ./kubelet -crid ./crid -monitor ./crid-monitor -cni-bin ./cni -cgroup-driver systemd 2>&1 || failed
		}
		e2e() {
			echo "package test%e2e%$1"
			./e2e.test -test.v=test2json -test.timeout 40m -test.run "$2" -crid ./crid -monitor ./crid-monitor -cni-bin ./cni -cgroup-driver "$1" 2>&1 || failed
		}
	E
	local part
	for part; do
		case $part in
		kernel) echo kernel ;;
		e2e-cgroupfs) printf 'e2e cgroupfs %q\n' "${CRID_VM_RUN:-$cgroup_tests}" ;;
		e2e-systemd) printf 'e2e systemd %q\n' "${CRID_VM_RUN:-.}" ;;
		kubelet) printf 'kubelet %q\n' "${CRID_VM_KUBELET:-TestHello|TestEventedPLEG|TestFigures|TestEviction|TestResize}" ;;
		*) die "no such part: $part (kernel, e2e-cgroupfs, e2e-systemd, kubelet)" ;;
		esac
	done
	echo 'echo "package"; exit $rc'
}

# to_json cuts what the VM prints at its lines "package PATH" and has go's own
# tool make events of each piece.
to_json() {
	local package='' line piece ended=0
	piece=$(mktemp)
	while IFS= read -r line; do
		case $line in
		package | "package "*)
			if [ -n "$package" ]; then
				go tool test2json -t -p "$package" <"$piece"
			fi
			package=${line#package}
			package=${package# }
			package=${package//%//}
			[ -n "$package" ] || ended=1
			: >"$piece"
			;;
		*) printf '%s\n' "$line" >>"$piece" ;;
		esac
	done
	# The last line is an empty "package", unless the VM did not get to the end.
	if [ "$ended" = 0 ]; then
		[ -z "$package" ] || go tool test2json -t -p "$package" <"$piece"
		echo '{"Action":"output","Package":"vm","Output":"the VM ended before its tests did\n"}'
		echo '{"Action":"fail","Package":"vm"}'
	fi
	rm -f "$piece"
}

# run_parts boots one VM for the parts named and prints their events.
run_parts() {
	local script
	script=$(in_vm "$@")
	boot "$script" | to_json
}

# tests runs the parts with the systemd driver in a VM of their own, beside the
# other: a VM has one processor, and the two together take half the time.
tests() {
	[ $# -gt 0 ] || set -- kernel e2e-cgroupfs kubelet e2e-systemd
	local part first=() second=() events='' pid='' rc=0
	for part; do
		case $part in
		e2e-systemd) second+=("$part") ;;
		*) first+=("$part") ;;
		esac
	done
	in_vm "$@" >/dev/null # a part that is not known ends it here
	need_go
	build
	compile >&2
	say "booting the VM for $*"
	if [ ${#first[@]} -gt 0 ] && [ ${#second[@]} -gt 0 ]; then
		events=$(mktemp)
		run_parts "${second[@]}" >"$events" &
		pid=$!
	fi
	[ ${#first[@]} -gt 0 ] || first=("${second[@]}")
	run_parts "${first[@]}" || rc=$?
	if [ -n "$pid" ]; then
		wait "$pid" || rc=$?
		cat "$events"
		rm -f "$events"
	fi
	return "$rc"
}

what=${1-}
shift || true
case $what in
build) build ;;
run)
	build
	mkdir -p bin
	boot "$*"
	;;
test) tests "$@" ;;
*) die "build, run or test?" ;;
esac
