#!/bin/bash
# build-vm.sh - make the node VM that run-vm.sh boots: a Debian system with
# systemd, cgroup v2 (unified) and AppArmor, for testing a container runtime
# on a machine whose own kernel has cgroup v1, no AppArmor, and no usable KVM.
#
#   build-vm.sh [rootfs|uml|uml-deb|tcg|image]...    (default: rootfs uml image)
#
#   rootfs   Debian bookworm in a folder (mmdebstrap), plus the guest agent
#   uml      a User-Mode Linux kernel (a real kernel that runs as an ordinary
#            process), compiled from Debian's linux-source with guest/uml.config:
#            about 10 minutes on two idle cores
#   uml-deb  instead of `uml`: Debian's ready-made package user-mode-linux; seconds
#            to install, but one processor only and no cpuset controller
#   tcg      Debian's stock kernel, for emulation in QEMU (slow, but exactly
#            the kernel that Debian ships)
#   image    the root disk, from the folder and the kernels' modules; always last
#
# Environment:
#   VM_DIR         where the results go (default: /var/cache/crid-vm)
#   VM_PACKAGES    more Debian packages for the VM's root file system
#   VM_DISK        size of the root disk (8G; sparse)
#   VM_KSUITE      Debian suite of the User-Mode Linux kernel (sid: it takes Linux
#                  6.16 for the fast seccomp mode, 6.19 for several processors)
#   VM_TCG_SUITE   Debian suite of the stock kernel (bookworm; bookworm-backports
#                  has a newer one)
#   JOBS           parallel compile jobs (number of processors)
#
# Needs root, Debian 12 or later, and Debian's package mirror.  Nothing but
# VM_DIR is written, except for the build tools that it installs with apt-get.
set -eu
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=${VM_DIR:-/var/cache/crid-vm}
ksuite=${VM_KSUITE:-sid}
mkdir -p "$out"
log() { echo "== $(date +%T) $*"; }

tools() {
	local want=() p
	for p in mmdebstrap e2fsprogs kmod cpio xz-utils "$@"; do
		dpkg -s "$p" >/dev/null 2>&1 || want+=("$p")
	done
	[ ${#want[@]} = 0 ] || { apt-get update -q; apt-get install -qy --no-install-recommends "${want[@]}"; }
}

# fetch SUITE PACKAGE: download PACKAGE of a Debian SUITE into $out/debs, without
# adding that suite to this machine's apt sources.
fetch() {
	local d=$out/apt-$1 o
	mkdir -p "$d/lists/partial" "$out/debs"
	# the mirror that this machine already uses
	local mirror
	mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -v security | head -n 1)
	echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] ${mirror:?no apt source} $1 main" >"$d/sources.list"
	o=(-o Dir::Etc::sourcelist="$d/sources.list" -o Dir::Etc::sourceparts=- -o Dir::State::lists="$d/lists"
		-o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false -o APT::Sandbox::User=root)
	[ -n "$(ls "$d/lists"/*Packages* 2>/dev/null)" ] || apt-get "${o[@]}" update -q >&2
	local p=$2
	# A metapackage (linux-source, linux-image-amd64): take what it depends on.
	case $p in linux-source | linux-image-*64)
		p=$(apt-cache "${o[@]}" depends "$p" | awk '$1 == "Depends:" && /linux-/ {print $2; exit}') ;;
	esac
	(cd "$out/debs" && apt-get "${o[@]}" download -q "$p" >&2)
	ls -t "$out/debs/${p}"_*.deb | head -n 1
}

rootfs() {
	log "rootfs: Debian bookworm"
	tools
	rm -rf --one-file-system "$out/rootfs"
	mmdebstrap --quiet --variant=minbase --include="$(tr ' ' , <<<"systemd systemd-sysv dbus udev \
iproute2 iptables nftables ipset conntrack procps psmisc kmod apparmor apparmor-utils busybox-static strace \
ca-certificates iputils-ping curl socat util-linux mount e2fsprogs xfsprogs gzip xz-utils file passwd uidmap \
login libseccomp2 ${VM_PACKAGES-}" | tr -s ,)" bookworm "$out/rootfs"
	local r=$out/rootfs
	install -m 755 "$here/guest/vm-agent" "$r/usr/local/sbin/vm-agent"
	install -m 644 "$here/guest/vm-agent.service" "$r/etc/systemd/system/vm-agent.service"
	echo node-vm >"$r/etc/hostname"
	printf '127.0.0.1 localhost node-vm\n::1 localhost\n' >"$r/etc/hosts"
	: >"$r/etc/fstab"
	: >"$r/etc/machine-id"
	mkdir -p "$r/etc/systemd/journald.conf.d" "$r/mnt"
	printf '[Journal]\nStorage=volatile\nRuntimeMaxUse=64M\n' >"$r/etc/systemd/journald.conf.d/vm.conf"
	# Boot no more than a node needs: no cold-plugging of (absent) hardware, no
	# timers, no login prompts; /dev comes from devtmpfs.
	chroot "$r" systemctl --quiet enable vm-agent.service
	chroot "$r" systemctl --quiet mask systemd-udev-trigger.service systemd-pstore.service \
		systemd-random-seed.service systemd-update-utmp.service systemd-update-utmp-runlevel.service \
		systemd-tmpfiles-clean.timer apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer \
		e2scrub_all.timer e2scrub_reap.service fstrim.timer getty.target console-getty.service \
		modprobe@drm.service systemd-hwdb-update.service systemd-journal-flush.service \
		nftables.service ipset.service 2>/dev/null || true
	# Debian's own few AppArmor profiles only cost boot time; the abstractions
	# that other profiles include stay.
	find "$r/etc/apparmor.d" -maxdepth 1 -type f -delete
	rm -rf "$r"/var/lib/apt/lists/* "$r"/usr/share/doc/* "$r"/usr/share/man/*
}

uml() {
	log "uml: kernel from linux-source ($ksuite)"
	tools gcc make flex bison bc libc6-dev
	local deb src
	deb=$(fetch "$ksuite" linux-source)
	rm -rf --one-file-system "$out/src"
	mkdir -p "$out/src"
	dpkg-deb --fsys-tarfile "$deb" | tar -xO --wildcards './usr/src/linux-source-*.tar.xz' | tar -xJ -C "$out/src"
	src=$(echo "$out"/src/linux-source-*)
	make -s -C "$src" ARCH=um defconfig
	(cd "$src" && scripts/kconfig/merge_config.sh -m .config "$here/guest/uml.config" >/dev/null)
	make -s -C "$src" ARCH=um olddefconfig
	sed -i 's/=m$/=n/' "$src/.config" # all built in: the VM loads no modules
	make -s -C "$src" ARCH=um olddefconfig
	# Say which wishes the kernel did not take (hugetlb: no such thing in UML).
	grep '=y$' "$here/guest/uml.config" | grep -vxFf "$src/.config" | sed 's/^/not available: /' || true
	make -s -C "$src" ARCH=um -j "${JOBS:-$(nproc)}" linux
	strip -g -o "$out/linux" "$src/linux"
	cp "$src/.config" "$out/linux.config"
	rm -rf --one-file-system "$out/src" "$out/uml-deb"
	log "uml: Linux $("$out/linux" --version)"
}

uml_deb() {
	log "uml-deb: Debian's user-mode-linux ($ksuite)"
	tools patchelf
	local deb libc
	deb=$(fetch "$ksuite" user-mode-linux)
	libc=$(fetch "$ksuite" libc6)
	rm -rf --one-file-system "$out/uml-deb"
	mkdir -p "$out/uml-deb"
	dpkg-deb -x "$deb" "$out/uml-deb"
	dpkg-deb -x "$libc" "$out/uml-deb"
	# The binary wants a newer libc than this machine's: give it its own.
	cp "$out/uml-deb/usr/bin/linux.uml" "$out/linux"
	patchelf --set-interpreter "$out/uml-deb/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2" \
		--set-rpath "$out/uml-deb/usr/lib/x86_64-linux-gnu" "$out/linux"
	log "uml-deb: Linux $("$out/linux" --version)"
}

tcg() {
	log "tcg: Debian's stock kernel"
	tools qemu-system-x86
	local deb k kver list i=10 f
	deb=$(fetch "${VM_TCG_SUITE:-bookworm}" linux-image-amd64)
	k=$out/kernel
	rm -rf --one-file-system "$k"
	mkdir -p "$k"
	dpkg-deb -x "$deb" "$k"
	kver=$(ls "$k/lib/modules")
	depmod -b "$k" "$kver"
	# The uncompressed kernel: QEMU starts it directly (PVH), which skips the
	# firmware and the slow, emulated decompression.
	python3 - "$k/boot/vmlinuz-$kver" "$out/vmlinux" <<-'PY'
		import subprocess, sys
		d = open(sys.argv[1], 'rb').read()
		for magic, tool in ((b'\xfd7zXZ\0', 'xz'), (b'\x28\xb5\x2f\xfd', 'zstd'), (b'\x02\x21\x4c\x18', 'lz4'), (b'\x1f\x8b\x08', 'gzip')):
		    i = d.find(magic)
		    while i >= 0:
		        try:
		            p = subprocess.run([tool, '-dc'], input=d[i:], capture_output=True).stdout
		        except FileNotFoundError:
		            break
		        if p[:4] == b'\x7fELF':
		            open(sys.argv[2], 'wb').write(p)
		            sys.exit(0)
		        i = d.find(magic, i + 1)
		sys.exit('no kernel image found in ' + sys.argv[1])
	PY
	# A minimal initrd: just the modules that the root disk needs.
	rm -rf --one-file-system "$out/initrd"
	mkdir -p "$out/initrd"/{bin,mod,dev,root}
	cp "$out/rootfs/bin/busybox" "$out/initrd/bin/"
	list=$(for f in virtio_pci virtio_blk crc32c_generic ext4; do
		modprobe -d "$k" -S "$kver" --show-depends "$f"; done | awk '$1 == "insmod" && !s[$2]++ {print $2}')
	for f in $list; do cp "$f" "$out/initrd/mod/$((i++))-${f##*/}"; done
	cat >"$out/initrd/init" <<-'SH'
		#!/bin/busybox sh
		/bin/busybox mount -t devtmpfs dev /dev
		for m in /mod/*; do
			case $m in *.xz) /bin/busybox xz -dc $m >/m.ko; m=/m.ko ;; esac
			/bin/busybox insmod $m
		done
		/bin/busybox mount -t ext4 -o rw,noatime,nobarrier /dev/vda /root || exec /bin/busybox sh
		exec /bin/busybox switch_root /root /sbin/init
	SH
	chmod +x "$out/initrd/init"
	(cd "$out/initrd" && find . | cpio --quiet -o -H newc) >"$out/initrd.cpio"
	rm -rf --one-file-system "$out/initrd"
	log "tcg: Linux $kver"
}

image() {
	log "image: root disk"
	local r=$out/rootfs kver
	rm -rf --one-file-system "$r/lib/modules"
	if [ -d "$out/uml-deb" ]; then
		mkdir -p "$r/lib/modules"
		cp -a "$out"/uml-deb/usr/lib/uml/modules/* "$r/lib/modules/"
	fi
	if [ -d "$out/kernel/lib/modules" ]; then
		kver=$(ls "$out/kernel/lib/modules")
		mkdir -p "$r/lib/modules"
		# Leave out drivers for hardware that the VM does not have.
		(cd "$out/kernel/lib/modules" && tar -cf - --exclude=sound --exclude='*/drivers/gpu' --exclude='*/drivers/media' \
			--exclude='*/drivers/infiniband' --exclude='*/drivers/net/wireless' --exclude='*/drivers/net/ethernet' \
			--exclude='*/drivers/iio' --exclude='*/drivers/staging' --exclude='*/drivers/scsi' --exclude='*/drivers/usb' \
			--exclude='*/drivers/hwmon' --exclude='*/drivers/input' --exclude='*/net/wireless' "$kver") |
			tar -xf - -C "$r/lib/modules"
		depmod -b "$r" "$kver"
	fi
	rm -f "$out/root.img"
	mkfs.ext4 -q -F -O ^has_journal -E lazy_itable_init=1 -L node-vm -d "$r" "$out/root.img" "${VM_DISK:-8G}"
	log "image: $(du -h "$out/root.img" | cut -f1) used of ${VM_DISK:-8G}"
}

[ $# -gt 0 ] || set -- rootfs uml image
for what; do
	case $what in
	rootfs | uml | tcg | image) "$what" ;;
	uml-deb) uml_deb ;;
	*) sed -n '2,/^set -eu/{s/^# \{0,1\}//;/^set -eu/d;p}' "${BASH_SOURCE[0]}"; exit 2 ;;
	esac
done
