// SPDX-License-Identifier: GPL-2.0
/* The memory that the guest has offered, in the VMM's address space. Nothing else of the guest's is ever touched. */
#define _GNU_SOURCE
#include <sys/mman.h>

#include "common.h"
#include "libstorm.h"

#ifndef MADV_REMOVE
#define MADV_REMOVE 9
#endif

static bool shared;

/* Guest memory in a file that is mapped shared keeps its pages over MADV_DONTNEED: a hole has to be punched. */
static bool is_shared(const uint8_t *hva)
{
	FILE *maps = fopen("/proc/self/maps", "re");
	unsigned long long start, end;
	char line[512], mode[5];
	bool found = false;

	die_if(!maps, "open /proc/self/maps");
	while (!found && fgets(line, sizeof(line), maps))
		found = sscanf(line, "%llx-%llx %4s", &start, &end, mode) == 3 && (uint64_t)hva >= start &&
			(uint64_t)hva < end;
	fclose(maps);
	errno = 0;
	die_if(!found, "no mapping at %p, where the VMM has put guest memory", (const void *)hva);
	return mode[3] == 's';
}

static uint8_t *inside(const struct mailbox_areas *told, uint64_t gpa, uint64_t bytes, uint8_t *start)
{
	errno = 0;
	die_if(gpa < told->start_gpa || gpa - told->start_gpa > told->bytes ||
	       bytes > told->bytes - (gpa - told->start_gpa),
	       "the guest offers %#llx bytes at gpa %#llx, outside of what it has reserved", (unsigned long long)bytes,
	       (unsigned long long)gpa);
	return start + (gpa - told->start_gpa);
}

void areas_find(struct areas *areas, const struct settings *settings, const struct mailbox *box)
{
	struct mailbox_areas told = box->areas;
	const struct params *params = &settings->params;
	uint64_t pages = params->mem_bytes / params->stride_bytes;
	uint8_t *start = guest_hva(told.start_gpa, told.bytes);

	errno = 0;
	die_if(!start, "the guest's reserved memory, %#llx bytes at gpa %#llx, is not in one memslot",
	       (unsigned long long)told.bytes, (unsigned long long)told.start_gpa);
	areas->samples = inside(&told, told.samples_gpa, pages * params->rounds * sizeof(struct rec_fault), start);
	areas->frames = (uint64_t *)inside(&told, told.frames_gpa, settings->faults == FAULTS_BOTH ?
					   params->mem_bytes / PAGE_BYTES * sizeof(uint64_t) : 0, start);
	areas->mem = inside(&told, told.mem_gpa,
			    params->mem_bytes + settings_storm_bytes(settings, STORM_ADJACENT), start);
	areas->disjoint = inside(&told, told.disjoint_gpa, settings_storm_bytes(settings, STORM_DISJOINT), start);
	shared = is_shared(start);
	/* A huge host page would turn 512 faults into one; a VMM may have asked for them. */
	if (settings->faults == FAULTS_BOTH)
		guest_no_huge_pages();		/* the guest's next pages may be anywhere */
	else
		madvise(start, told.bytes, MADV_NOHUGEPAGE);
	errno = 0;
}

static void discard(uint8_t *hva, uint64_t bytes)
{
	die_if(madvise(hva, bytes, shared ? MADV_REMOVE : MADV_DONTNEED), "madvise of the guest's range");
}

/* The guest's pages are where its kernel put them the last time: take away each run of neighbours. */
static void discard_frames(const uint64_t *frames, uint64_t pages)
{
	uint64_t first = 0, next;

	for (; first < pages; first = next) {
		uint8_t *hva;

		for (next = first + 1; next < pages && frames[next] == frames[next - 1] + PAGE_BYTES; next++)
			;
		hva = guest_hva(frames[first], (next - first) * PAGE_BYTES);
		errno = 0;
		die_if(!hva, "the guest names gpa %#llx as its own, which no memslot covers",
		       (unsigned long long)frames[first]);
		discard(hva, (next - first) * PAGE_BYTES);
	}
}

void areas_discard(const struct areas *areas, const struct settings *settings)
{
	if (settings->faults == FAULTS_HOST)
		discard(areas->mem, settings->params.mem_bytes);
	else if (settings->faults == FAULTS_BOTH)
		discard_frames(areas->frames, settings->params.mem_bytes / PAGE_BYTES);
}
