/* SPDX-License-Identifier: GPL-2.0 */
/*
 * libstorm.so - the storm, and a measurement around it, inside a VMM that knows nothing of either.
 *
 * Preloaded into any VMM that reaches KVM through libc's ioctl(), it learns the VM's memslots and vCPUs, talks with
 * fault_bench in the guest (mailbox.h), storms the VMM's address space while the guest faults, writes the recording
 * and ends the VMM. vmm_run sets it up; by hand it is
 *
 *	LD_PRELOAD=/path/libstorm.so ORCH_STORM=/path/control qemu-system-x86_64 -serial stdio ... >/path/console
 *
 * where each line of the control file is the name of one of vmm_run's options without its dashes, a blank, and its
 * value; `out` and `console` are needed.
 */
#ifndef ORCH_LIBSTORM_H
#define ORCH_LIBSTORM_H

#include "settings.h"

/* preload.c: what the VMM says to KVM. */
extern struct vm guest_vm;		/* its descriptors, and its vCPUs in the order of their making */
void preload_begin(void);
bool kvm_known(void);			/* whether this process has called KVM through ioctl() */
bool guest_known(void);			/* whether a memslot has been made through ioctl() */
uint8_t *guest_hva(uint64_t gpa, uint64_t bytes);	/* NULL: not all of it lies in one memslot */
void guest_no_huge_pages(void);		/* from now on none for guest memory; those that are there stay */
uint32_t guest_running(void);		/* how many vCPUs have entered the guest */
void guest_watch(struct mailbox *box);
void guest_wait(void);			/* until a vCPU left the guest and the mailbox had changed */

/* attach.c: wait for the guest's line on its console, and find its mailbox. */
struct mailbox *attach(const char *console, uint32_t limit_s);
void ask(struct mailbox *box, enum mailbox_command command, uint32_t round);

/* memory.c: the areas that the guest has offered, and taking their host pages away. */
struct areas {
	uint8_t *samples;
	const uint64_t *frames;
	uint8_t *mem;
	uint8_t *disjoint;
};

void areas_find(struct areas *areas, const struct settings *settings, const struct mailbox *box);
void areas_discard(const struct areas *areas, const struct settings *settings);

/* What one thread of the storm wrote down. */
struct window_list {
	const struct rec_window *first;
	uint64_t count;
};

/* other.c: a second process, forked before the VMM's main(), that runs the storm of --placement other-process. */
void other_fork(const struct storm_params *params);
void other_create(void);
void other_start(void);
void other_stop(struct window_list *windows);

/* record.c */
struct measured {
	const struct settings *settings;
	const struct mailbox *box;
	const struct areas *areas;
	uint64_t start_tsc;
	uint64_t end_tsc;
	struct rec_counter counters[MAX_COUNTERS];	/* KVM's, and the guest's behind them */
	uint32_t nr_counters;
	struct window_list windows[MAX_STORM_THREADS];
};

bool kvm_uses_tdp(void);
void record_session(struct measured *measured);

/* session.c: the measurement, from the guest's first word to the recording; the body of a thread. */
void *session_run(void *settings);

#endif
