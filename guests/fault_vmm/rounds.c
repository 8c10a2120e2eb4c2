// SPDX-License-Identifier: GPL-2.0
/*
 * The measured rounds. A round: the main thread discards the guest's range (all its SPTEs go, and with
 * BACKING_ABSENT the host pages too), then every vCPU faults its share in. Threads are created before anything is
 * measured and held at a barrier, because creating one takes the mmap lock for writing.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "common.h"
#include "cpus.h"
#include "fault_vmm.h"

struct worker {
	struct vm *vm;
	struct vcpu *vcpu;
	pthread_t thread;
	pthread_barrier_t *barrier;
};

/* vCPU i on CPU i, counted around: the storm's own placement says whether it shares that CPU. */
static void pin_vcpu(uint32_t index)
{
	cpus_pin(index % cpus_count(), "a vCPU");
}

static void *vcpu_worker(void *arg)
{
	struct worker *self = arg;
	uint32_t round;

	pin_vcpu(self->vcpu->index);
	vcpu_warm(self->vm, self->vcpu);
	self->vcpu->tsc_offset = tsc_offset_read(self->vm, self->vcpu, self->vcpu->index);
	pthread_barrier_wait(self->barrier);	/* warm */
	for (round = 0; round < self->vm->params->rounds; round++) {
		pthread_barrier_wait(self->barrier);	/* the range is discarded */
		vcpu_round(self->vm, self->vcpu, round);
		pthread_barrier_wait(self->barrier);	/* all have finished */
	}
	return NULL;
}

static void discard_range(const struct vm *vm)
{
	uint64_t offset;

	die_if(madvise(vm->mem, vm->params->mem_bytes, MADV_DONTNEED), "madvise of the guest's range");
	if (vm->params->backing == BACKING_ABSENT)
		return;
	for (offset = 0; offset < vm->params->mem_bytes; offset += vm->params->stride_bytes)
		*(volatile uint8_t *)(vm->mem + offset) = 0;
}

void rounds_run(struct vm *vm, struct storm *storm, uint64_t *start_tsc, uint64_t *end_tsc,
		struct rec_counter *counters, uint32_t *nr_counters)
{
	struct worker workers[MAX_VCPUS];
	pthread_barrier_t barrier;
	uint32_t i, round;

	pthread_barrier_init(&barrier, NULL, vm->params->vcpus + 1);
	for (i = 0; i < vm->params->vcpus; i++) {
		workers[i] = (struct worker) { .vm = vm, .vcpu = &vm->vcpus[i], .barrier = &barrier };
		die_if(pthread_create(&workers[i].thread, NULL, vcpu_worker, &workers[i]), "pthread_create");
	}
	pthread_barrier_wait(&barrier);		/* warm */
	counters_read(vm, counters, false);
	if (storm)
		storm_start(storm);
	sleep_us(vm->params->start_delay_us);
	*start_tsc = rdtsc_ordered();
	for (round = 0; round < vm->params->rounds; round++) {
		if (storm)
			storm_hold(storm);
		discard_range(vm);
		if (storm)
			storm_release(storm);
		pthread_barrier_wait(&barrier);
		pthread_barrier_wait(&barrier);
	}
	*end_tsc = rdtsc_ordered();
	*nr_counters = counters_read(vm, counters, true);
	if (storm)
		storm_stop(storm);
	for (i = 0; i < vm->params->vcpus; i++)
		pthread_join(workers[i].thread, NULL);
	pthread_barrier_destroy(&barrier);
}
