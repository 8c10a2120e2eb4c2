// SPDX-License-Identifier: GPL-2.0
/* Writes what was found, after everything has run. The format is stale.h's. */
#include <fcntl.h>
#include <stddef.h>
#include <unistd.h>

#include "common.h"
#include "sink.h"
#include "stale_check.h"

void stale_write(const struct check *check)
{
	const struct options *options = check->options;
	struct sink sink = { .fd = open(options->out, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644) };
	struct stale_header header = {
		.magic = STALE_MAGIC, .version = STALE_VERSION, .header_bytes = STALE_HEADER_BYTES,
		.flags = (check->vm.tdp ? STALE_FLAG_TDP : 0) | (options->guest_huge ? STALE_FLAG_HUGE : 0),
		.nr_rounds = check->nr_rounds, .tsc_hz = check->vm.tsc_hz, .seed = options->seed,
		.range_pages = options->range_pages, .kick_us = options->kick_us,
		.mem_gpa = MEM_GPA, .mem_hva = MEM_HVA,
	};
	struct stale_trailer trailer = { .magic = STALE_TRAILER_MAGIC, .nr_rounds = check->nr_rounds };

	_Static_assert(sizeof(struct stale_header) == STALE_HEADER_BYTES, "the header's size is part of the format");
	die_if(sink.fd < 0, "open %s", options->out);
	memcpy(header.arm, options->arm, sizeof(header.arm));
	memcpy(header.cell, options->cell, sizeof(header.cell));
	put(&sink, &header, sizeof(header));
	put(&sink, check->rounds, check->nr_rounds * sizeof(*check->rounds));
	put(&sink, &trailer, offsetof(struct stale_trailer, crc32));
	trailer.crc32 = sink.crc;
	put(&sink, &trailer.crc32, sizeof(trailer.crc32));
	die_if(close(sink.fd), "close of the recording");
}
