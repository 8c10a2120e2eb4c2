// SPDX-License-Identifier: GPL-2.0
/*
 * fault_vmm - how long does a guest's page fault take while its VMM's address space is being invalidated?
 *
 * A VM whose flat guest touches page after page of a memslot and times each access with the TSC, while threads of
 * this very process storm its address space with madvise/munmap/mprotect/mremap. Every access faults once in the
 * second-level (or shadow) page tables; what the mmu_notifier's retry adds is in the samples, and in KVM's counters.
 *
 * What it cannot show: what a Linux guest makes of it (no interrupts, no guest scheduler here), and the cost of
 * faults on memory that the host has swapped out.
 *
 * Runs as a child of the tiny init in the emulated host, and as an ordinary program on a machine with /dev/kvm.
 */
#define _GNU_SOURCE
#include <getopt.h>
#include <unistd.h>

#include "common.h"
#include "cpus.h"
#include "fault_vmm.h"
#include "options.h"

enum option_key {
	OPT_ARM = 256, OPT_CELL, OPT_OUT, OPT_SEED, OPT_VCPUS, OPT_MEM, OPT_STRIDE, OPT_ROUNDS, OPT_ACCESS, OPT_ORDER,
	OPT_PAGE, OPT_BACKING, OPT_STORM, OPT_PLACEMENT, OPT_STORM_BYTES, OPT_STORM_THREADS, OPT_STORM_PERIOD,
	OPT_STORM_CPU, OPT_STORM_CLASS, OPT_HOGS, OPT_MAX_WINDOWS,
};

static const struct option options[] = {
	{ "arm", required_argument, NULL, OPT_ARM },
	{ "cell", required_argument, NULL, OPT_CELL },
	{ "out", required_argument, NULL, OPT_OUT },
	{ "seed", required_argument, NULL, OPT_SEED },
	{ "vcpus", required_argument, NULL, OPT_VCPUS },
	{ "mem-bytes", required_argument, NULL, OPT_MEM },
	{ "stride-bytes", required_argument, NULL, OPT_STRIDE },
	{ "rounds", required_argument, NULL, OPT_ROUNDS },
	{ "access", required_argument, NULL, OPT_ACCESS },
	{ "order", required_argument, NULL, OPT_ORDER },
	{ "page", required_argument, NULL, OPT_PAGE },
	{ "backing", required_argument, NULL, OPT_BACKING },
	{ "storm", required_argument, NULL, OPT_STORM },
	{ "placement", required_argument, NULL, OPT_PLACEMENT },
	{ "storm-bytes", required_argument, NULL, OPT_STORM_BYTES },
	{ "storm-threads", required_argument, NULL, OPT_STORM_THREADS },
	{ "storm-period-us", required_argument, NULL, OPT_STORM_PERIOD },
	{ "storm-cpu", required_argument, NULL, OPT_STORM_CPU },
	{ "storm-class", required_argument, NULL, OPT_STORM_CLASS },
	{ "hogs", required_argument, NULL, OPT_HOGS },
	{ "max-windows", required_argument, NULL, OPT_MAX_WINDOWS },
	{ NULL, 0, NULL, 0 },
};

static const struct choice accesses[] = { { "write", 1 }, { "read", 0 }, { NULL, 0 } };
static const struct choice orders[] = { { "random", 1 }, { "sequential", 0 }, { NULL, 0 } };
static const struct choice pages[] = { { "2m", 1 }, { "4k", 0 }, { NULL, 0 } };
static const struct choice backings[] = {
	{ "absent", BACKING_ABSENT }, { "present", BACKING_PRESENT }, { NULL, 0 },
};
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

static int storm_cpu(const char *word)
{
	int choice = choose(cpus, "storm-cpu", word);
	errno = 0;
	die_if(choice == 1 && cpus_count() < 2, "--storm-cpu other: there is only one CPU");
	return choice == 1 ? cpus_count() - 1 : choice;
}

static void take_storm_option(struct storm_params *storm, int key, const char *name)
{
	switch (key) {
	case OPT_STORM:
		storm->op = choose(ops, name, optarg);
		break;
	case OPT_PLACEMENT:
		storm->placement = choose(placements, name, optarg);
		break;
	case OPT_STORM_BYTES:
		storm->bytes = number(name, optarg, PAGE_BYTES, 1ull << 40);
		break;
	case OPT_STORM_THREADS:
		storm->threads = number(name, optarg, 1, 256);
		break;
	case OPT_STORM_PERIOD:
		storm->period_us = number(name, optarg, 0, 60000000);
		break;
	case OPT_STORM_CPU:
		storm->cpu = storm_cpu(optarg);
		break;
	case OPT_STORM_CLASS:
		storm->fifo = choose(classes, name, optarg);
		break;
	case OPT_HOGS:
		storm->hogs = number(name, optarg, 0, 64);
		break;
	case OPT_MAX_WINDOWS:
		storm->max_windows = number(name, optarg, 1, 1u << 24);
		break;
	default:
		_exit(2);	/* getopt has said what is wrong */
	}
}

static void take_option(struct params *params, int key, const char *name)
{
	switch (key) {
	case OPT_ARM:
		copy_name(params->arm, sizeof(params->arm), name, optarg);
		break;
	case OPT_CELL:
		copy_name(params->cell, sizeof(params->cell), name, optarg);
		break;
	case OPT_OUT:
		params->out = optarg;
		break;
	case OPT_SEED:
		params->seed = number(name, optarg, 0, UINT64_MAX);
		break;
	case OPT_VCPUS:
		params->vcpus = number(name, optarg, 1, MAX_VCPUS);
		break;
	case OPT_MEM:
		params->mem_bytes = number(name, optarg, PAGE_BYTES, 1ull << 38);
		break;
	case OPT_STRIDE:
		params->stride_bytes = number(name, optarg, PAGE_BYTES, 1u << 30);
		break;
	case OPT_ROUNDS:
		params->rounds = number(name, optarg, 1, 1000000);
		break;
	case OPT_ACCESS:
		params->write = choose(accesses, name, optarg);
		break;
	case OPT_ORDER:
		params->random = choose(orders, name, optarg);
		break;
	case OPT_PAGE:
		params->guest_huge = choose(pages, name, optarg);
		break;
	case OPT_BACKING:
		params->backing = choose(backings, name, optarg);
		break;
	default:
		take_storm_option(&params->storm, key, name);
	}
}

static void parse(struct params *params, int argc, char **argv)
{
	int key, index = 0;

	while ((key = getopt_long(argc, argv, "", options, &index)) != -1)
		take_option(params, key, options[index].name);
	errno = 0;
	die_if(optind != argc, "unexpected argument '%s'", argv[optind]);
	die_if(!params->out, "--out FILE is needed");
	die_if(params->mem_bytes % PAGE_BYTES || params->stride_bytes % PAGE_BYTES ||
	       params->storm.bytes % PAGE_BYTES, "sizes are multiples of 4096");
	die_if(params->guest_huge && params->mem_bytes % HUGE_BYTES, "--page 2m wants --mem-bytes in units of 2 MiB");
	die_if(params->mem_bytes / params->stride_bytes < params->vcpus, "fewer pages than vCPUs");
	die_if(params->mem_bytes / params->stride_bytes >= 1ull << REC_PAGE_BITS, "too many pages for a record");
	die_if((params->storm.op != 0) != (params->storm.placement != STORM_NONE),
	       "--storm and --placement go together");
	if (!params->storm.op)
		params->storm.threads = 0;
	die_if(params->storm.placement == STORM_OVERLAP &&
	       params->storm.bytes * params->storm.threads > params->mem_bytes,
	       "an overlapping storm is larger than the guest's range");
}

/* The seed decides what a repeat may differ in: when the vCPUs start, in up to two scheduler ticks at HZ=250. */
static uint32_t start_delay_us(uint64_t seed)
{
	return (seed * 0x9e3779b97f4a7c15ull >> 32) % 8000;
}

int main(int argc, char **argv)
{
	static struct params params = {
		.vcpus = 1, .mem_bytes = 64ull << 20, .stride_bytes = PAGE_BYTES, .rounds = 1, .write = true,
		.storm = { .threads = 1, .bytes = 16ull << 20, .cpu = -1, .max_windows = 65536 },
	};
	static struct rec_counter counters[MAX_COUNTERS];
	static struct vm vm;
	struct storm *storm = NULL;
	uint64_t start_tsc, end_tsc;
	uint32_t nr_counters;

	cpus_init();
	parse(&params, argc, argv);
	cpus_pin(0, "the main thread");
	params.storm.seed = params.seed;
	params.start_delay_us = start_delay_us(params.seed);

	vm_create(&vm, &params);
	if (params.storm.op || params.storm.hogs)
		storm = storm_create(&params.storm, vm_storm_range(&vm));
	rounds_run(&vm, storm, &start_tsc, &end_tsc, counters, &nr_counters);
	errno = 0;
	die_if(storm && storm_overflowed(storm), "more than %u storm windows a thread: raise --max-windows",
	       params.storm.max_windows);
	record_write(&vm, storm, start_tsc, end_tsc, counters, nr_counters);
	return 0;
}
