// SPDX-License-Identifier: GPL-2.0
/* The cases, the operations, and the sweep through the time in which an invalidation is in progress. */
#include "common.h"
#include "stale_check.h"

#define NEAR_PAGES	5	/* of the range in the prefetch group that an edge cuts: A..A+4, B-5..B-1 */

/* The two that calibrate come before those that they calibrate. */
const struct stale_case stale_cases[] = {
	{ .name = "inside", .kind = STALE_CASE_INSIDE, .edge = FROM_B, .fault = -1,
	  .checked = -NEAR_PAGES, .nr_checked = NEAR_PAGES },
	{ .name = "inside-first", .kind = STALE_CASE_INSIDE_FIRST, .edge = FROM_A, .fault = 0,
	  .checked = 0, .nr_checked = NEAR_PAGES },
	{ .name = "end-edge", .kind = STALE_CASE_END_EDGE, .edge = FROM_B, .fault = 0,
	  .checked = -NEAR_PAGES, .nr_checked = NEAR_PAGES },
	{ .name = "start-edge", .kind = STALE_CASE_START_EDGE, .edge = FROM_A, .fault = -1,
	  .checked = 0, .nr_checked = NEAR_PAGES },
	{ .name = "far", .kind = STALE_CASE_FAR, .edge = FROM_FAR, .fault = 0,
	  .checked = -NEAR_PAGES, .nr_checked = NEAR_PAGES },
	{ .name = "two", .kind = STALE_CASE_TWO, .edge = FROM_B, .fault = -1, .second = SECOND_IN_PROGRESS,
	  .checked = -NEAR_PAGES, .nr_checked = NEAR_PAGES },
	{ .name = "completed", .kind = STALE_CASE_COMPLETED, .edge = FROM_B, .fault = -1, .second = SECOND_COMPLETED,
	  .checked = -NEAR_PAGES, .nr_checked = NEAR_PAGES },
	{ .name = "short-inside", .kind = STALE_CASE_SHORT_INSIDE, .is_short = true, .edge = FROM_B, .fault = -1,
	  .checked = -2, .nr_checked = 2 },
	{ .name = "short-end", .kind = STALE_CASE_SHORT_END, .is_short = true, .edge = FROM_B, .fault = 0,
	  .checked = -2, .nr_checked = 2 },
	{ .name = "short-start", .kind = STALE_CASE_SHORT_START, .is_short = true, .edge = FROM_A, .fault = -1,
	  .checked = 0, .nr_checked = 2, .map_behind = true },
	{ .name = "straddle", .kind = STALE_CASE_STRADDLE, .is_short = true, .straddle = true, .edge = FROM_B,
	  .fault = -1, .checked = -2, .nr_checked = 2 },
	{ .name = "two-second", .kind = STALE_CASE_TWO_SECOND, .edge = FROM_SECOND, .fault = -1,
	  .second = SECOND_IN_PROGRESS, .checked = -NEAR_PAGES, .nr_checked = NEAR_PAGES },
};

const struct stale_op stale_ops[] = {
	/* Behind range_end pages are freed and tables taken down, which takes as long again. */
	{ .name = "madvise", .op = STALE_OP_MADVISE, .shares_lock = true, .swept_percent = 50 },
	{ .name = "munmap", .op = STALE_OP_MUNMAP, .shares_lock = true, .swept_percent = 50 },
	/* Ends with a munmap of the old range, which invalidates it once more: what was stale is so no longer. */
	{ .name = "mremap", .op = STALE_OP_MREMAP, .no_short = true, .swept_percent = 100 },
	{ .name = "mprotect", .op = STALE_OP_MPROTECT, .swept_percent = 100 },
};

uint32_t stale_nr_cases(void)
{
	return sizeof(stale_cases) / sizeof(stale_cases[0]);
}

uint32_t stale_nr_ops(void)
{
	return sizeof(stale_ops) / sizeof(stale_ops[0]);
}

/*
 * What is swept: of a long call the part that has the invalidation in it; a short one as a whole; of a fault what lies
 * behind its first quarter, the exit, and before its last part, the mapping and the entry.
 */
static uint64_t span_ns(const struct check *check, const struct stale_case *this, const struct stale_op *op)
{
	if (this->straddle)
		return check->timing.fault_ns * 3 / 8;
	return this->is_short ? check->timing.short_ns : check->timing.long_ns * op->swept_percent / 100;
}

static void sweep(struct check *check, const struct stale_case *this, const struct stale_op *op)
{
	uint32_t rounds = check->options->rounds, round;
	uint64_t span = span_ns(check, this, op);
	/* Another seed, another phase: repeated boots look between the points of each other. */
	uint64_t phase = check->options->seed % 1000 * span / rounds / 1000;
	uint64_t late = 0;

	/* The vCPU takes its time to wake up, too: of a short call, the first half is out of reach. */
	if (this->is_short)
		late = this->straddle ? check->timing.fault_ns / 4 : span / 2;
	for (round = 0; round < rounds; round++) {
		uint64_t wake_ns = LEAD_NS + late + phase + round * span / rounds, second_ns = 0;

		if (this->second == SECOND_IN_PROGRESS) {
			second_ns = wake_ns;
			wake_ns += check->timing.long_ns / 5;
		} else if (this->second == SECOND_COMPLETED) {
			second_ns = wake_ns;
			wake_ns += check->timing.short_ns + SETTLE_NS;
		}
		run_round(check, this, op, round, wake_ns, second_ns);
	}
}

static bool applies(const struct stale_case *this, const struct stale_op *op)
{
	if (this->second || this->straddle)
		return op->shares_lock;
	return !(op->no_short && this->is_short);
}

static void run_op(struct check *check, const struct stale_op *op)
{
	const struct options *options = check->options;
	uint32_t i;

	calibrate(check, op);
	for (i = 0; i < stale_nr_cases(); i++) {
		const struct stale_case *this = &stale_cases[i];

		if (!(options->cases & 1u << i) || !applies(this, op))
			continue;
		if (options->replay)
			run_round(check, this, op, options->only_round, options->only_wake_ns,
				  options->only_second_ns);
		else
			sweep(check, this, op);
	}
}

void run_cases(struct check *check)
{
	uint32_t i;

	for (i = 0; i < stale_nr_ops(); i++) {
		if (check->options->ops & 1u << i)
			run_op(check, &stale_ops[i]);
	}
}
