// SPDX-License-Identifier: GPL-2.0
/* What a guest feels of the storm besides its faults: CPU time that it wanted and did not get, and late wakeups. */
#define _GNU_SOURCE
#include <sched.h>
#include <time.h>
#include <unistd.h>

#include "common.h"
#include "fault_bench.h"

#define NS_PER_S	1000000000ll

/* The eighth number of /proc/stat's first line, in clock ticks: what the host's scheduler gave to others. */
uint64_t steal_ns(void)
{
	FILE *file = fopen("/proc/stat", "re");
	unsigned long long ticks;

	if (!file || fscanf(file, "cpu %*u %*u %*u %*u %*u %*u %*u %llu", &ticks) != 1)
		fail("no steal time in /proc/stat");
	fclose(file);
	return ticks * (NS_PER_S / sysconf(_SC_CLK_TCK));
}

static int64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * NS_PER_S + now.tv_nsec;
}

static int by_value(const void *left, const void *right)
{
	uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;

	return (a > b) - (a < b);
}

static void summarize(uint64_t *late_ns, uint32_t count, struct mailbox_results *results)
{
	uint64_t sum = 0;
	uint32_t i;

	qsort(late_ns, count, sizeof(*late_ns), by_value);
	for (i = 0; i < count; i++)
		sum += late_ns[i];
	results->jitter_p50_ns = late_ns[(count - 1) / 2];
	results->jitter_p99_ns = late_ns[(uint64_t)(count - 1) * 99 / 100];
	results->jitter_max_ns = late_ns[count - 1];
	results->jitter_mean_ns = sum / count;
	results->jitter_wakeups = count;
}

/* On CPU 0, whose vCPU is the one that a storm on the same CPU disturbs. */
static void become_urgent(void)
{
	struct sched_param high = { .sched_priority = 80 };
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(0, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		fail("sched_setaffinity: %s", strerror(errno));
	if (sched_setscheduler(0, SCHED_FIFO, &high))
		fail("SCHED_FIFO: %s", strerror(errno));
}

/* Periods that have passed before the thread slept again: no wakeups of their own, or one stall would be many. */
static uint64_t skip_missed(int64_t *due_ns, int64_t now, int64_t period_ns)
{
	uint64_t missed = now > *due_ns ? (now - *due_ns + period_ns - 1) / period_ns : 0;

	*due_ns += missed * period_ns;
	return missed;
}

/*
 * As cyclictest does it: sleep until a time, at real-time priority, see how much later it is, and go on with the first
 * period that is still to come.
 */
void jitter_measure(struct mailbox *box)
{
	struct sched_param normal = { .sched_priority = 0 };
	uint32_t count = box->trial.jitter_wakeups, i;
	uint64_t *late_ns = calloc(count, sizeof(*late_ns));
	int64_t period_ns = box->trial.jitter_period_us * 1000ll, due_ns, woke_ns;
	uint64_t missed = 0;

	if (!late_ns)
		fail("calloc for %u wakeups", count);
	memset(late_ns, 1, count * sizeof(*late_ns));	/* pages that are there when the loop writes to them */
	become_urgent();
	due_ns = now_ns() + period_ns;
	for (i = 0; i < count; i++) {
		struct timespec due = { due_ns / NS_PER_S, due_ns % NS_PER_S };

		while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL))
			;
		woke_ns = now_ns();
		late_ns[i] = woke_ns - due_ns;
		due_ns += period_ns;
		if (i + 1 < count)
			missed += skip_missed(&due_ns, woke_ns, period_ns);
	}
	sched_setscheduler(0, SCHED_OTHER, &normal);
	summarize(late_ns, count, &box->results);
	box->results.jitter_missed = missed;
	free(late_ns);
}
