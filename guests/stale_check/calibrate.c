// SPDX-License-Identifier: GPL-2.0
/* How long a fault and the invalidating calls take here: the spans that the cases sweep. */
#include <sys/mman.h>

#include "common.h"
#include "stale_check.h"

#define CALIBRATIONS	5

static uint64_t median(uint64_t *values)
{
	uint32_t i, j;

	for (i = 1; i < CALIBRATIONS; i++) {
		for (j = i; j && values[j - 1] > values[j]; j--) {
			uint64_t kept = values[j];

			values[j] = values[j - 1];
			values[j - 1] = kept;
		}
	}
	return values[CALIBRATIONS / 2];
}

/* How long the call takes over the pages of a round when nothing disturbs it. */
static uint64_t undisturbed(struct check *check, const struct stale_op *op, uint32_t pages)
{
	struct stale_round round = { .op = op->op, .range_page = RANGE_PAGE, .range_pages = pages };
	uint64_t lengths[CALIBRATIONS];
	uint32_t i;

	for (i = 0; i < CALIBRATIONS; i++) {
		tag_pages(check, RANGE_PAGE - PAGES_BEFORE, PAGES_BEFORE + pages + PAGES_BEHIND, STALE_TAG);
		sleep_until(next_grid_point());
		check->first.spin_tsc = 0;
		invalidator_post(&check->first, op->op, page_hva(check, RANGE_PAGE), pages * PAGE_BYTES);
		invalidator_wait(&check->first);
		lengths[i] = to_ns(check, check->first.end_tsc - check->first.start_tsc);
		clean_up(check, &round);
	}
	return median(lengths);
}

/* A read of each page that a round touches: shadow pages and KVM's own caches are there from then on. */
static uint64_t warm_faults(struct check *check, uint32_t range_pages)
{
	uint64_t times[CALIBRATIONS], page;
	uint32_t i;

	for (i = 0; i < CALIBRATIONS; i++) {
		uint64_t start;

		tag_pages(check, 0, RANGE_PAGE + range_pages + PAGES_BEHIND, STALE_TAG);
		for (page = RANGE_PAGE - PAGES_BEFORE; page < RANGE_PAGE + range_pages + PAGES_BEHIND; page += 8)
			peek(check, page);
		die_if(madvise(check->vm.mem, check->vm.slot_bytes, MADV_DONTNEED), "madvise of the memslot");
		tag_pages(check, 0, RANGE_PAGE + PAGES_BEHIND, STALE_TAG);
		set_peek(check, RANGE_PAGE);
		start = rdtsc_ordered();
		enter_until_done(check);
		times[i] = to_ns(check, rdtsc_ordered() - start);
		die_if(madvise(check->vm.mem, check->vm.slot_bytes, MADV_DONTNEED), "madvise of the memslot");
	}
	return median(times);
}

void calibrate(struct check *check, const struct stale_op *op)
{
	check->timing.fault_ns = warm_faults(check, check->options->range_pages);
	check->timing.short_ns = undisturbed(check, op, SHORT_PAGES);
	check->timing.long_ns = undisturbed(check, op, check->options->range_pages);
}
