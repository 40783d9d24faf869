//go:build cgo && seccomp

// The calls by which a filter is made, on their way to libseccomp. The linker
// sends them here (--wrap, see wrap.go); libseccomp's own are __real_*.
//
// While the calls are those of a recording, libseccomp is not told of the rules,
// which are the many and the costly. Once the whole recording has been followed,
// its program is the result. At the first call that differs, libseccomp is told
// of what it has missed, in order, and makes the filter as if nobody had come
// between. So a wrong recording costs time and changes no filter.

#define _GNU_SOURCE
#include "wrap.h"

#include <errno.h>
#include <seccomp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MAGIC "cridbpf1"
#define MAX_ARGS 6

scmp_filter_ctx __real_seccomp_init(uint32_t);
int __real_seccomp_reset(scmp_filter_ctx, uint32_t);
void __real_seccomp_release(scmp_filter_ctx);
int __real_seccomp_merge(scmp_filter_ctx, scmp_filter_ctx);
int __real_seccomp_arch_add(scmp_filter_ctx, uint32_t);
int __real_seccomp_arch_remove(scmp_filter_ctx, uint32_t);
int __real_seccomp_attr_set(scmp_filter_ctx, enum scmp_filter_attr, uint32_t);
int __real_seccomp_syscall_priority(scmp_filter_ctx, int, uint8_t);
int __real_seccomp_rule_add_array(scmp_filter_ctx, uint32_t, int, unsigned int, const struct scmp_arg_cmp *);
int __real_seccomp_rule_add_exact_array(scmp_filter_ctx, uint32_t, int, unsigned int, const struct scmp_arg_cmp *);
int __real_seccomp_load(scmp_filter_ctx);
int __real_seccomp_export_bpf(scmp_filter_ctx, int);

enum kind { INIT = 1, ARCH_ADD, ARCH_REMOVE, ATTR_SET, RULE, RULE_EXACT };

// A call in a recording. All bytes are set, so that calls can be compared as bytes.
struct arg {
	uint32_t index, op;
	uint64_t a, b;
};
struct call {
	uint32_t kind;
	uint32_t value;  // action, architecture or attribute
	int32_t number;  // of the system call; the attribute's value
	int32_t result;  // of libseccomp, but for rules, which have succeeded
	uint32_t argc;
	uint32_t reserved;
};

static struct {
	scmp_filter_ctx ctx; // the filter that is watched; NULL: none yet
	int lost;            // a call came that is not understood here: hands off
	uint8_t *calls;      // so far
	size_t len, cap;
	size_t told;         // libseccomp knows the calls up to here
	const struct recording *use;
	int following;       // the calls so far are those of use
	int out;             // where a recording goes; -1: none is made
} w = { .out = -1 };

static const uint8_t *use_calls(void) { return (const uint8_t *)(w.use + 1); }

static uint32_t version(void)
{
	const struct scmp_version *v = seccomp_version();
	return v->major << 16 | v->minor << 8 | v->micro;
}

int crid_filter_use(const void *p, size_t size)
{
	const struct recording *r = p;
	if (size < sizeof(*r) || memcmp(r->magic, MAGIC, sizeof(r->magic)) != 0 || r->version != version() ||
	    r->arch != seccomp_arch_native() || r->program == 0 || size != sizeof(*r) + (size_t)r->calls + r->program)
		return -1;
	w.use = r;
	w.following = 1;
	return 0;
}

void crid_filter_record(int fd) { w.out = fd; }

// note adds a call. It returns -1 when there is no memory for it.
static int note(struct call c, const struct scmp_arg_cmp *args)
{
	size_t size = sizeof(c) + c.argc * sizeof(struct arg);
	size_t at = w.len;
	if (w.len + size > w.cap) {
		size_t cap = 2 * w.cap + size + 4096;
		uint8_t *more = realloc(w.calls, cap);
		if (more == NULL)
			return -1;
		w.calls = more;
		w.cap = cap;
	}
	memcpy(w.calls + w.len, &c, sizeof(c));
	w.len += sizeof(c);
	for (uint32_t i = 0; i < c.argc; i++) {
		struct arg a = { args[i].arg, args[i].op, args[i].datum_a, args[i].datum_b };
		memcpy(w.calls + w.len, &a, sizeof(a));
		w.len += sizeof(a);
	}
	if (w.following && (w.len > w.use->calls || memcmp(w.calls + at, use_calls() + at, size) != 0))
		w.following = 0;
	return 0;
}

static int real_rule(enum kind kind, scmp_filter_ctx ctx, uint32_t action, int number, unsigned int argc, const struct scmp_arg_cmp *args)
{
	return kind == RULE ? __real_seccomp_rule_add_array(ctx, action, number, argc, args)
			    : __real_seccomp_rule_add_exact_array(ctx, action, number, argc, args);
}

// tell tells libseccomp of the rules that it has missed.
static int tell(void)
{
	while (w.told < w.len) {
		struct call c;
		struct scmp_arg_cmp args[MAX_ARGS];
		memcpy(&c, w.calls + w.told, sizeof(c));
		w.told += sizeof(c);
		for (uint32_t i = 0; i < c.argc; i++) {
			struct arg a;
			memcpy(&a, w.calls + w.told, sizeof(a));
			w.told += sizeof(a);
			args[i] = (struct scmp_arg_cmp){ a.index, a.op, a.a, a.b };
		}
		int rc = real_rule(c.kind, w.ctx, c.value, c.number, c.argc, args);
		if (rc != 0) {
			w.lost = 1; // whoever asks gets the error; nothing is kept of such a filter
			return rc;
		}
	}
	return 0;
}

// watched reports whether ctx is the filter that is watched.
static int watched(scmp_filter_ctx ctx) { return ctx != NULL && ctx == w.ctx && !w.lost; }

// let_go is for calls that are not understood here.
static int let_go(scmp_filter_ctx ctx)
{
	int rc = 0;
	if (watched(ctx)) {
		rc = tell();
		w.lost = 1;
	}
	return rc;
}

scmp_filter_ctx __wrap_seccomp_init(uint32_t action)
{
	let_go(w.ctx); // a second one: this process does something else
	scmp_filter_ctx ctx = __real_seccomp_init(action);
	if (w.ctx == NULL && ctx != NULL) {
		w.ctx = ctx;
		if (note((struct call){ .kind = INIT, .value = action }, NULL) != 0)
			w.lost = 1;
		w.told = w.len;
	}
	return ctx;
}

// at_once is for calls that are few and cheap: libseccomp is told, and then they
// are noted with its answer.
static int at_once(scmp_filter_ctx ctx, struct call c, int rc)
{
	if (watched(ctx)) {
		c.result = rc;
		if (note(c, NULL) != 0)
			w.lost = 1;
		w.told = w.len;
	}
	return rc;
}

// before_other keeps the order when such a call comes after rules.
static int before_other(scmp_filter_ctx ctx) { return watched(ctx) ? tell() : 0; }

int __wrap_seccomp_arch_add(scmp_filter_ctx ctx, uint32_t arch)
{
	int rc = before_other(ctx);
	return rc ? rc : at_once(ctx, (struct call){ .kind = ARCH_ADD, .value = arch }, __real_seccomp_arch_add(ctx, arch));
}

int __wrap_seccomp_arch_remove(scmp_filter_ctx ctx, uint32_t arch)
{
	int rc = before_other(ctx);
	return rc ? rc : at_once(ctx, (struct call){ .kind = ARCH_REMOVE, .value = arch }, __real_seccomp_arch_remove(ctx, arch));
}

int __wrap_seccomp_attr_set(scmp_filter_ctx ctx, enum scmp_filter_attr attr, uint32_t value)
{
	int rc = before_other(ctx);
	return rc ? rc : at_once(ctx, (struct call){ .kind = ATTR_SET, .value = attr, .number = (int32_t)value },
				 __real_seccomp_attr_set(ctx, attr, value));
}

static int rule(enum kind kind, scmp_filter_ctx ctx, uint32_t action, int number, unsigned int argc, const struct scmp_arg_cmp *args)
{
	struct call c = { .kind = kind, .value = action, .number = number, .argc = argc };
	if (!watched(ctx) || argc > MAX_ARGS || note(c, args) != 0) {
		int rc = let_go(ctx);
		return rc ? rc : real_rule(kind, ctx, action, number, argc, args);
	}
	return w.following ? 0 : tell();
}

int __wrap_seccomp_rule_add_array(scmp_filter_ctx ctx, uint32_t action, int number, unsigned int argc, const struct scmp_arg_cmp *args)
{
	return rule(RULE, ctx, action, number, argc, args);
}

int __wrap_seccomp_rule_add_exact_array(scmp_filter_ctx ctx, uint32_t action, int number, unsigned int argc, const struct scmp_arg_cmp *args)
{
	return rule(RULE_EXACT, ctx, action, number, argc, args);
}

int __wrap_seccomp_reset(scmp_filter_ctx ctx, uint32_t action)
{
	let_go(ctx);
	return __real_seccomp_reset(ctx, action);
}

int __wrap_seccomp_merge(scmp_filter_ctx to, scmp_filter_ctx from)
{
	int rc = let_go(to);
	if (rc == 0)
		rc = let_go(from);
	return rc ? rc : __real_seccomp_merge(to, from);
}

int __wrap_seccomp_syscall_priority(scmp_filter_ctx ctx, int number, uint8_t priority)
{
	int rc = let_go(ctx);
	return rc ? rc : __real_seccomp_syscall_priority(ctx, number, priority);
}

int __wrap_seccomp_load(scmp_filter_ctx ctx)
{
	int rc = let_go(ctx);
	return rc ? rc : __real_seccomp_load(ctx);
}

void __wrap_seccomp_release(scmp_filter_ctx ctx)
{
	if (ctx != NULL && ctx == w.ctx)
		w.lost = 1; // its address may come again
	__real_seccomp_release(ctx);
}

static int write_all(int fd, const void *data, size_t size)
{
	while (size > 0) {
		ssize_t n = write(fd, data, size);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		data = (const char *)data + n;
		size -= n;
	}
	return 0;
}

// compiled is what libseccomp makes of the filter, in memory that is mapped.
static int compiled(scmp_filter_ctx ctx, const void **program, size_t *size)
{
	int fd = memfd_create("filter", MFD_CLOEXEC);
	if (fd < 0)
		return -errno;
	int rc = __real_seccomp_export_bpf(ctx, fd);
	off_t end = lseek(fd, 0, SEEK_END);
	if (rc == 0 && end <= 0)
		rc = -EIO;
	if (rc == 0) {
		void *p = mmap(NULL, end, PROT_READ, MAP_PRIVATE, fd, 0);
		if (p == MAP_FAILED)
			rc = -errno;
		*program = p;
		*size = end;
	}
	close(fd);
	return rc;
}

// deliver writes a recording and ends the process.
static void deliver(scmp_filter_ctx ctx, int kept)
{
	const void *program = NULL;
	size_t size = 0;
	int rc = 0;
	if (kept) {
		program = use_calls() + w.use->calls;
		size = w.use->program;
	} else {
		rc = compiled(ctx, &program, &size);
	}
	struct recording r = { .version = version(), .arch = seccomp_arch_native(), .calls = w.len, .program = size, .kept = kept };
	memcpy(r.magic, MAGIC, sizeof(r.magic));
	if (rc == 0)
		rc = write_all(w.out, &r, sizeof(r));
	if (rc == 0)
		rc = write_all(w.out, w.calls, w.len);
	if (rc == 0)
		rc = write_all(w.out, program, size);
	_exit(rc == 0 ? 0 : 1);
}

int __wrap_seccomp_export_bpf(const scmp_filter_ctx ctx, int fd)
{
	if (!watched(ctx))
		return __real_seccomp_export_bpf(ctx, fd);
	int kept = w.following && w.len == w.use->calls;
	if (!kept) {
		int rc = tell();
		if (rc != 0)
			return rc;
	}
	if (w.out >= 0)
		deliver(ctx, kept);
	if (kept)
		return write_all(fd, use_calls() + w.use->calls, w.use->program);
	return __real_seccomp_export_bpf(ctx, fd);
}
