/* SPDX-License-Identifier: GPL-2.0 */
/* What every guest-side program needs: a way to fail with a reason, the TSC, and a pause. */
#ifndef ORCH_COMMON_H
#define ORCH_COMMON_H

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define PAGE_BYTES	4096ull
#define HUGE_BYTES	(2ull << 20)

#define ALIGN_UP(x, a)	(((x) + (a) - 1) / (a) * (a))

/*
 * Print file, line, the reason and errno, and leave with 1. The init reports the line over the status channel and
 * the trial is classified as "failed".
 */
#define die(fmt, ...) do {							\
	int die_errno = errno;							\
	fprintf(stderr, "%s:%d: " fmt "%s%s\n", __FILE__, __LINE__,		\
		##__VA_ARGS__, die_errno ? ": " : "",				\
		die_errno ? strerror(die_errno) : "");				\
	fflush(stderr);								\
	_Exit(1);								\
} while (0)

#define die_if(cond, fmt, ...) do {						\
	if (cond)								\
		die(fmt, ##__VA_ARGS__);					\
} while (0)

/*
 * RDTSC, kept in order on both sides. LFENCE lets no later instruction start before all earlier ones have completed,
 * and RDTSC by itself is not ordered at all (Intel SDM vol. 2, RDTSC; AMD APM vol. 3; Linux makes LFENCE dispatch-
 * serialising on AMD, see init_amd() in arch/x86/kernel/cpu/amd.c).
 */
static inline uint64_t rdtsc_ordered(void)
{
	uint32_t low, high;

	__asm__ volatile("lfence; rdtsc; lfence" : "=a"(low), "=d"(high) : : "memory");
	return (uint64_t)high << 32 | low;
}

static inline void sleep_us(uint32_t us)
{
	struct timespec pause = { .tv_sec = us / 1000000, .tv_nsec = us % 1000000 * 1000l };

	nanosleep(&pause, NULL);
}

#endif
