// SPDX-License-Identifier: GPL-2.0
/* Parts of guests/fault_bench on their own, for test_fault_bench.py: the functions are static, so the files are included. */
#include "fault_bench/reserve.c"
#include "fault_bench/symptoms.c"
#include <stdarg.h>

/* A clock that stands still while nobody sleeps, and a sleep that is late by @stall_ns once. */
static int64_t clock_ns = 5000;
static uint32_t sleeps, stall_at;
static int64_t stall_ns;

int clock_gettime(clockid_t id, struct timespec *now)
{
	*now = (struct timespec) { clock_ns / NS_PER_S, clock_ns % NS_PER_S };
	return 0;
}

int clock_nanosleep(clockid_t id, int flags, const struct timespec *due, struct timespec *left)
{
	int64_t due_ns = due->tv_sec * NS_PER_S + due->tv_nsec;

	if (due_ns > clock_ns)
		clock_ns = due_ns;
	clock_ns += 2000 + (sleeps++ == stall_at ? stall_ns : 0);
	return 0;
}

int sched_setscheduler(pid_t pid, int policy, const struct sched_param *param)
{
	return 0;
}

void fail(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vprintf(format, args);
	_exit(3);
}

void write_setting(const char *path, const char *value)
{
}

/* WAKEUPS PERIOD_US STALL_AT STALL_US */
static void jitter(char **words)
{
	static struct mailbox box;

	box.trial.jitter_wakeups = atoi(words[0]);
	box.trial.jitter_period_us = atoi(words[1]);
	stall_at = atoi(words[2]);
	stall_ns = atoi(words[3]) * 1000ll;
	jitter_measure(&box);
	printf("%llu %llu %llu %llu %llu\n", (unsigned long long)box.results.jitter_p50_ns,
	       (unsigned long long)box.results.jitter_p99_ns, (unsigned long long)box.results.jitter_max_ns,
	       (unsigned long long)box.results.jitter_wakeups, (unsigned long long)box.results.jitter_missed);
}

/* BYTES, then the number of each frame in the pool. Says the number of the run's first page in the pool, and the longest. */
static void run(int count, char **words)
{
	struct pool pool = { .bytes = (count - 1) * PAGE_BYTES, .frames = calloc(count, sizeof(struct frame)) };
	const struct frame *found;
	uint64_t longest;
	int i;

	for (i = 0; i + 1 < count; i++)
		pool.frames[i] = (struct frame) { strtoull(words[i + 1], NULL, 0) * PAGE_BYTES, i };
	qsort(pool.frames, count - 1, sizeof(*pool.frames), by_gpa);
	found = find_run(&pool, strtoull(words[0], NULL, 0), &longest);
	printf("%lld %llu\n", found ? (long long)found->page : -1, (unsigned long long)longest / PAGE_BYTES);
}

/* KIND, then numbers of pages of a pool in the order in which they shall stand; says what stands there. */
static void move(int count, char **words)
{
	struct frame frames[64];
	struct pool pool = { .bytes = 64 * PAGE_BYTES };
	uint8_t *to = address_space(64 * PAGE_BYTES);
	int i;

	fill(&pool, !strcmp(words[0], "file") ? MEMORY_FILE : MEMORY_ANONYMOUS);
	for (i = 0; i < 64; i++)
		pool.start[i * PAGE_BYTES] = i;
	for (i = 0; i + 1 < count; i++)
		frames[i] = (struct frame) { 0, atoi(words[i + 1]) };
	gather(&pool, frames, count - 1, to);
	free(pool.frames);
	pool.frames = calloc(64, sizeof(*pool.frames));
	for (i = 0; i < 64; i++)
		pool.frames[i] = (struct frame) { 1ull << 40, i };
	for (i = 0; i + 1 < count; i++)
		pool.frames[frames[i].page].gpa = PAGE_BYTES * (1 + i);
	empty(&pool, PAGE_BYTES, (count - 1) * PAGE_BYTES);
	for (i = 0; i + 1 < count; i++)
		printf("%d ", to[i * PAGE_BYTES]);
	printf("\n");
}

int main(int argc, char **argv)
{
	if (!strcmp(argv[1], "jitter"))
		jitter(argv + 2);
	else if (!strcmp(argv[1], "run"))
		run(argc - 2, argv + 2);
	else
		move(argc - 2, argv + 2);
	return 0;
}
