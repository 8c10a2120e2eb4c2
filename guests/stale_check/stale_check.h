/* SPDX-License-Identifier: GPL-2.0 */
/* stale_check: does a guest still see pages whose invalidation has returned? See main.c for the method. */
#ifndef ORCH_STALE_CHECK_H
#define ORCH_STALE_CHECK_H

#include <pthread.h>
#include <semaphore.h>
#include <stdbool.h>
#include <stdint.h>
#include <time.h>

#include "fault_vmm.h"
#include "stale.h"

/*
 * The memslot, in pages: [A-8, B+80) is written by the host before each round, the range [A, B) is invalidated. A is
 * 3 modulo 8 and B is 5, so that both edges cut a group of PTE_PREFETCH_NUM (8) pages (arch/x86/kvm/mmu/mmu.c, 5.10).
 */
#define RANGE_PAGE	11u
#define PAGES_BEFORE	8u
#define PAGES_BEHIND	80u
#define SHORT_PAGES	2u
#define HUGE_PAGES	512u		/* 4 KiB pages that one page-table page maps */

/*
 * The invalidator waits actively for so long before its call: then the vCPU's timer is set already, and precisely. The
 * PIT cannot be programmed for less than about 13 us (clockevent_i8253_init() in drivers/clocksource/i8253.c), so two
 * timers that are to expire one after the other need SETTLE_NS between them.
 */
#define LEAD_NS		60000ull
#define SETTLE_NS	30000ull

#define SCRATCH_HVA	0x140000003000ull	/* mremap's target: not congruent, so that it moves PTEs, not tables */

enum second { SECOND_NONE, SECOND_IN_PROGRESS, SECOND_COMPLETED };
enum edge { FROM_A, FROM_B, FROM_FAR, FROM_SECOND };

/* Where a case faults and what it looks at afterwards. */
struct stale_case {
	const char *name;
	uint16_t kind;			/* STALE_CASE_* */
	bool is_short;
	bool straddle;			/* the invalidator preempts the fault, and not the other way round */
	enum second second;
	enum edge edge;			/* what the pages are counted from */
	int32_t fault;			/* from A, B, a page in another 2 MiB, or the second range's end */
	int32_t checked;		/* from the same, but for FROM_FAR from B */
	uint32_t nr_checked;
	bool map_behind;		/* the guest reads page B first: a present SPTE that ends the prefetch */
};

struct stale_op {
	const char *name;
	uint16_t op;			/* STALE_OP_* */
	bool shares_lock;		/* it clears the tables with the mmap lock held for reading: others go on beside it */
	bool no_short;			/* of a short call, the invalidation is too small a part to be hit */
	uint32_t swept_percent;		/* of the call: range_end lies in that part, or just behind it */
};

/* A thread that waits to be told to invalidate a range, and does it once. */
struct invalidator {
	pthread_t thread;
	sem_t post, done;
	int fifo_priority;		/* 0: SCHED_OTHER */
	bool quit;
	uint16_t op;
	uint8_t *hva;
	uint64_t bytes;
	struct timespec wake;		/* sleep until then (CLOCK_MONOTONIC); zero: do not */
	uint64_t spin_tsc;		/* then wait actively until the TSC is there */
	uint64_t start_tsc, end_tsc;
};

struct options {
	const char *out;
	char arm[32];
	char cell[96];
	uint64_t seed;
	uint32_t rounds;
	uint32_t range_pages;
	uint32_t kick_us;
	bool guest_huge;
	uint32_t cases;			/* bit per entry of the table of cases */
	uint32_t ops;			/* bit per entry of the table of operations */
	bool replay;			/* one round: the only case, the only operation, and these two times */
	uint32_t only_round;
	uint64_t only_wake_ns;
	uint64_t only_second_ns;
};

/* How long things take here, ns. */
struct timing {
	uint64_t long_ns;		/* the system call over the long range, undisturbed */
	uint64_t short_ns;		/* and over the short one */
	uint64_t fault_ns;		/* one access by the guest, in and out */
};

struct check {
	const struct options *options;
	struct params params;
	struct vm vm;
	struct invalidator first, second;
	timer_t kick;
	struct timing timing;
	struct stale_round *rounds;
	uint32_t nr_rounds, room;
};

/* cases.c */
extern const struct stale_case stale_cases[];
extern const struct stale_op stale_ops[];
uint32_t stale_nr_cases(void);
uint32_t stale_nr_ops(void);
void run_cases(struct check *check);

/* round.c */
void check_create(struct check *check, const struct options *options);
void check_destroy(struct check *check);
void run_round(struct check *check, const struct stale_case *this, const struct stale_op *op, uint32_t round,
	       uint64_t wake_ns, uint64_t second_ns);
uint64_t slot_pages(uint32_t range_pages);
uint8_t *page_hva(const struct check *check, uint64_t page);
uint64_t to_ns(const struct check *check, uint64_t cycles);
struct timespec next_grid_point(void);
void tag_pages(struct check *check, uint64_t first, uint64_t count, uint64_t tag);
void set_peek(struct check *check, uint64_t page);
int enter_until_done(struct check *check);
uint64_t peek(struct check *check, uint64_t page);
void clean_up(struct check *check, const struct stale_round *out);

/* calibrate.c */
void calibrate(struct check *check, const struct stale_op *op);

/* invalidate.c */
void invalidator_start(struct invalidator *self, int fifo_priority);
void invalidator_post(struct invalidator *self, uint16_t op, uint8_t *hva, uint64_t bytes);
void invalidator_wait(struct invalidator *self);
void invalidator_stop(struct invalidator *self);
void invalidate_undo(uint16_t op, uint8_t *hva, uint64_t bytes);
void set_policy(int fifo_priority);
void sleep_until(struct timespec when);
struct timespec later(struct timespec when, uint64_t ns);

/* record.c */
void stale_write(const struct check *check);

/* peek.S */
extern const uint8_t peek_start[], peek_end[];

#endif
