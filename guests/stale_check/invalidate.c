// SPDX-License-Identifier: GPL-2.0
/* The invalidators: threads that make one system call over a range of guest memory when told to. */
#define _GNU_SOURCE
#include <sched.h>
#include <sys/mman.h>

#include "common.h"
#include "stale_check.h"

void set_policy(int fifo_priority)
{
	struct sched_param param = { .sched_priority = fifo_priority };

	die_if(sched_setscheduler(0, fifo_priority ? SCHED_FIFO : SCHED_OTHER, &param), "sched_setscheduler");
}

struct timespec later(struct timespec when, uint64_t ns)
{
	ns += when.tv_nsec;
	return (struct timespec) { .tv_sec = when.tv_sec + ns / 1000000000, .tv_nsec = ns % 1000000000 };
}

void sleep_until(struct timespec when)
{
	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &when, NULL) == EINTR)
		;
	errno = 0;
}

/* Guest memory as layout.c maps it: the same flags, so that the areas merge again. */
static void map_again(uint8_t *hva, uint64_t bytes)
{
	void *area = mmap(hva, bytes, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE | MAP_NORESERVE, -1, 0);

	die_if(area != hva, "mmap of the range that was unmapped");
	madvise(hva, bytes, MADV_NOHUGEPAGE);
	die_if(madvise(hva, bytes, MADV_DONTFORK), "madvise(MADV_DONTFORK)");
}

static void invalidate(struct invalidator *self)
{
	int failed = 0;

	self->start_tsc = rdtsc_ordered();
	switch (self->op) {
	case STALE_OP_MADVISE:
		failed = madvise(self->hva, self->bytes, MADV_DONTNEED);
		break;
	case STALE_OP_MUNMAP:
		failed = munmap(self->hva, self->bytes);
		break;
	case STALE_OP_MREMAP:
		failed = mremap(self->hva, self->bytes, self->bytes, MREMAP_MAYMOVE | MREMAP_FIXED,
				(void *)SCRATCH_HVA) == MAP_FAILED;
		break;
	case STALE_OP_MPROTECT:
		failed = mprotect(self->hva, self->bytes, PROT_NONE);
		break;
	default:
		die("operation %u", self->op);
	}
	self->end_tsc = rdtsc_ordered();
	die_if(failed, "the invalidating system call");
	if (self->op == STALE_OP_MUNMAP)
		map_again(self->hva, self->bytes);
}

/* After the round: make the range usable again, whatever is in it. */
void invalidate_undo(uint16_t op, uint8_t *hva, uint64_t bytes)
{
	if (op == STALE_OP_MREMAP) {
		die_if(munmap((void *)SCRATCH_HVA, bytes), "munmap of what was moved away");
		map_again(hva, bytes);
	} else if (op == STALE_OP_MPROTECT) {
		die_if(mprotect(hva, bytes, PROT_READ | PROT_WRITE), "mprotect back");
	}
}

static void take(sem_t *sem)
{
	while (sem_wait(sem))
		die_if(errno != EINTR, "sem_wait");
	errno = 0;
}

static void *worker(void *arg)
{
	struct invalidator *self = arg;

	if (self->fifo_priority)
		set_policy(self->fifo_priority);
	for (;;) {
		take(&self->post);
		if (self->quit)
			return NULL;
		if (self->wake.tv_sec)
			sleep_until(self->wake);
		while (rdtsc_ordered() < self->spin_tsc)
			;
		invalidate(self);
		sem_post(&self->done);
	}
}

void invalidator_start(struct invalidator *self, int fifo_priority)
{
	self->fifo_priority = fifo_priority;
	sem_init(&self->post, 0, 0);
	sem_init(&self->done, 0, 0);
	die_if(pthread_create(&self->thread, NULL, worker, self), "pthread_create");
}

void invalidator_post(struct invalidator *self, uint16_t op, uint8_t *hva, uint64_t bytes)
{
	self->op = op;
	self->hva = hva;
	self->bytes = bytes;
	sem_post(&self->post);
}

void invalidator_wait(struct invalidator *self)
{
	take(&self->done);
}

void invalidator_stop(struct invalidator *self)
{
	self->quit = true;
	sem_post(&self->post);
	pthread_join(self->thread, NULL);
}
