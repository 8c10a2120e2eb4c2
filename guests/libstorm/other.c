// SPDX-License-Identifier: GPL-2.0
/*
 * The negative control: the same storm, in a process whose mm has no mmu_notifier of KVM's. It is forked before the
 * VMM has any guest memory, waits at a pipe (the host's kernel may have no sockets), and leaves its windows in memory
 * that both share.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common.h"
#include "libstorm.h"

static struct storm_params params;
static struct {
	bool overflowed;
	uint64_t count[MAX_STORM_THREADS];
} *tallies;
static struct rec_window *windows;
/* Two pipes, read end first: what to do next, from the VMM, and that it is done, to it. */
static int next[2], done[2];

static void wait_for_next(void)
{
	char step;

	if (read(next[0], &step, 1) != 1)
		_exit(0);	/* the VMM is gone, or has become another program */
}

static void tell_done(void)
{
	die_if(write(done[1], "", 1) != 1, "write to the VMM, from the other process");
}

static void keep_windows(const struct storm *storm)
{
	uint32_t i;

	for (i = 0; i < params.threads; i++) {
		const struct rec_window *first = storm_windows(storm, i, &tallies->count[i]);

		memcpy(windows + (uint64_t)i * params.max_windows, first, tallies->count[i] * sizeof(*first));
	}
	tallies->overflowed = storm_overflowed(storm);
}

static void run_child(void)
{
	struct storm *storm;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	close(next[1]);
	close(done[0]);
	params.placement = STORM_OUTSIDE;
	wait_for_next();
	storm = storm_create(&params, NULL);
	tell_done();
	wait_for_next();
	storm_start(storm);
	tell_done();
	wait_for_next();
	storm_stop(storm);
	keep_windows(storm);
	tell_done();
	_exit(0);
}

static void *share(size_t bytes)
{
	void *area = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	die_if(area == MAP_FAILED, "mmap of %zu bytes for the other process's windows", bytes);
	return area;
}

void other_fork(const struct storm_params *wanted)
{
	pid_t child;

	params = *wanted;
	tallies = share(sizeof(*tallies));
	windows = share((size_t)params.threads * params.max_windows * sizeof(*windows));
	die_if(pipe2(next, O_CLOEXEC) || pipe2(done, O_CLOEXEC), "pipe");
	child = fork();
	die_if(child < 0, "fork of the other process");
	if (!child)
		run_child();
	close(next[0]);
	close(done[1]);
}

static void step(void)
{
	char answer;

	die_if(write(next[1], "", 1) != 1 || read(done[0], &answer, 1) != 1, "the other process is gone");
}

void other_create(void)
{
	step();
}

void other_start(void)
{
	step();
}

void other_stop(struct window_list *lists)
{
	uint32_t i;

	step();
	errno = 0;
	die_if(tallies->overflowed, "more than %u storm windows a thread: raise --max-windows", params.max_windows);
	for (i = 0; i < params.threads; i++)
		lists[i] = (struct window_list) { windows + (uint64_t)i * params.max_windows, tallies->count[i] };
}
