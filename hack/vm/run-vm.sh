#!/bin/bash
# run-vm.sh - boot the node VM, run one command in it as root, exit as it did.
#
#   run-vm.sh [options] -- COMMAND [ARG...]
#
#   --share DIR      folder of this machine, mounted read-write at /mnt in the
#                    VM; the command starts there
#   --timeout SEC    give up after SEC seconds, boot included (300); exit 124
#   --backend NAME   uml (default): User-Mode Linux, fast
#                    tcg: a whole PC emulated by QEMU, slow, Debian's own kernel
#   --mem MIB        memory (2048)
#   --cpus N         processors (1); see "uml" below before asking for more
#   --console FILE   keep the console log (kernel and systemd messages) there
#   --append "..."   more words for the kernel command line
#
# A COMMAND without ARGs is given to bash, so it may be a whole script; with
# ARGs it is run as it stands.  Its stdout and stderr come out here; its stdin
# is empty.  The root disk is thrown away after each run.
# Exit code: the command's; 124 when time ran out; 125 when the VM did not
# boot or did not finish (the console log's end is then shown).
#
# uml: about 4 s from start to end of an empty command.  The user code runs at
# the processor's own speed, but a fork and exec takes about 10 ms (10 to 15
# times longer than outside) and a system call 15 to 35 us (about 100 times); the
# threads of one process never run at the same time, so --cpus 2 makes several
# processes faster and one Go program slower.
# Controllers: cpuset cpu io memory pids rdma misc dmem; no hugetlb, no perf, no
# KVM, no 32-bit programs, no BPF JIT or kprobes.  Meant for trusted code only.
# tcg: 20 to 30 s; computing 6 times slower than outside, fork and exec 40 times,
# system calls 7 times; all of a stock kernel's controllers.  Fifos and sockets cannot be made in /mnt.
#
# Needs what build-vm.sh made, in $VM_DIR (default: /var/cache/crid-vm).  It only ends processes that it started itself.
set -u
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
vm=${VM_DIR:-/var/cache/crid-vm}
share='' timeout=300 backend=${VM_BACKEND:-uml} mem=2048 cpus=1 console='' append=''

usage() { sed -n '2,/^set -u/{s/^# \{0,1\}//;/^set -u/d;p}' "${BASH_SOURCE[0]}"; exit 125; }
die() { echo "run-vm.sh: $*" >&2; exit 125; }
while [ $# -gt 0 ]; do
	case $1 in
	--share) share=$(realpath -e -- "$2") || exit 125; shift 2 ;;
	--timeout) timeout=$2; shift 2 ;;
	--backend) backend=$2; shift 2 ;;
	--mem) mem=$2; shift 2 ;;
	--cpus) cpus=$2; shift 2 ;;
	--console) console=$2; shift 2 ;;
	--append) append=$2; shift 2 ;;
	--) shift; break ;;
	*) usage ;;
	esac
done
[ $# -gt 0 ] || usage
[ -f "$vm/root.img" ] || die "no $vm/root.img: run build-vm.sh first"

# --- the job folder -----------------------------------------------------------
job=$(mktemp -d /tmp/vm-job.XXXXXX) || exit 125
log=${console:-$job/console}
if [ $# -eq 1 ]; then printf '%s\n' "$1"; else printf '%q ' "$@"; echo; fi >"$job/cmd"
printf 'SHARE=%q\nNOW=%s\n' "$share" "$(date +%s)" >"$job/env"

vmpid='' reader1='' reader2=''
stop() { # end the VM, whose processes form a process group of their own
	[ -n "$vmpid" ] || return 0
	kill -TERM -- "-$vmpid" 2>/dev/null
	for _ in 1 2 3 4 5 6 7 8 9 10; do kill -0 -- "-$vmpid" 2>/dev/null || break; sleep 0.1; done
	kill -KILL -- "-$vmpid" 2>/dev/null
	vmpid=''
}
trap 'stop; rm -rf --one-file-system "$job"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# The VM writes the command's stdout and stderr into these two pipes.
mkfifo "$job/stdout" "$job/stderr"
cat "$job/stdout" & reader1=$!
cat "$job/stderr" >&2 & reader2=$!
exec 3>"$job/stdout" 4>"$job/stderr"

# --- boot ---------------------------------------------------------------------
common="rw console=tty0 quiet security=apparmor systemd.show_status=0 vm.backend=$backend $append"
case $backend in
uml)
	# ubd0: a copy-on-write file over the shared, never written, root image
	# con0: the console log; ssl0/ssl1: serial lines for stdout and stderr
	# hostfs: the VM's root can mount this machine's folders.  Keep it to the job
	# folder (against accidents only: "mount -o /../.." still gets out), into
	# which a private mount namespace brings the shared one.
	mkdir "$job/share"
	into=()
	[ -z "$share" ] || into=(unshare --mount sh -c 'mount --bind "$1" "$2" && shift 2 && exec "$@"' sh "$share" "$job/share")
	# shellcheck disable=SC2086
	setsid "${into[@]}" "$vm/linux" mem="${mem}M" ncpus="$cpus" seccomp=auto \
		umid=vm uml_dir="$job/uml/" hostfs="$job" \
		ubd0="$job/root.cow,$vm/root.img" root=/dev/ubda rootflags=barrier=0 \
		con=null con0=null,fd:5 ssl=null ssl0=null,fd:3 ssl1=null,fd:4 \
		$common \
		</dev/null 5> >(cat >"$log") >"$job/uml.log" 2>&1 &
	;;
tcg)
	share9p=()
	[ -z "$share" ] || share9p=(-virtfs "local,path=$share,mount_tag=share,security_model=passthrough,multidevs=remap")
	setsid qemu-system-x86_64 -M q35 -accel tcg,thread=multi -cpu "${VM_CPU:-max}" \
		-m "$mem" -smp "$cpus" -nodefaults -no-user-config -display none -no-reboot \
		-kernel "$vm/vmlinux" -initrd "$vm/initrd.cpio" \
		-append "console=ttyS0 mitigations=off tsc=reliable no_timer_check $common" \
		-drive "file=$vm/root.img,format=raw,if=none,id=d0,snapshot=on,cache=unsafe" \
		-device virtio-blk-pci,drive=d0 \
		-device virtio-rng-pci \
		-virtfs "local,path=$job,mount_tag=job,security_model=passthrough,multidevs=remap" \
		"${share9p[@]}" \
		-device virtio-serial-pci \
		-chardev file,id=o,path=/dev/fd/3,append=on -device virtserialport,chardev=o,name=stdout \
		-chardev file,id=e,path=/dev/fd/4,append=on -device virtserialport,chardev=e,name=stderr \
		-serial "file:$log" </dev/null >"$job/qemu.log" 2>&1 &
	;;
*)	die "no such backend: $backend" ;;
esac
vmpid=$!
disown "$vmpid" # (no "Aborted" message from bash)
exec 3>&- 4>&-

# --- wait ---------------------------------------------------------------------
end=$((SECONDS + timeout)) late=
while kill -0 "$vmpid" 2>/dev/null; do
	if [ $SECONDS -ge $end ]; then late=1; break; fi
	sleep 0.1
done
stop
wait "$reader1" "$reader2" 2>/dev/null
if [ -n "$late" ]; then
	echo "run-vm.sh: not done within $timeout s" >&2; rc=124
elif [ -s "$job/rc" ]; then
	rc=$(cat "$job/rc")
else
	echo "run-vm.sh: the VM ended without an exit code; its console's last lines:" >&2
	cat "$job"/*.log "$log" 2>/dev/null | tail -n 40 >&2; rc=125
fi
exit "$rc"
