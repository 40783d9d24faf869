package server

// The init of a shared PID namespace is C, and runs before the Go runtime
// starts: a Go program at rest has megabytes of private memory, this has almost
// none, and there is one for each pod that asks for it.
//
// It gives up its view of the machine's files, because processes of the pod can
// look at /proc/1/root; it keeps its capabilities, because the kernel lets only
// those look who have as many. Ignoring SIGCHLD makes the kernel reap its
// children without waking it. Nothing is inherited from the monitor, so that it
// lives on when the monitor dies.

/*
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SYS_close_range
#define SYS_close_range 436
#endif

// The descriptor on which a failure is written; it closes when all went well.
#define CRID_STATUS 3
// The descriptor from which the order to go on comes.
#define CRID_GO 4

static void crid_fail(const char *what)
{
	dprintf(CRID_STATUS, "%s: %s", what, strerror(errno));
	_exit(1);
}

__attribute__((constructor)) static void crid_pid1(void)
{
	char go;

	if (getenv("_CRID_PID1") == NULL)
		return;
	// It comes when this process is in its cgroup, by which it can be found. A
	// monitor that dies before has told nobody of it.
	if (read(CRID_GO, &go, 1) != 1)
		_exit(1);
	prctl(PR_SET_NAME, "crid-pid1");
	signal(SIGCHLD, SIG_IGN);
	// An empty root in a mount namespace of its own.
	if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
		crid_fail("make mounts private");
	if (mount("crid", "/proc", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=4k,mode=555") < 0)
		crid_fail("mount empty root");
	if (chdir("/proc") < 0 || syscall(SYS_pivot_root, ".", ".") < 0)
		crid_fail("change root");
	if (umount2(".", MNT_DETACH) < 0)
		crid_fail("unmount old root");
	if (mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) < 0)
		crid_fail("make root read-only");
	if (chdir("/") < 0)
		crid_fail("enter root");
	// Whatever else the monitor has inherited; then by hand on old kernels.
	if (syscall(SYS_close_range, 0, ~0U, 0) < 0)
		for (int fd = 0; fd < 1024; fd++)
			close(fd);
	for (;;)
		pause();
}
*/
import "C"

// pid1Env makes a start of this program the init of a PID namespace.
const pid1Env = "_CRID_PID1=1"
