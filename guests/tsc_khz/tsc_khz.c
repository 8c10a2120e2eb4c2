// SPDX-License-Identifier: GPL-2.0
/*
 * Print this machine's TSC frequency in kHz, measured against CLOCK_MONOTONIC_RAW.
 *
 * Under plain TCG an emulated CPU's TSC is the real one (cpu_get_tsc() in QEMU's hw/i386), and a kernel in it that
 * calibrates against emulated timers on a loaded machine can fail; so the kernel is told (tsc_early_khz=). The "cpu
 * MHz" of /proc/cpuinfo is no substitute: it follows the CPU's current clock.
 */
#include <time.h>

#include "common.h"

#define MEASURE_NS	100000000ull
#define TRIES		5

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC_RAW, &now);
	return now.tv_sec * 1000000000ull + now.tv_nsec;
}

/* Both clocks at once: of several readings the one that took least, so that being preempted in between is no error. */
static uint64_t read_both(uint64_t *ns)
{
	uint64_t best = ~0ull, tsc = 0;
	int i;

	for (i = 0; i < TRIES; i++) {
		uint64_t before = rdtsc_ordered();
		uint64_t at = now_ns();
		uint64_t took = rdtsc_ordered() - before;

		if (took < best) {
			best = took;
			tsc = before + took / 2;
			*ns = at;
		}
	}
	return tsc;
}

int main(void)
{
	uint64_t start_ns, end_ns;
	uint64_t start = read_both(&start_ns);
	struct timespec pause = { .tv_nsec = MEASURE_NS };

	nanosleep(&pause, NULL);
	printf("%llu\n", (unsigned long long)((read_both(&end_ns) - start) * 1000000 / (end_ns - start_ns)));
	return 0;
}
