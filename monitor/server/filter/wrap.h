#ifndef CRID_FILTER_WRAP_H
#define CRID_FILTER_WRAP_H

#include <stddef.h>
#include <stdint.h>

// A recording: this header, the calls, the program.
struct recording {
	char magic[8];
	uint32_t version;  // of libseccomp
	uint32_t arch;     // native
	uint32_t calls;    // bytes
	uint32_t program;  // bytes
	uint32_t kept;     // 1: the program was not compiled but taken from a recording
	uint32_t reserved; // 0
};

// crid_filter_use has the next filter that consists of the calls in r take the
// program in r. r must stay. It returns 0, or -1 when r is no recording of this
// libseccomp.
int crid_filter_use(const void *r, size_t size);

// crid_filter_record has the next export of a filter write a recording to fd,
// and end the process with status 0.
void crid_filter_record(int fd);

#endif
