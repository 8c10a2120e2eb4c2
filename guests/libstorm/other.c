// SPDX-License-Identifier: GPL-2.0
/*
 * The negative control: the same storm, in a process whose mm has no mmu_notifier of KVM's. It is forked before the
 * VMM has any guest memory, waits at a socket, and leaves its windows in memory that both share.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
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
static int parent_end, child_end;

static void next_step(int fd)
{
	char step;
	ssize_t bytes = read(fd, &step, 1);

	if (fd == child_end && bytes == 0)
		_exit(0);	/* the VMM is gone, or has become another program */
	die_if(bytes != 1, "the other process, or the VMM, is gone");
}

static void done_step(int fd)
{
	die_if(write(fd, "", 1) != 1, "the other process, or the VMM, is gone");
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
	close(parent_end);
	params.placement = STORM_OUTSIDE;
	next_step(child_end);
	storm = storm_create(&params, NULL);
	done_step(child_end);
	next_step(child_end);
	storm_start(storm);
	done_step(child_end);
	next_step(child_end);
	storm_stop(storm);
	keep_windows(storm);
	done_step(child_end);
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
	int ends[2];
	pid_t child;

	params = *wanted;
	tallies = share(sizeof(*tallies));
	windows = share((size_t)params.threads * params.max_windows * sizeof(*windows));
	die_if(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), "socketpair");
	parent_end = ends[0];
	child_end = ends[1];
	child = fork();
	die_if(child < 0, "fork of the other process");
	if (!child)
		run_child();
	close(child_end);
	child_end = -1;
}

static void step(void)
{
	done_step(parent_end);
	next_step(parent_end);
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
