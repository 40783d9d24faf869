#!/usr/bin/env bash
# The body of `make run`: starts crid on a configuration of its own, runs a web
# server in a pod and shows it. May be called again and again.
#
#   hack/run.sh          as above; needs root, bin/crid, bin/crid-monitor, bin/cni
#   hack/run.sh clean    ends all of it and checks that nothing is left
#
# Everything lies below root and state, and is named crid-demo where it cannot:
# a crid that serves this node's kubelet is not touched.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

root=/var/lib/crid-demo
state=/run/crid-demo
bridge=crid-demo0
cgroup=crid-demo
subnet=10.201.88.0/24
config=$root/config.toml
socket=$state/crid.sock
bin=$PWD/bin

say() { printf '\n== %s\n' "$*"; } # part of what is shown, not of a log

# running PATTERN is the processes whose command line ends so, whoever started them.
running() {
	local dir command
	for dir in /proc/[0-9]*; do
		command=$(tr '\0' ' ' 2>/dev/null <"$dir/cmdline") || continue
		# shellcheck disable=SC2053 # a pattern
		[[ $command != *" "$1" " ]] || echo "${dir#/proc/}"
	done
}

daemon_pids() { running "--config $config"; }
monitor_pids() { running "--socket $state/monitor.sock *"; }

# wait_gone PID: waits until a process that was asked to end has done so.
wait_gone() {
	local i
	for i in $(seq 300); do
		[ -d "/proc/$1" ] && [ "$(awk '/^State:/ {print $2}' "/proc/$1/status" 2>/dev/null)" != Z ] || return 0
		sleep 0.1
	done
	return 1
}

write_config() {
	mkdir -p "$root/net.d" "$state"
	# Masquerading lets pods reach beyond this machine; it needs iptables.
	local masq=false
	if iptables -w -t nat -S >/dev/null 2>&1; then masq=true; fi
	cat >"$root/net.d/10-demo.conflist" <<-CNI
		{
		  "cniVersion": "1.1.0", "name": "crid-demo",
		  "plugins": [
		    {"type": "bridge", "bridge": "$bridge", "isGateway": true, "ipMasq": $masq, "hairpinMode": true,
		     "ipam": {"type": "host-local", "dataDir": "$root/ipam",
		       "ranges": [[{"subnet": "$subnet"}]], "routes": [{"dst": "0.0.0.0/0"}]}}
		  ]
		}
	CNI
	cat >"$config" <<-TOML
		root = "$root"
		state = "$state"
		socket = "$socket"
		netns_dir = "$state/netns"
		monitor_binary = "$bin/crid-monitor"
		cgroup_driver = "cgroupfs"
		cgroup_parent = "/$cgroup"
		log_verbosity = 4

		[cni]
		conf_dir = "$root/net.d"
		bin_dirs = ["$bin/cni"]
	TOML
}

start() {
	local pid
	pid=$(daemon_pids)
	if [ -n "$pid" ]; then
		if ! readlink "/proc/$pid/exe" | grep -q '(deleted)$'; then
			say "crid runs from the last time, process $pid"
			return
		fi
		say "crid has been built anew: restarting it, pods run on"
		kill -TERM "$pid"
		wait_gone "$pid" || die "crid, process $pid, does not end; see $state/crid.log"
	fi
	say "Starting crid with $config"
	# The bridge plugin switches forwarding on; clean puts it back.
	[ -f "$root/ip_forward" ] || cat /proc/sys/net/ipv4/ip_forward >"$root/ip_forward"
	setsid "$bin/crid" --config "$config" </dev/null >>"$state/crid.log" 2>&1 &
	pid=$!
	local i
	for i in $(seq 300); do
		if "$bin/crid" --config "$config" pods >/dev/null 2>&1; then
			echo "process $pid, log $state/crid.log"
			return
		fi
		[ -d "/proc/$pid" ] || break
		sleep 0.1
	done
	tail -n 20 "$state/crid.log" >&2
	die "crid does not serve; the end of its log is above"
}

build_demo() {
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '-s -w' -o "$bin/demo-web" ./hack/demo/web
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -o "$bin/demo" ./hack/demo
}

import_image() {
	say "Making an image and importing it"
	build_demo
	"$bin/demo" image "$root/web.tar" "$bin/demo-web"
	"$bin/crid" --config "$config" image import "$root/web.tar"
}

run() {
	need_root
	need_go
	local f
	for f in crid crid-monitor cni/bridge cni/host-local; do
		[ -x "$bin/$f" ] || die "bin/$f is missing: run make build"
	done
	write_config
	start
	import_image
	"$bin/demo" up "$socket" "$root/logs"
	say "crid pods"
	"$bin/crid" --config "$config" pods
	local ids pod id
	ids=$("$bin/demo" id "$socket")
	read -r pod id <<<"$ids"
	say "How to go on, as root"
	cat <<-HELP
		export CONTAINER_RUNTIME_ENDPOINT=unix://$socket
		crictl pods
		crictl ps
		crictl logs -f $id
		crictl exec -it $id cat    # Ctrl-D ends it
		crictl port-forward $pod 8080:8080
		crictl stats
		kubelet --container-runtime-endpoint=unix://$socket ...
		$bin/crid --config $config check
		make clean-run         # ends all this and leaves nothing behind
	HELP
}

clean() {
	need_root
	local pid
	if [ -n "$(ls "$root/sandboxes" 2>/dev/null)" ]; then
		# crid itself takes its pods down, also those of a crid that was killed.
		[ -x "$bin/crid" ] && [ -x "$bin/crid-monitor" ] || die "there are pods to remove, for which crid is needed: run make build"
		[ -x "$bin/demo" ] || { need_go && build_demo; }
		[ -n "$(daemon_pids)" ] || start
		say "Removing pods"
		"$bin/demo" down "$socket" || echo "some pods could not be removed, going on without crid"
	fi
	local pids
	pids="$(daemon_pids) $(monitor_pids)"
	[ -z "${pids// /}" ] || say "Ending crid and its monitor"
	for pid in $pids; do
		kill -TERM "$pid" 2>/dev/null || true
		if ! wait_gone "$pid"; then
			echo "process $pid does not end on SIGTERM, killing it"
			kill -KILL "$pid" 2>/dev/null || true
			wait_gone "$pid" || die "process $pid cannot be killed"
		fi
	done
	kill_containers
	remove_mounts
	remove_rules
	ip link delete "$bridge" 2>/dev/null || true
	local dir
	for dir in $(cgroup_dirs); do
		find "$dir" -depth -type d -exec rmdir {} \; 2>/dev/null || true
	done
	if [ -f "$root/ip_forward" ]; then cat "$root/ip_forward" >/proc/sys/net/ipv4/ip_forward; fi
	rm -rf --one-file-system "$root" "$state"
	rm -f "$bin/demo" "$bin/demo-web"
	left
}

# kill_containers ends what crid could not end.
kill_containers() {
	local dir pid
	for dir in $(cgroup_dirs); do
		for pid in $(find "$dir" -name cgroup.procs -exec cat {} + 2>/dev/null | sort -u); do
			kill -KILL "$pid" 2>/dev/null || true
			wait_gone "$pid" || true
		done
	done
}

# mounts_below lists what is mounted in root and state.
mounts_below() {
	awk -v a="$root" -v b="$state" '$5 == a || $5 == b || index($5, a "/") == 1 || index($5, b "/") == 1 {print $5}' \
		/proc/self/mountinfo
}

# remove_mounts unmounts it, the innermost first.
remove_mounts() {
	local point
	mounts_below | tac | while read -r point; do umount -l "$point" || true; done
}

# rules are those for masquerading, one line each as iptables takes them.
rules() { iptables -w -t nat -S 2>/dev/null | grep -F 'name: \"crid-demo\" id: ' || true; }

# remove_rules removes those that the bridge plugin leaves when a pod's network
# namespace went before it was asked to let go of it.
remove_rules() {
	local rule chain chains=()
	while read -r rule; do
		eval "iptables -w -t nat -D ${rule#-A }" # its words are quoted for a shell
		chain=${rule#-A }
		chain=${chain%% *}
		[ "$chain" = POSTROUTING ] || chains+=("$chain")
	done < <(rules)
	[ ${#chains[@]} = 0 ] || printf '%s\n' "${chains[@]}" | sort -u |
		while read -r chain; do iptables -w -t nat -X "$chain" || true; done
}

cgroup_dirs() { find /sys/fs/cgroup -maxdepth 3 -type d -path "*/$cgroup" 2>/dev/null || true; }

# left fails if anything of the demo is still there, and says what.
left() {
	local found
	found=$(
		[ -e "$root" ] && echo "folder $root"
		[ -e "$state" ] && echo "folder $state"
		mounts_below | sed 's/^/mount /'
		ip -o link show "$bridge" 2>/dev/null | sed 's/^/link /'
		cgroup_dirs | sed 's/^/cgroup /'
		daemon_pids | sed 's/^/crid, process /'
		monitor_pids | sed 's/^/crid-monitor, process /'
		rules | sed 's/^/iptables rule /'
		true
	)
	[ -z "$found" ] || die "this is left behind:
$found"
	say "Nothing is left of the demo"
}

case "${1:-run}" in
run) run ;;
clean) clean ;;
*)
	echo "usage: hack/run.sh [clean]" >&2
	exit 2
	;;
esac
