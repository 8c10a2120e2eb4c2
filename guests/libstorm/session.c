// SPDX-License-Identifier: GPL-2.0
/*
 * The measurement, in a thread of the VMM's: what fault_vmm's rounds.c does for the flat guest. Between two rounds it
 * discards the guest's range, as the guest asks nothing and touches nothing then; during a round it sleeps.
 */
#define _GNU_SOURCE
#include <unistd.h>

#include "common.h"
#include "cpus.h"
#include "libstorm.h"

struct session {
	struct settings *settings;
	struct mailbox *box;
	struct areas areas;
	struct storm *storm;	/* NULL: none, or in the other process */
	bool other;
	struct measured measured;
};

static void tell_trial(struct session *session)
{
	const struct settings *settings = session->settings;
	const struct params *params = &settings->params;

	session->box->trial = (struct mailbox_trial) {
		.seed = params->seed, .mem_bytes = params->mem_bytes,
		.adjacent_bytes = settings_storm_bytes(settings, STORM_ADJACENT),
		.disjoint_bytes = settings_storm_bytes(settings, STORM_DISJOINT),
		.stride_bytes = params->stride_bytes, .rounds = params->rounds, .vcpus = params->vcpus,
		.write = params->write, .random = params->random, .faults = settings->faults,
		.memory = settings->memory, .jitter_wakeups = settings->jitter_wakeups,
		.jitter_period_us = settings->jitter_period_us,
	};
	ask(session->box, MAILBOX_RESERVE, 0);
	areas_find(&session->areas, settings, session->box);
}

static void *storm_place(const struct session *session)
{
	switch (session->settings->params.storm.placement) {
	case STORM_DISJOINT:
		return session->areas.disjoint;
	case STORM_ADJACENT:
		return session->areas.mem + session->settings->params.mem_bytes;
	case STORM_OVERLAP:
		return session->areas.mem;
	default:
		return NULL;
	}
}

static void make_storm(struct session *session)
{
	const struct storm_params *params = &session->settings->params.storm;

	session->other = params->placement == STORM_OTHER_PROCESS;
	if (session->other)
		other_create();
	else if (params->op || params->hogs)
		session->storm = storm_create(params, storm_place(session));
}

static void start_storm(struct session *session)
{
	if (session->other)
		other_start();
	else if (session->storm)
		storm_start(session->storm);
}

static void stop_storm(struct session *session)
{
	const struct storm_params *params = &session->settings->params.storm;
	struct window_list *lists = session->measured.windows;
	uint32_t i;

	if (session->other)
		other_stop(lists);
	if (!session->storm)
		return;
	storm_stop(session->storm);
	errno = 0;
	die_if(storm_overflowed(session->storm), "more than %u storm windows a thread: raise --max-windows",
	       params->max_windows);
	for (i = 0; i < params->threads; i++)
		lists[i].first = storm_windows(session->storm, i, &lists[i].count);
}

static void one_round(struct session *session, enum mailbox_command command, uint32_t round)
{
	if (session->storm)
		storm_hold(session->storm);
	areas_discard(&session->areas, session->settings);
	if (session->storm)
		storm_release(session->storm);
	ask(session->box, command, round);
}

/*
 * Where the guest drops its pages as well, its kernel may give it others of its free ones, which the host backs as
 * yet. Whatever comes by is discarded before it is dropped, so after as many rounds as it takes to go through all of
 * the guest's free memory, no page that it gives is backed.
 */
static void warm_up(struct session *session)
{
	uint64_t rounds = session->box->areas.free_bytes / session->settings->params.mem_bytes + 1, round;

	for (round = 0; session->settings->faults == FAULTS_BOTH && round < rounds; round++)
		one_round(session, MAILBOX_WARM, 0);
}

static void run_rounds(struct session *session)
{
	const struct params *params = &session->settings->params;
	struct measured *measured = &session->measured;
	uint32_t round;

	counters_read(&guest_vm, measured->counters, false);
	start_storm(session);
	sleep_us(params->start_delay_us);
	measured->start_tsc = rdtsc_ordered();
	for (round = 0; round < params->rounds; round++)
		one_round(session, MAILBOX_ROUND, round);
	measured->end_tsc = rdtsc_ordered();
	measured->nr_counters = counters_read(&guest_vm, measured->counters, true);
}

static uint64_t kvm_counted(const struct measured *measured, const char *name)
{
	uint32_t i;

	for (i = 0; i < measured->nr_counters; i++) {
		if (!strcmp(measured->counters[i].name, name))
			return measured->counters[i].after - measured->counters[i].before;
	}
	return 0;
}

/*
 * Each sample must be a fault of the kind that was asked for, or the figures are of something else. Of a thousand one
 * may have been another as well, so that the percentiles up to p99 hold; so few are what the guest's kernel does for
 * itself meanwhile: moves a page, or takes one that it has never had.
 */
static void check_faults(const struct session *session)
{
	const struct params *params = &session->settings->params;
	uint64_t samples = params->mem_bytes / params->stride_bytes * params->rounds, strays = samples / 1000;
	uint64_t own = session->box->results.minflt, fixed = kvm_counted(&session->measured, "pf_fixed");
	uint64_t wanted = session->settings->faults == FAULTS_HOST ? 0 : samples;

	errno = 0;
	die_if(own < wanted || own > wanted + strays,
	       "in %llu samples the guest's own kernel took %llu faults, and --faults asks for %llu: they are not all of the "
	       "kind that was to be measured", (unsigned long long)samples, (unsigned long long)own,
	       (unsigned long long)wanted);
	/* Under shadow paging KVM fixes its own tables for each of the guest's faults. */
	die_if(session->settings->faults == FAULTS_GUEST && kvm_uses_tdp() && fixed > strays,
	       "--faults guest, but in %llu samples KVM mapped %llu pages: the host did not back what the guest's kernel gave",
	       (unsigned long long)samples, (unsigned long long)fixed);
}

void *session_run(void *arg)
{
	static struct session session;
	const struct params *params;

	session.settings = arg;
	params = &session.settings->params;
	cpus_pin(0, "the session");
	session.box = attach(session.settings->console, session.settings->boot_seconds);
	guest_vm.params = params;
	guest_watch(session.box);
	errno = 0;
	die_if(guest_running() < params->vcpus, "--vcpus %u, but the VMM runs %u", params->vcpus, guest_running());
	tell_trial(&session);
	warm_up(&session);
	make_storm(&session);
	run_rounds(&session);
	check_faults(&session);
	if (session.settings->jitter_wakeups)
		ask(session.box, MAILBOX_JITTER, 0);
	stop_storm(&session);
	session.measured.settings = session.settings;
	session.measured.box = session.box;
	session.measured.areas = &session.areas;
	record_session(&session.measured);
	fprintf(stderr, SETTINGS_RECORDED "\n");
	/* Nothing of the VMM is needed any more, and its own way out would take the guest down first. */
	_exit(0);
}
