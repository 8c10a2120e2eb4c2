// SPDX-License-Identifier: GPL-2.0
/*
 * Where pages lie in guest memory: /proc/self/pagemap, a u64 a page, bit 63 present, bits 0-54 the pfn, which only
 * CAP_SYS_ADMIN gets to see (Documentation/admin-guide/mm/pagemap.rst).
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <unistd.h>

#include "common.h"
#include "fault_bench.h"

#define PRESENT		(1ull << 63)
#define PFN_MASK	((1ull << 55) - 1)

void pagemap_read(const void *start, uint64_t *gpas, uint64_t pages)
{
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	uint64_t i, done = 0;

	if (fd < 0)
		fail("open /proc/self/pagemap: the guest's kernel needs CONFIG_PROC_PAGE_MONITOR");
	while (done < pages * sizeof(*gpas)) {
		ssize_t bytes = pread(fd, (uint8_t *)gpas + done, pages * sizeof(*gpas) - done,
				      (uint64_t)start / PAGE_BYTES * sizeof(*gpas) + done);

		if (bytes <= 0)
			fail("read of /proc/self/pagemap");
		done += bytes;
	}
	close(fd);
	for (i = 0; i < pages; i++) {
		errno = 0;
		if (!(gpas[i] & PRESENT) || !(gpas[i] & PFN_MASK))
			fail("page %llu of %llu is not there, or not shown", (unsigned long long)i,
			     (unsigned long long)pages);
		gpas[i] = (gpas[i] & PFN_MASK) * PAGE_BYTES;
	}
}
