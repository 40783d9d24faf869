package server

// The init of a shared PID namespace is C, and runs before the Go runtime
// starts: a Go program at rest has megabytes of private memory, this has almost
// none, and there is one for each pod that asks for it.
//
// It gives up its view of the machine's files, because processes of the pod can
// look at /proc/1/root; it keeps its capabilities, because the kernel lets only
// those look who have as many, or CAP_SYS_PTRACE. Such a container could make it
// do whatever it may do itself, as root of the node, so a seccomp filter lets it
// do nothing. Ignoring SIGCHLD makes the kernel reap its
// children without waking it. Nothing is inherited from the monitor, so that it
// lives on when the monitor dies.

/*
#define _GNU_SOURCE
#include <errno.h>
#include <grp.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
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

#if defined(__x86_64__)
#define CRID_ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define CRID_ARCH AUDIT_ARCH_AARCH64
#endif

// The descriptor on which a failure is written; it closes when all went well.
#define CRID_STATUS 3
// The descriptor from which the order to go on comes.
#define CRID_GO 4
// With a user namespace: its descriptor, and the one for the init's number.
#define CRID_USER 5
#define CRID_NUMBER 6

static void crid_fail(const char *what)
{
	dprintf(CRID_STATUS, "%s: %s", what, strerror(errno));
	_exit(1);
}

// crid_confine leaves this process nothing but to close its files and to wait.
static void crid_confine(void)
{
#ifdef CRID_ARCH
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, CRID_ARCH, 0, 6),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_ppoll, 5, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_restart_syscall, 4, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_rt_sigreturn, 3, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_close, 2, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_close_range, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { sizeof filter / sizeof *filter, filter };

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		crid_fail("set no_new_privs");
	// EINVAL: a kernel without filters.
	if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) < 0 && errno != EINVAL)
		crid_fail("set seccomp filter");
#endif
}

// crid_init is the init, in namespaces that have been made.
static int crid_init(void *unused)
{
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
	crid_confine();
	// Whatever else the monitor has inherited; then by hand on old kernels.
	if (syscall(SYS_close_range, 0, ~0U, 0) < 0)
		for (int fd = 0; fd < 1024; fd++)
			close(fd);
	for (;;)
		syscall(SYS_ppoll, NULL, 0, NULL, NULL, 0); // pause() is not on all machines
	return 0;
}

// crid_user starts the init in a PID namespace that belongs to a user namespace,
// which only a process that is in there can make. The init is a sister of this
// process and not its child: its parent is the monitor.
static void crid_user(void)
{
	static char stack[16384] __attribute__((aligned(16)));
	int pid;

	if (setns(CRID_USER, CLONE_NEWUSER) < 0)
		crid_fail("enter user namespace");
	if (setgroups(0, NULL) < 0 || setresgid(0, 0, 0) < 0 || setresuid(0, 0, 0) < 0)
		crid_fail("become root of the user namespace");
	if (unshare(CLONE_NEWPID | CLONE_NEWNS) < 0)
		crid_fail("make PID namespace");
	pid = clone(crid_init, stack + sizeof stack, CLONE_PARENT | SIGCHLD, NULL);
	if (pid < 0)
		crid_fail("start init");
	dprintf(CRID_NUMBER, "%d", pid);
	_exit(0);
}

__attribute__((constructor)) static void crid_pid1(void)
{
	const char *mode = getenv("_CRID_PID1");
	char go;

	if (mode == NULL)
		return;
	// It comes when this process is in its cgroup, by which it can be found. A
	// monitor that dies before has told nobody of it.
	if (read(CRID_GO, &go, 1) != 1)
		_exit(1);
	if (strcmp(mode, "user") == 0)
		crid_user();
	crid_init(NULL);
}
*/
import "C"

// pid1Env makes a start of this program the init of a PID namespace; or, with
// pid1UserEnv, the one that starts it in a user namespace and ends.
const (
	pid1Env     = "_CRID_PID1=1"
	pid1UserEnv = "_CRID_PID1=user"
)
