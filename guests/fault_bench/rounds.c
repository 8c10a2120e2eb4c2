// SPDX-License-Identifier: GPL-2.0
/* The threads that fault, thread i on CPU i of the guest, and what one round of theirs is. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "common.h"
#include "fault_bench.h"
#include "seeded.h"

struct worker {
	struct bench *bench;
	struct vcpu vcpu;	/* of fault_vmm.h: index, nr_pages and order */
	struct rec_fault *samples;
	uint64_t minflt;
	pthread_t thread;
};

static struct worker workers[MAX_VCPUS];
static pthread_barrier_t barrier;

static uint64_t own_minflt(void)
{
	struct rusage usage;

	if (getrusage(RUSAGE_THREAD, &usage))
		fail("getrusage");
	return usage.ru_minflt;
}

static void one_round(struct worker *self)
{
	const struct bench *bench = self->bench;
	struct rec_fault *samples = self->samples + bench->box->round * self->vcpu.nr_pages;
	uint64_t before = own_minflt();

	if (bench->params.write)
		timed_write(self->vcpu.order, samples, self->vcpu.nr_pages, bench->area.mem,
			    bench->params.stride_bytes);
	else
		timed_read(self->vcpu.order, samples, self->vcpu.nr_pages, bench->area.mem,
			   bench->params.stride_bytes);
	if (bench->box->command == MAILBOX_ROUND)
		self->minflt += own_minflt() - before;
}

static void *worker_run(void *arg)
{
	struct worker *self = arg;
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(self->vcpu.index, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		fail("thread %u: the guest has no CPU %u for it", self->vcpu.index, self->vcpu.index);
	ring();		/* the host asks for this vCPU's TSC offset */
	pthread_barrier_wait(&barrier);		/* ready */
	for (;;) {
		pthread_barrier_wait(&barrier);
		one_round(self);
		pthread_barrier_wait(&barrier);
	}
}

/*
 * What the host is about to take away must be the guest's range still: locked until the guest itself drops it, no page
 * of it goes to another owner. What was not touched in the round (a stride leaves pages out) is faulted in by this.
 */
static void tell_frames(struct bench *bench)
{
	if (mlock(bench->area.mem, bench->params.mem_bytes))
		fail("mlock: %s", strerror(errno));
	pagemap_read(bench->area.mem, (uint64_t *)bench->area.frames, bench->params.mem_bytes / PAGE_BYTES);
}

/* The guest's own discard. Locked pages cannot be dropped. */
static void drop(struct bench *bench)
{
	if (munlock(bench->area.mem, bench->params.mem_bytes))
		fail("munlock: %s", strerror(errno));
	if (madvise(bench->area.mem, bench->params.mem_bytes, MADV_DONTNEED))
		fail("madvise(MADV_DONTNEED): %s", strerror(errno));
}

void faulting_prepare(struct bench *bench)
{
	struct rec_fault *samples = (struct rec_fault *)bench->area.samples;
	uint64_t first = 0;
	uint32_t i;

	pthread_barrier_init(&barrier, NULL, bench->params.vcpus + 1);
	for (i = 0; i < bench->params.vcpus; i++) {
		struct worker *worker = &workers[i];

		worker->bench = bench;
		worker->vcpu.index = i;
		worker->vcpu.nr_pages = share_of(&bench->params, i);
		worker->vcpu.order = malloc(worker->vcpu.nr_pages * sizeof(uint32_t));
		worker->samples = samples + first * bench->params.rounds;
		if (!worker->vcpu.order)
			fail("malloc of the page order");
		fill_order(&bench->params, &worker->vcpu, first);
		first += worker->vcpu.nr_pages;
		if (pthread_create(&worker->thread, NULL, worker_run, worker))
			fail("pthread_create of thread %u", i);
	}
	/* Code, stacks, orders: nothing but the range itself may be missing in a round. */
	if (mlockall(MCL_CURRENT))
		fail("mlockall: %s", strerror(errno));
	pthread_barrier_wait(&barrier);
	if (bench->box->trial.faults == FAULTS_BOTH)
		tell_frames(bench);
}

void faulting_run(struct bench *bench)
{
	static uint64_t steal_before_ns;
	struct mailbox *box = bench->box;
	uint32_t i;

	if (box->round == 0)
		steal_before_ns = steal_ns();
	if (box->trial.faults != FAULTS_HOST)
		drop(bench);
	pthread_barrier_wait(&barrier);
	pthread_barrier_wait(&barrier);
	if (box->trial.faults == FAULTS_BOTH)
		tell_frames(bench);
	box->results.steal_ns = steal_ns() - steal_before_ns;
	box->results.minflt = 0;
	for (i = 0; i < bench->params.vcpus; i++)
		box->results.minflt += workers[i].minflt;
}
