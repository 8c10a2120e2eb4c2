// SPDX-License-Identifier: GPL-2.0
/* Writes the recording, after everything has been measured. The format is recording.h's. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <unistd.h>

#include "common.h"
#include "libstorm.h"
#include "seeded.h"
#include "sink.h"

/* Whether the host's KVM uses two-dimensional paging: see read_tdp() in fault_vmm/vm.c. */
bool kvm_uses_tdp(void)
{
	static const char *const files[] = {
		"/sys/module/kvm_amd/parameters/npt",
		"/sys/module/kvm_intel/parameters/ept",
	};
	size_t i;

	for (i = 0; i < sizeof(files) / sizeof(files[0]); i++) {
		FILE *file = fopen(files[i], "re");
		int value;

		if (!file)
			continue;
		value = fgetc(file);
		fclose(file);
		return value == 'Y' || value == '1';
	}
	errno = 0;
	die_if(access("/sys/module/kvm", F_OK), "no KVM in /sys/module: cannot tell TDP from shadow paging");
	return false;
}

static void add(struct measured *measured, const char *name, uint64_t value)
{
	struct rec_counter *counter = &measured->counters[measured->nr_counters];

	die_if(measured->nr_counters == MAX_COUNTERS, "KVM's statistics and ours are more than %d", MAX_COUNTERS);
	memset(counter, 0, sizeof(*counter));
	strncpy(counter->name, name, sizeof(counter->name) - 1);
	counter->after = value;
	measured->nr_counters++;
}

/* What the guest has counted, behind what KVM has. */
static void add_results(struct measured *measured)
{
	struct mailbox_results results = measured->box->results;

	errno = 0;
	add(measured, "guest_minflt", results.minflt);
	add(measured, "guest_steal_ns", results.steal_ns);
	if (!measured->settings->jitter_wakeups)
		return;
	add(measured, "jitter_p50_ns", results.jitter_p50_ns);
	add(measured, "jitter_p99_ns", results.jitter_p99_ns);
	add(measured, "jitter_max_ns", results.jitter_max_ns);
	add(measured, "jitter_mean_ns", results.jitter_mean_ns);
	add(measured, "jitter_wakeups", results.jitter_wakeups);
	add(measured, "jitter_missed", results.jitter_missed);
}

static uint64_t put_faults(struct sink *sink, const struct measured *measured)
{
	const struct params *params = &measured->settings->params;
	const struct rec_fault *samples = (const struct rec_fault *)measured->areas->samples;
	uint64_t total = 0;
	uint32_t i;

	for (i = 0; i < params->vcpus; i++) {
		struct rec_vcpu section = {
			.vcpu = i,
			.tsc_offset = guest_vm.vcpus[i].tsc_offset,
			.nr_faults = share_of(params, i) * params->rounds,
		};

		put(sink, &section, sizeof(section));
		put(sink, samples + total, section.nr_faults * sizeof(*samples));
		total += section.nr_faults;
	}
	return total;
}

static struct rec_header make_header(const struct measured *measured, uint32_t kvm_counters)
{
	const struct params *params = &measured->settings->params;
	struct rec_header header = {
		.magic = REC_MAGIC, .version = REC_VERSION, .header_bytes = REC_HEADER_BYTES,
		.arch = REC_ARCH_X86_64,
		.flags = (kvm_uses_tdp() ? REC_FLAG_TDP : 0) | (params->write ? REC_FLAG_WRITE : 0) |
			 (params->random ? REC_FLAG_RANDOM : 0) | (kvm_counters ? REC_FLAG_COUNTERS : 0),
		.tsc_hz = guest_vm.tsc_hz, .seed = params->seed, .mem_bytes = params->mem_bytes,
		.mem_hva = (uint64_t)measured->areas->mem, .mem_gpa = measured->box->areas.mem_gpa,
		.page_bytes = params->stride_bytes, .rounds = params->rounds, .nr_vcpus = params->vcpus,
		.nr_counters = measured->nr_counters,
		.start_tsc = measured->start_tsc, .end_tsc = measured->end_tsc,
	};
	uint32_t i;

	memcpy(header.arm, params->arm, sizeof(header.arm));
	memcpy(header.cell, params->cell, sizeof(header.cell));
	for (i = 0; i < params->storm.threads; i++)
		header.nr_windows += measured->windows[i].count;
	return header;
}

void record_session(struct measured *measured)
{
	const struct params *params = &measured->settings->params;
	struct sink sink = { .fd = open(params->out, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644) };
	struct rec_trailer trailer = { .magic = REC_TRAILER_MAGIC };
	uint32_t i, kvm_counters = measured->nr_counters;
	struct rec_header header;

	die_if(sink.fd < 0, "open %s", params->out);
	add_results(measured);
	header = make_header(measured, kvm_counters);
	put(&sink, &header, sizeof(header));
	trailer.nr_faults = put_faults(&sink, measured);
	for (i = 0; i < params->storm.threads; i++)
		put(&sink, measured->windows[i].first, measured->windows[i].count * sizeof(struct rec_window));
	put(&sink, measured->counters, measured->nr_counters * sizeof(struct rec_counter));
	trailer.nr_windows = header.nr_windows;
	trailer.nr_counters = header.nr_counters;
	put(&sink, &trailer, offsetof(struct rec_trailer, crc32));
	trailer.crc32 = sink.crc;
	put(&sink, &trailer.crc32, sizeof(trailer.crc32));
	die_if(close(sink.fd), "close of the recording");
}
