// SPDX-License-Identifier: GPL-2.0
/*
 * The storm: keep invalidating a range of this process's address space, and write down when each system call began
 * and ended. Every such call makes mm call KVM's mmu_notifier for [hva, hva + bytes).
 *
 * The window brackets the system call, not the invalidation: invalidate_range_start() comes a few microseconds after
 * its start, and the freeing of pages and page tables happens between invalidate_range_end() and its end.
 *
 * What it cannot show: an invalidation by the kernel itself (KSM, compaction, reclaim); those are not recorded here.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common.h"
#include "cpus.h"
#include "storm.h"

#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21		/* since Linux 5.4; not in every libc's headers */
#endif

/* Fixed places, far from each other and from malloc, so that no two of them share a page-table page. */
#define OUTSIDE_HVA	0x130000000000ull
#define SCRATCH_HVA	0x140000000000ull

#define PHASE_MAX_US	4000	/* one scheduler tick at HZ=250: the phase decides where preemption strikes */

/* Shared with the other process when there is one, so it lives in a MAP_SHARED mapping. */
struct storm_shared {
	_Atomic uint32_t ready;
	_Atomic uint32_t go;
	_Atomic uint32_t stop;
	_Atomic uint32_t overflowed;
	_Atomic uint64_t nr_windows[];
};

struct storm_thread {
	pthread_mutex_t busy;		/* held around each system call, so that storm_hold() can wait for its end */
	struct storm *storm;
	uint32_t index;
	uint8_t *range;
	uint32_t phase_us;
	pthread_t thread;
};

struct storm {
	struct storm_params params;
	struct storm_shared *shared;
	struct rec_window *windows;
	struct storm_thread *threads;
	pthread_t *hogs;
	pid_t child;
};

static void *map_shared(size_t bytes)
{
	void *area = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	die_if(area == MAP_FAILED, "mmap of %zu bytes for the storm's tables", bytes);
	return area;
}

static void map_range(uint8_t *hva, size_t bytes)
{
	void *area = mmap(hva, bytes, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE | MAP_NORESERVE, -1, 0);

	die_if(area != hva, "mmap of the storm's range at %p", (void *)hva);
	/* One PTE a page: the length of an invalidation must not depend on khugepaged. */
	madvise(hva, bytes, MADV_NOHUGEPAGE);
}

static void raise_priority(void)
{
	struct sched_param high = { .sched_priority = 1 };

	die_if(sched_setscheduler(0, SCHED_FIFO, &high), "SCHED_FIFO for the storm (preempted: false on the vCPU's CPU)");
}

/* Give the invalidation something to tear down. In an overlap the guest does that, and nobody else must. */
static void populate(const struct storm *storm, uint8_t *range)
{
	uint64_t offset;

	if (storm->params.placement == STORM_OVERLAP)
		return;
	for (offset = 0; offset < storm->params.bytes; offset += PAGE_BYTES)
		*(volatile uint8_t *)(range + offset) = 1;
}

static void record(struct storm_thread *self, uint64_t start_tsc, uint64_t end_tsc)
{
	struct storm *storm = self->storm;
	uint64_t count = atomic_load_explicit(&storm->shared->nr_windows[self->index], memory_order_relaxed);

	if (count == storm->params.max_windows) {
		atomic_store(&storm->shared->overflowed, 1);
		return;
	}
	storm->windows[(uint64_t)self->index * storm->params.max_windows + count] = (struct rec_window) {
		.start_tsc = start_tsc,
		.end_tsc = end_tsc,
		.hva = (uint64_t)self->range,
		.bytes = storm->params.bytes,
		.op = storm->params.op,
		.thread = self->index,
	};
	atomic_store_explicit(&storm->shared->nr_windows[self->index], count + 1, memory_order_release);
}

static void timed_madvise(struct storm_thread *self, int advice)
{
	uint64_t start = rdtsc_ordered();
	int ret = madvise(self->range, self->storm->params.bytes, advice);
	uint64_t end = rdtsc_ordered();

	die_if(ret, "madvise(%d) of the storm: this kernel does not offer it", advice);
	record(self, start, end);
}

static void timed_munmap(struct storm_thread *self)
{
	uint64_t start = rdtsc_ordered();
	int ret = munmap(self->range, self->storm->params.bytes);
	uint64_t end = rdtsc_ordered();

	die_if(ret, "munmap of the storm");
	record(self, start, end);
	map_range(self->range, self->storm->params.bytes);
}

/* Between RW and RWX: every PTE changes, and yet a guest that faults here always finds its page writable. */
static void timed_mprotect(struct storm_thread *self, int prot)
{
	uint64_t start = rdtsc_ordered();
	int ret = mprotect(self->range, self->storm->params.bytes, prot);
	uint64_t end = rdtsc_ordered();

	die_if(ret, "mprotect of the storm");
	record(self, start, end);
}

static void timed_mremap(struct storm_thread *self, uint8_t *from, uint8_t *to)
{
	size_t bytes = self->storm->params.bytes;
	uint64_t start = rdtsc_ordered();
	void *ret = mremap(from, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, to);
	uint64_t end = rdtsc_ordered();

	die_if(ret != to, "mremap of the storm");
	record(self, start, end);
}

static void invalidate(struct storm_thread *self)
{
	uint8_t *scratch = (uint8_t *)SCRATCH_HVA + self->index * ALIGN_UP(self->storm->params.bytes, HUGE_BYTES);

	switch (self->storm->params.op) {
	case REC_OP_MADV_DONTNEED:
		timed_madvise(self, MADV_DONTNEED);
		break;
	case REC_OP_MADV_FREE:
		timed_madvise(self, MADV_FREE);
		break;
	case REC_OP_MADV_PAGEOUT:
		timed_madvise(self, MADV_PAGEOUT);
		break;
	case REC_OP_MUNMAP:
		timed_munmap(self);
		break;
	case REC_OP_MPROTECT:
		timed_mprotect(self, PROT_READ | PROT_WRITE | PROT_EXEC);
		timed_mprotect(self, PROT_READ | PROT_WRITE);
		break;
	case REC_OP_MREMAP:
		timed_mremap(self, self->range, scratch);
		timed_mremap(self, scratch, self->range);
		break;
	default:
		die("storm op %u", self->storm->params.op);
	}
}

static void *storm_worker(void *arg)
{
	struct storm_thread *self = arg;
	struct storm_shared *shared = self->storm->shared;

	cpus_pin(self->storm->params.cpu, "the storm");
	if (self->storm->params.fifo)
		raise_priority();
	populate(self->storm, self->range);
	atomic_fetch_add(&shared->ready, 1);
	while (!atomic_load(&shared->go))
		sleep_us(100);
	sleep_us(self->phase_us);
	while (!atomic_load_explicit(&shared->stop, memory_order_relaxed)) {
		populate(self->storm, self->range);
		pthread_mutex_lock(&self->busy);
		invalidate(self);
		pthread_mutex_unlock(&self->busy);
		if (self->storm->params.period_us)
			sleep_us(self->storm->params.period_us);
	}
	return NULL;
}

static void *hog_worker(void *arg)
{
	struct storm *storm = arg;

	cpus_pin(storm->params.hog_cpu, "a hog");
	atomic_fetch_add(&storm->shared->ready, 1);
	while (!atomic_load(&storm->shared->go))
		sleep_us(100);
	while (!atomic_load_explicit(&storm->shared->stop, memory_order_relaxed))
		__asm__ volatile("" : : : "memory");
	return NULL;
}

/* splitmix64: the next number of a seeded sequence. Public domain algorithm by Sebastiano Vigna. */
static uint64_t next_random(uint64_t *state)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15ull;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ z >> 27) * 0x94d049bb133111ebull;
	return z ^ z >> 31;
}

static void start_threads(struct storm *storm)
{
	uint32_t i;

	for (i = 0; i < storm->params.threads; i++)
		die_if(pthread_create(&storm->threads[i].thread, NULL, storm_worker, &storm->threads[i]),
		       "pthread_create of storm thread %u", i);
}

static void join_threads(struct storm *storm)
{
	uint32_t i;

	for (i = 0; i < storm->params.threads; i++)
		pthread_join(storm->threads[i].thread, NULL);
}

/* The negative control: the same storm, in an mm that has no mmu_notifier of KVM's. */
static void fork_other_process(struct storm *storm)
{
	storm->child = fork();
	die_if(storm->child < 0, "fork of the other process");
	if (storm->child > 0)
		return;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	start_threads(storm);
	join_threads(storm);
	_exit(0);
}

static void place_threads(struct storm *storm, uint8_t *guest_range)
{
	uint64_t state = storm->params.seed;
	uint8_t *first = guest_range ? guest_range : (uint8_t *)OUTSIDE_HVA;
	uint32_t i;

	for (i = 0; i < storm->params.threads; i++) {
		struct storm_thread *thread = &storm->threads[i];

		pthread_mutex_init(&thread->busy, NULL);
		thread->storm = storm;
		thread->index = i;
		/* Outside, a huge page's distance apart, so that two threads never share a page-table page. */
		thread->range = first + i * (guest_range ? storm->params.bytes :
					     ALIGN_UP(storm->params.bytes, HUGE_BYTES));
		thread->phase_us = next_random(&state) % PHASE_MAX_US;
		if (!guest_range)
			map_range(thread->range, storm->params.bytes);
	}
}

struct storm *storm_create(const struct storm_params *params, void *guest_range)
{
	struct storm *storm = calloc(1, sizeof(*storm));
	uint32_t i;

	die_if(!storm, "calloc");
	storm->params = *params;
	storm->shared = map_shared(sizeof(*storm->shared) + (params->threads + 1) * sizeof(uint64_t));
	if (params->threads)
		storm->windows = map_shared((size_t)params->threads * params->max_windows *
					    sizeof(struct rec_window));
	storm->threads = calloc(params->threads + 1, sizeof(*storm->threads));
	storm->hogs = calloc(params->hogs + 1, sizeof(*storm->hogs));
	die_if(!storm->threads || !storm->hogs, "calloc");

	place_threads(storm, guest_range);
	if (params->placement == STORM_OTHER_PROCESS)
		fork_other_process(storm);
	else
		start_threads(storm);
	for (i = 0; i < params->hogs; i++)
		die_if(pthread_create(&storm->hogs[i], NULL, hog_worker, storm), "pthread_create of a hog");
	while (atomic_load(&storm->shared->ready) < params->threads + params->hogs)
		sleep_us(100);
	return storm;
}

void storm_start(struct storm *storm)
{
	atomic_store(&storm->shared->go, 1);
}

/* In the other process it needs no holding: its invalidations are none of this mm's. */
void storm_hold(struct storm *storm)
{
	uint32_t i;

	for (i = 0; i < storm->params.threads; i++)
		pthread_mutex_lock(&storm->threads[i].busy);
}

void storm_release(struct storm *storm)
{
	uint32_t i;

	for (i = 0; i < storm->params.threads; i++)
		pthread_mutex_unlock(&storm->threads[i].busy);
}

void storm_stop(struct storm *storm)
{
	int status = 0;
	uint32_t i;

	atomic_store(&storm->shared->go, 1);
	atomic_store(&storm->shared->stop, 1);
	if (storm->child) {
		die_if(waitpid(storm->child, &status, 0) < 0, "waitpid of the other process");
		die_if(status, "the other process ended with wait status %#x", status);
	} else {
		join_threads(storm);
	}
	for (i = 0; i < storm->params.hogs; i++)
		pthread_join(storm->hogs[i], NULL);
}

bool storm_overflowed(const struct storm *storm)
{
	return atomic_load(&storm->shared->overflowed);
}

const struct rec_window *storm_windows(const struct storm *storm, uint32_t thread, uint64_t *count)
{
	*count = atomic_load(&storm->shared->nr_windows[thread]);
	return storm->windows + (uint64_t)thread * storm->params.max_windows;
}
