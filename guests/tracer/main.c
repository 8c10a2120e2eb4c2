// SPDX-License-Identifier: GPL-2.0
/*
 * tracer - run a program with the host kernel's tracepoints on, and keep what they say.
 *
 *	tracer KIB PROGRAM ARGUMENT...
 *
 * Switches on, through tracefs and with the TSC as clock: KVM's page faults, the mappings that come of them, and its
 * exits; the scheduler's switches; and probes on KVM's mmu_notifier, which has no tracepoint for a range (Linux 5.10: kvm_mmu_notifier_invalidate_range_start
 * and _end() in virt/kvm/kvm_main.c). Then it runs PROGRAM and sleeps until that has ended. Only then are the buffers
 * (KIB of each CPU, allocated before) read, brought into the form of trace.h, and written to the virtio port "orch.trace",
 * with what the buffers lost and the probes missed.
 *
 * Ends as PROGRAM ended. What it cannot show: what the functions between the tracepoints do, and interrupts other than
 * as exits.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common.h"
#include "sink.h"
#include "tracer.h"

#define PORTS		"/sys/class/virtio-ports"
#define PORT_NAME	"orch.trace"
#define FORMAT_BYTES	8192
#define MAX_CPUS	64

/* Words at 8, 16 and 24 of the struct that the second argument points to; which two are the range, pages.c decides. */
#define PROBE_START	"p:orch/invalidate kvm_mmu_notifier_invalidate_range_start "				\
			"word1=+8($arg2):u64 word2=+16($arg2):u64 word3=+24($arg2):u64"
/*
 * On return, so that the interval is never shorter than the one in which KVM's count is above zero. Each thread inside
 * the function takes one of the probe's instances until it returns, and where there is none left the end is missed. The
 * function waits for mmu_lock, and a thread can lose its CPU before it has that (CONFIG_PREEMPT), so they may be more than
 * CPUs: up to 64 of a storm, and a VMM's own. The kernel's default is 10 with one CPU or with two. An instance takes
 * less than 100 bytes.
 */
#define PROBE_END	"r256:orch/invalidated kvm_mmu_notifier_invalidate_range_end"

static const struct {
	const char *event, *a, *b;
} wanted[NR_KINDS] = {
	[TRACE_PAGE_FAULT] = { "kvm/kvm_page_fault", "fault_address", "error_code" },
	[TRACE_EXIT] = { "kvm/kvm_exit", "exit_reason", "isa" },
	[TRACE_SWITCH] = { "sched/sched_switch", "next_pid", "prev_state" },
	[TRACE_INVALIDATE] = { "orch/invalidate", "word2", "word3" },
	[TRACE_INVALIDATED] = { "orch/invalidated", NULL, NULL },
	[TRACE_INSTALL] = { "kvmmmu/kvm_mmu_spte_requested", "gfn", "level" },
};

static struct event_type types[NR_KINDS];

static void switch_on(uint16_t kind)
{
	static char format[FORMAT_BYTES];
	struct event_type *type = &types[kind];
	char name[128];

	snprintf(name, sizeof(name), "events/%s/id", wanted[kind].event);
	type->id = tracefs_number(name);
	snprintf(name, sizeof(name), "events/%s/format", wanted[kind].event);
	tracefs_read(name, format, sizeof(format));
	type->tid = tracefs_field(format, wanted[kind].event, "common_pid");
	if (wanted[kind].a)
		type->a = tracefs_field(format, wanted[kind].event, wanted[kind].a);
	if (wanted[kind].b)
		type->b = tracefs_field(format, wanted[kind].event, wanted[kind].b);
	if (kind == TRACE_INVALIDATE)
		type->word = tracefs_field(format, wanted[kind].event, "word1");
	snprintf(name, sizeof(name), "events/%s/enable", wanted[kind].event);
	tracefs_write(name, "1");
}

static void prepare(const char *kib)
{
	uint16_t kind;

	die_if(mount("tracefs", "/sys/kernel/tracing", "tracefs", 0, NULL) && errno != EBUSY,
	       "mount of tracefs: this kernel lacks CONFIG_TRACING");
	tracefs_write("tracing_on", "0");
	tracefs_write("trace_clock", "x86-tsc");
	tracefs_write("buffer_size_kb", kib);
	/* A full buffer drops what is new: what is there then has no hole in it, and the kernel counts the rest. */
	tracefs_write("options/overwrite", "0");
	/* No table of threads' names: at each event it would cost more than the event. */
	tracefs_write("options/record-cmd", "0");
	tracefs_write("kprobe_events", PROBE_START);
	tracefs_write("kprobe_events", PROBE_END);
	for (kind = 1; kind < NR_KINDS; kind++)
		switch_on(kind);
}

/* /dev/vportNpM of that name: QEMU's virtserialport devices have one. */
static int open_port(void)
{
	DIR *ports = opendir(PORTS);
	struct dirent *entry;
	int port = -1;

	while (ports && port < 0 && (entry = readdir(ports))) {
		char path[512], name[64] = "";
		int fd;

		snprintf(path, sizeof(path), PORTS "/%s/name", entry->d_name);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			continue;
		(void)!read(fd, name, sizeof(name) - 1);
		close(fd);
		name[strcspn(name, "\n")] = 0;
		snprintf(path, sizeof(path), "/dev/%s", entry->d_name);
		if (!strcmp(name, PORT_NAME))
			port = open(path, O_WRONLY | O_CLOEXEC);
	}
	if (ports)
		closedir(ports);
	die_if(port < 0, "no virtio port named " PORT_NAME);
	return port;
}

static int run(char **words)
{
	pid_t pid = fork();
	int status;

	die_if(pid < 0, "fork");
	if (!pid) {
		tracefs_write("tracing_on", "1");
		execv(words[0], words);
		die("execv of %s", words[0]);
	}
	die_if(waitpid(pid, &status, 0) < 0, "waitpid");
	tracefs_write("tracing_on", "0");
	return status;
}

/*
 * How often a probe did not run where it stands: it was hit within another probe, or no instance was left. A line of
 * kprobe_profile is its name, its hits and its misses (probes_profile_seq_show(), kernel/trace/trace_kprobe.c). 5.10.262
 * counts both kinds there; of a kernel that counts the first only, the analysis finds a beginning without an end.
 */
static uint64_t missed_by_probes(void)
{
	static char profile[4096];
	unsigned long long hits, misses;
	unsigned int found = 0;
	uint64_t sum = 0;
	char *line, *rest, name[64];

	tracefs_read("kprobe_profile", profile, sizeof(profile));
	for (line = strtok_r(profile, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
		if (sscanf(line, " %63s %llu %llu", name, &hits, &misses) != 3 ||
		    (strcmp(name, "invalidate") && strcmp(name, "invalidated")))
			continue;
		sum += misses;
		found++;
	}
	errno = 0;
	die_if(found != 2, "kprobe_profile has %u of the two probes", found);
	return sum;
}

static uint64_t stat_of(const char *stats, const char *name)
{
	const char *at = strstr(stats, name);

	errno = 0;
	die_if(!at, "a ring buffer's stats have no '%s'", name);
	return strtoull(at + strlen(name), NULL, 10);
}

static struct trace_cpu read_cpu(struct sink *sink, uint32_t cpu)
{
	static struct trace_event events[MAX_PAGE_EVENTS];
	static uint8_t page[PAGE_BYTES];
	struct trace_cpu found = { .cpu = cpu };
	char name[64], stats[1024];
	ssize_t bytes;
	int fd;

	snprintf(name, sizeof(name), "per_cpu/cpu%u/stats", cpu);
	tracefs_read(name, stats, sizeof(stats));
	/* "commit overrun" ends in the same word: both lines begin with a newline. */
	found.nr_lost = stat_of(stats, "\noverrun: ") + stat_of(stats, "\ncommit overrun: ") +
			stat_of(stats, "\ndropped events: ");
	snprintf(name, sizeof(name), TRACEFS "per_cpu/cpu%u/trace_pipe_raw", cpu);
	fd = open(name, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	die_if(fd < 0, "open %s", name);
	while ((bytes = read(fd, page, sizeof(page))) > 0) {
		size_t count = page_decode(page, bytes, cpu, types, events);

		put(sink, events, count * sizeof(*events));
		found.nr_events += count;
	}
	die_if(bytes < 0 && errno != EAGAIN, "read of %s", name);
	errno = 0;
	close(fd);
	return found;
}

static void write_trace(struct sink *sink, uint64_t start_tsc, uint64_t end_tsc, uint64_t buffer_bytes)
{
	struct trace_header header = {
		.magic = TRACE_MAGIC, .version = TRACE_VERSION, .header_bytes = TRACE_HEADER_BYTES,
		.buffer_bytes = buffer_bytes, .start_tsc = start_tsc, .end_tsc = end_tsc,
		.nr_missed = missed_by_probes(),
	};
	struct trace_trailer trailer = {
		.magic = TRACE_TRAILER_MAGIC, .nr_cpus = sysconf(_SC_NPROCESSORS_ONLN),
	};
	static struct trace_cpu cpus[MAX_CPUS];
	uint32_t i;

	errno = 0;
	die_if(trailer.nr_cpus > MAX_CPUS, "more than %d CPUs", MAX_CPUS);
	put(sink, &header, sizeof(header));
	for (i = 0; i < trailer.nr_cpus; i++) {
		cpus[i] = read_cpu(sink, i);
		trailer.nr_events += cpus[i].nr_events;
	}
	put(sink, cpus, trailer.nr_cpus * sizeof(*cpus));
	put(sink, &trailer, offsetof(struct trace_trailer, crc32));
	trailer.crc32 = sink->crc;
	put(sink, &trailer.crc32, sizeof(trailer.crc32));
	die_if(close(sink->fd), "close of the trace");
}

int main(int argc, char **argv)
{
	struct sink sink = { .fd = -1 };
	uint64_t start_tsc, end_tsc;
	int status;

	die_if(argc < 3, "usage: tracer KIB PROGRAM ARGUMENT...");
	prepare(argv[1]);
	sink.fd = open_port();
	start_tsc = rdtsc_ordered();
	status = run(argv + 2);
	end_tsc = rdtsc_ordered();
	errno = 0;
	die_if(WIFSIGNALED(status), "the program died of signal %d", WTERMSIG(status));
	if (WEXITSTATUS(status))
		return WEXITSTATUS(status);
	write_trace(&sink, start_tsc, end_tsc, strtoull(argv[1], NULL, 10) << 10);
	return 0;
}
