/* SPDX-License-Identifier: GPL-2.0 */
/* The storm: threads that keep invalidating a range of their own process's address space. */
#ifndef ORCH_STORM_H
#define ORCH_STORM_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "recording.h"

enum storm_placement {
	STORM_NONE,		/* no storm: the quiet cell */
	STORM_OUTSIDE,		/* a mapping that no memslot covers */
	STORM_DISJOINT,		/* in a memslot of its own, which the guest never touches */
	STORM_ADJACENT,		/* in the guest's memslot, right behind the last faulting page */
	STORM_OVERLAP,		/* the very pages that fault */
	STORM_OTHER_PROCESS,	/* outside, in another process: the negative control */
};

struct storm_params {
	uint32_t op;			/* REC_OP_*, 0 for none */
	enum storm_placement placement;
	uint64_t bytes;			/* of each thread's range */
	uint32_t threads;
	uint32_t period_us;		/* pause between two invalidations; 0: none */
	int cpu;			/* to run on; -1: wherever the scheduler likes */
	bool fifo;			/* at real-time priority: no call is preempted by the vCPU */
	uint32_t hogs;			/* threads that only burn CPU time, on hog_cpu */
	int hog_cpu;
	uint32_t max_windows;		/* room for so many windows a thread */
	uint64_t seed;			/* of the phase: how long each thread waits before its first operation */
};

struct storm;

/*
 * Map the ranges and pre-fault all tables; for STORM_OTHER_PROCESS also fork the process. @guest_range is where
 * thread 0's range starts when the placement lies in guest memory (thread i follows i * bytes behind it), else NULL.
 */
struct storm *storm_create(const struct storm_params *params, void *guest_range);

/* Release the threads, which have been waiting since storm_create(). */
void storm_start(struct storm *storm);

/*
 * Keep the storm from starting another system call, and wait until none is in progress. For the VMM's own discards:
 * two invalidations at once are another experiment than one.
 */
void storm_hold(struct storm *storm);
void storm_release(struct storm *storm);

/* Stop and join them all. */
void storm_stop(struct storm *storm);

/* Whether a thread ran out of room for its windows; then the recording would be incomplete. */
bool storm_overflowed(const struct storm *storm);

/* Windows of one thread, in order. */
const struct rec_window *storm_windows(const struct storm *storm, uint32_t thread, uint64_t *count);

#endif
