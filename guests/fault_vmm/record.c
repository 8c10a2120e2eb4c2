// SPDX-License-Identifier: GPL-2.0
/* Writes the recording, after everything has been measured. The format is recording.h's. */
#include <fcntl.h>
#include <unistd.h>

#include "common.h"
#include "fault_vmm.h"
#include "sink.h"

static uint32_t header_flags(const struct vm *vm, uint32_t nr_counters)
{
	return (vm->tdp ? REC_FLAG_TDP : 0) | (vm->params->write ? REC_FLAG_WRITE : 0) |
	       (vm->params->random ? REC_FLAG_RANDOM : 0) | (nr_counters ? REC_FLAG_COUNTERS : 0);
}

static uint64_t total_windows(const struct vm *vm, const struct storm *storm)
{
	uint64_t total = 0, count;
	uint32_t i;

	for (i = 0; storm && i < vm->params->storm.threads; i++) {
		storm_windows(storm, i, &count);
		total += count;
	}
	return total;
}

/* Returns how many there are. */
static uint64_t put_faults(struct sink *sink, const struct vm *vm)
{
	uint64_t total = 0;
	uint32_t i;

	for (i = 0; i < vm->params->vcpus; i++) {
		const struct vcpu *vcpu = &vm->vcpus[i];
		struct rec_vcpu section = {
			.vcpu = i,
			.tsc_offset = vcpu->tsc_offset,
			.nr_faults = vcpu->nr_pages * vm->params->rounds,
		};

		put(sink, &section, sizeof(section));
		put(sink, vcpu->samples, section.nr_faults * sizeof(struct rec_fault));
		total += section.nr_faults;
	}
	return total;
}

static void put_windows(struct sink *sink, const struct vm *vm, const struct storm *storm)
{
	uint64_t count;
	uint32_t i;

	for (i = 0; storm && i < vm->params->storm.threads; i++) {
		const struct rec_window *windows = storm_windows(storm, i, &count);

		put(sink, windows, count * sizeof(*windows));
	}
}

void record_write(const struct vm *vm, const struct storm *storm, uint64_t start_tsc, uint64_t end_tsc,
		  const struct rec_counter *counters, uint32_t nr_counters)
{
	const struct params *params = vm->params;
	struct sink sink = { .fd = open(params->out, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644) };
	struct rec_header header = {
		.magic = REC_MAGIC, .version = REC_VERSION, .header_bytes = REC_HEADER_BYTES,
		.arch = REC_ARCH_X86_64, .flags = header_flags(vm, nr_counters),
		.tsc_hz = vm->tsc_hz, .seed = params->seed,
		.mem_bytes = params->mem_bytes, .mem_hva = MEM_HVA, .mem_gpa = MEM_GPA,
		.page_bytes = params->stride_bytes, .rounds = params->rounds, .nr_vcpus = params->vcpus,
		.nr_counters = nr_counters, .nr_windows = total_windows(vm, storm),
		.start_tsc = start_tsc, .end_tsc = end_tsc,
	};
	struct rec_trailer trailer = {
		.magic = REC_TRAILER_MAGIC, .nr_windows = header.nr_windows, .nr_counters = nr_counters,
	};

	die_if(sink.fd < 0, "open %s", params->out);
	memcpy(header.arm, params->arm, sizeof(header.arm));
	memcpy(header.cell, params->cell, sizeof(header.cell));
	put(&sink, &header, sizeof(header));
	trailer.nr_faults = put_faults(&sink, vm);
	put_windows(&sink, vm, storm);
	put(&sink, counters, nr_counters * sizeof(*counters));
	put(&sink, &trailer, offsetof(struct rec_trailer, crc32));
	trailer.crc32 = sink.crc;
	put(&sink, &trailer.crc32, sizeof(trailer.crc32));
	die_if(close(sink.fd), "close of the recording");
}
