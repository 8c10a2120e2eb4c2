// SPDX-License-Identifier: GPL-2.0
/*
 * stale_check - can a guest still read a page after the system call that took it away has returned?
 *
 * A host thread invalidates a range of guest memory. The vCPU's thread, of higher real-time priority on the same CPU,
 * preempts it at a chosen moment of that call and lets the guest fault at a chosen place: inside the range, right
 * beside it (where KVM prefetches neighbours), or far away. When the call has returned, the guest reads the pages of
 * the range around that place. The host had written a tag into each: a guest that reads the tag has a mapping to a
 * page that is no longer its own, in real life a use-after-free.
 *
 * The moment is swept through the call. The case "inside", where every kernel must retry, shows at which moments an
 * invalidation was really in progress: only those count for the other cases (the reader of the result decides that).
 *
 * What it cannot show: damage by writes (the guest only reads), and races of two CPUs inside one KVM function.
 */
#define _GNU_SOURCE
#include <getopt.h>
#include <unistd.h>

#include "common.h"
#include "cpus.h"
#include "options.h"
#include "stale_check.h"

enum option_key {
	OPT_ARM = 256, OPT_CELL, OPT_OUT, OPT_SEED, OPT_ROUNDS, OPT_RANGE, OPT_KICK, OPT_PAGE, OPT_CASE, OPT_OP,
	OPT_ONLY_ROUND, OPT_WAKE, OPT_SECOND,
};

static const struct option options_known[] = {
	{ "arm", required_argument, NULL, OPT_ARM },
	{ "cell", required_argument, NULL, OPT_CELL },
	{ "out", required_argument, NULL, OPT_OUT },
	{ "seed", required_argument, NULL, OPT_SEED },
	{ "rounds", required_argument, NULL, OPT_ROUNDS },
	{ "range-pages", required_argument, NULL, OPT_RANGE },
	{ "kick-us", required_argument, NULL, OPT_KICK },
	{ "page", required_argument, NULL, OPT_PAGE },
	{ "case", required_argument, NULL, OPT_CASE },		/* repeatable */
	{ "op", required_argument, NULL, OPT_OP },		/* repeatable */
	{ "only-round", required_argument, NULL, OPT_ONLY_ROUND },
	{ "wake-ns", required_argument, NULL, OPT_WAKE },
	{ "second-ns", required_argument, NULL, OPT_SECOND },
	{ NULL, 0, NULL, 0 },
};

static const struct choice pages[] = { { "2m", 1 }, { "4k", 0 }, { NULL, 0 } };

static uint32_t case_bit(const char *word)
{
	uint32_t i;

	for (i = 0; i < stale_nr_cases(); i++) {
		if (!strcmp(stale_cases[i].name, word))
			return 1u << i;
	}
	errno = 0;
	die("--case does not know '%s'", word);
}

static uint32_t op_bit(const char *word)
{
	uint32_t i;

	for (i = 0; i < stale_nr_ops(); i++) {
		if (!strcmp(stale_ops[i].name, word))
			return 1u << i;
	}
	errno = 0;
	die("--op does not know '%s'", word);
}

static void take_replay_option(struct options *options, int key, const char *name)
{
	switch (key) {
	case OPT_ONLY_ROUND:
		options->replay = true;
		options->only_round = number(name, optarg, 0, 100000);
		break;
	case OPT_WAKE:
		options->only_wake_ns = number(name, optarg, 0, 1000000000);
		break;
	case OPT_SECOND:
		options->only_second_ns = number(name, optarg, 0, 1000000000);
		break;
	default:
		_exit(2);	/* getopt has said what is wrong */
	}
}

static void take_option(struct options *options, int key, const char *name)
{
	switch (key) {
	case OPT_ARM:
		copy_name(options->arm, sizeof(options->arm), name, optarg);
		break;
	case OPT_CELL:
		copy_name(options->cell, sizeof(options->cell), name, optarg);
		break;
	case OPT_OUT:
		options->out = optarg;
		break;
	case OPT_SEED:
		options->seed = number(name, optarg, 0, UINT64_MAX);
		break;
	case OPT_ROUNDS:
		options->rounds = number(name, optarg, 1, 10000);
		break;
	case OPT_RANGE:
		options->range_pages = number(name, optarg, 10, 1u << 18);
		break;
	case OPT_KICK:
		options->kick_us = number(name, optarg, 100, 1000000);
		break;
	case OPT_PAGE:
		options->guest_huge = choose(pages, name, optarg);
		break;
	case OPT_CASE:
		options->cases |= case_bit(optarg);
		break;
	case OPT_OP:
		options->ops |= op_bit(optarg);
		break;
	default:
		take_replay_option(options, key, name);
	}
}

static void parse(struct options *options, int argc, char **argv)
{
	int key, index = 0;

	while ((key = getopt_long(argc, argv, "", options_known, &index)) != -1)
		take_option(options, key, options_known[index].name);
	errno = 0;
	die_if(optind != argc, "unexpected argument '%s'", argv[optind]);
	die_if(!options->out, "--out FILE is needed");
	die_if(!options->cases || !options->ops, "at least one --case and one --op are needed");
	die_if(options->range_pages % 8 != 2, "--range-pages is 2 modulo 8: both edges cut a prefetch group");
	die_if(options->replay && (options->cases & (options->cases - 1) || options->ops & (options->ops - 1)),
	       "--only-round goes with one --case and one --op");
}

int main(int argc, char **argv)
{
	static struct options options = { .rounds = 24, .range_pages = 1026, .kick_us = 2000 };
	static struct check check;

	parse(&options, argc, argv);
	/* Before any thread starts: all of them share the CPU, so that one must preempt the other. */
	cpus_init();
	cpus_pin(0, "the check");
	check_create(&check, &options);
	run_cases(&check);
	check_destroy(&check);
	stale_write(&check);
	return 0;
}
