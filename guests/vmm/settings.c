// SPDX-License-Identifier: GPL-2.0
/*
 * The words below are those of fault_vmm/main.c, which keeps its own: its binary, and with it every recording of the
 * flat guest under icount, stays what it was. A test compares the two.
 */
#define _GNU_SOURCE
#include <stddef.h>

#include "common.h"
#include "cpus.h"
#include "options.h"
#include "seeded.h"
#include "settings.h"

#define MAX_JITTER_WAKEUPS	1000000
#define FAULT_AROUND_BYTES	(64ull << 10)	/* what Linux maps at once around a page that is read from a file */

static const struct choice accesses[] = { { "write", 1 }, { "read", 0 }, { NULL, 0 } };
static const struct choice orders[] = { { "random", 1 }, { "sequential", 0 }, { NULL, 0 } };
static const struct choice ops[] = {
	{ "madvise_dontneed", REC_OP_MADV_DONTNEED }, { "madvise_free", REC_OP_MADV_FREE },
	{ "madvise_pageout", REC_OP_MADV_PAGEOUT }, { "munmap", REC_OP_MUNMAP },
	{ "mprotect", REC_OP_MPROTECT }, { "mremap", REC_OP_MREMAP }, { NULL, 0 },
};
static const struct choice placements[] = {
	{ "outside", STORM_OUTSIDE }, { "disjoint", STORM_DISJOINT }, { "adjacent", STORM_ADJACENT },
	{ "overlap", STORM_OVERLAP }, { "other-process", STORM_OTHER_PROCESS }, { NULL, 0 },
};
static const struct choice classes[] = { { "fifo", 1 }, { "other", 0 }, { NULL, 0 } };
/* The vCPU's CPU is 0 (vCPU i runs on CPU i); "other" is the last one. */
static const struct choice cpus[] = { { "same", 0 }, { "other", 1 }, { "any", -1 }, { NULL, 0 } };
static const struct choice kinds[] = {
	{ "host", FAULTS_HOST }, { "guest", FAULTS_GUEST }, { "both", FAULTS_BOTH }, { NULL, 0 },
};
static const struct choice memories[] = {
	{ "anonymous", MEMORY_ANONYMOUS }, { "thp", MEMORY_THP }, { "file", MEMORY_FILE }, { NULL, 0 },
};

const struct settings settings_defaults = {
	.params = {
		.vcpus = 1, .mem_bytes = 64ull << 20, .stride_bytes = PAGE_BYTES, .rounds = 1, .write = true,
		.storm = { .threads = 1, .bytes = 16ull << 20, .cpu = -1, .max_windows = 65536 },
	},
	.jitter_period_us = 1000,
	.boot_seconds = 60,
	.console = SETTINGS_CONSOLE,
};

static int storm_cpu(const char *word)
{
	int choice = choose(cpus, "storm-cpu", word);

	errno = 0;
	die_if(choice == 1 && cpus_count() < 2, "--storm-cpu other: there is only one CPU");
	return choice == 1 ? cpus_count() - 1 : choice;
}

static bool is(const char *name, const char *option)
{
	return !strcmp(name, option);
}

static bool take_storm(struct storm_params *storm, const char *name, const char *value)
{
	if (is(name, "storm"))
		storm->op = choose(ops, name, value);
	else if (is(name, "placement"))
		storm->placement = choose(placements, name, value);
	else if (is(name, "storm-bytes"))
		storm->bytes = number(name, value, PAGE_BYTES, 1ull << 40);
	else if (is(name, "storm-threads"))
		storm->threads = number(name, value, 1, MAX_STORM_THREADS);
	else if (is(name, "storm-period-us"))
		storm->period_us = number(name, value, 0, 60000000);
	else if (is(name, "storm-cpu"))
		storm->cpu = storm_cpu(value);
	else if (is(name, "storm-class"))
		storm->fifo = choose(classes, name, value);
	else if (is(name, "hogs"))
		storm->hogs = number(name, value, 0, 64);
	else if (is(name, "max-windows"))
		storm->max_windows = number(name, value, 1, 1u << 24);
	else
		return false;
	return true;
}

static bool take_guest(struct params *params, const char *name, const char *value)
{
	if (is(name, "vcpus"))
		params->vcpus = number(name, value, 1, MAX_VCPUS);
	else if (is(name, "mem-bytes"))
		params->mem_bytes = number(name, value, PAGE_BYTES, 1ull << 38);
	else if (is(name, "stride-bytes"))
		params->stride_bytes = number(name, value, PAGE_BYTES, 1u << 30);
	else if (is(name, "rounds"))
		params->rounds = number(name, value, 1, 1000000);
	else if (is(name, "access"))
		params->write = choose(accesses, name, value);
	else if (is(name, "order"))
		params->random = choose(orders, name, value);
	else
		return take_storm(&params->storm, name, value);
	return true;
}

bool settings_take(struct settings *settings, const char *name, const char *value)
{
	struct params *params = &settings->params;

	if (is(name, "arm"))
		copy_name(params->arm, sizeof(params->arm), name, value);
	else if (is(name, "cell"))
		copy_name(params->cell, sizeof(params->cell), name, value);
	else if (is(name, "out"))
		params->out = value;
	else if (is(name, "seed"))
		params->seed = number(name, value, 0, UINT64_MAX);
	else if (is(name, "faults"))
		settings->faults = choose(kinds, name, value);
	else if (is(name, "memory"))
		settings->memory = choose(memories, name, value);
	else if (is(name, "jitter-wakeups"))
		settings->jitter_wakeups = number(name, value, 0, MAX_JITTER_WAKEUPS);
	else if (is(name, "jitter-period-us"))
		settings->jitter_period_us = number(name, value, 1, 1000000);
	else if (is(name, "boot-seconds"))
		settings->boot_seconds = number(name, value, 1, 86400);
	else if (is(name, "console"))
		settings->console = value;
	else
		return take_guest(params, name, value);
	return true;
}

uint64_t settings_storm_bytes(const struct settings *settings, enum storm_placement placement)
{
	const struct storm_params *storm = &settings->params.storm;

	return storm->placement == placement ? storm->bytes * storm->threads : 0;
}

static void check_faults(const struct settings *settings)
{
	enum storm_placement placement = settings->params.storm.placement;

	if (settings->faults == FAULTS_HOST)
		return;
	/* The guest's kernel gives other pages each time: there is no place that stays beside or under them. */
	die_if(placement == STORM_OVERLAP || placement == STORM_ADJACENT,
	       "--placement overlap and adjacent need --faults host: else the guest's pages move");
	/* A read maps the page of zeros, which the whole guest shares: no page of its own to take away. */
	die_if(!settings->params.write && settings->memory != MEMORY_FILE,
	       "--access read of memory that the guest has dropped needs --memory file");
	/* do_fault_around() in mm/memory.c: fault_around_bytes. do_huge_pmd_anonymous_page() in mm/huge_memory.c. */
	die_if(!settings->params.write && settings->params.stride_bytes < FAULT_AROUND_BYTES,
	       "--access read needs --stride-bytes of at least %llu where the guest faults: its kernel maps so much at once",
	       FAULT_AROUND_BYTES);
	die_if(settings->memory == MEMORY_THP && settings->params.stride_bytes % HUGE_BYTES,
	       "--memory thp needs --stride-bytes in units of %llu where the guest faults: its kernel maps so much at once",
	       HUGE_BYTES);
}

/*
 * Both leave a hole in the VMM's guest memory for a moment. Any other thread's mmap() may be given it (a thread's stack,
 * malloc's), and where that memory is a file, mapped shared, no anonymous page can take its place.
 */
static void check_holes(const struct storm_params *storm)
{
	die_if((storm->op == REC_OP_MUNMAP || storm->op == REC_OP_MREMAP) && storm->placement != STORM_OUTSIDE &&
	       storm->placement != STORM_OTHER_PROCESS,
	       "--storm munmap and mremap leave holes in guest memory, which another thread of the VMM may fill: use "
	       "--placement outside or other-process, or another storm");
}

void settings_check(struct settings *settings)
{
	struct params *params = &settings->params;

	errno = 0;
	die_if(!params->out, "--out FILE is needed");
	die_if(params->mem_bytes % PAGE_BYTES || params->stride_bytes % PAGE_BYTES ||
	       params->storm.bytes % PAGE_BYTES, "sizes are multiples of 4096");
	die_if(settings->memory == MEMORY_THP && params->mem_bytes % HUGE_BYTES,
	       "--memory thp wants --mem-bytes in units of 2 MiB");
	die_if(params->mem_bytes / params->stride_bytes < params->vcpus, "fewer pages than vCPUs");
	die_if(params->mem_bytes / params->stride_bytes >= 1ull << REC_PAGE_BITS, "too many pages for a record");
	die_if((params->storm.op != 0) != (params->storm.placement != STORM_NONE),
	       "--storm and --placement go together");
	if (params->storm.op)
		check_holes(&params->storm);
	else
		params->storm.threads = 0;
	die_if(settings_storm_bytes(settings, STORM_OVERLAP) > params->mem_bytes,
	       "an overlapping storm is larger than the guest's range");
	check_faults(settings);
	params->storm.seed = params->seed;
	params->start_delay_us = start_delay_us(params->seed);
}
