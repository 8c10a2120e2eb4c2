/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A file that is written from front to back with a CRC-32 of all of it: what both programs leave their results in.
 * A header for the same reason as options.h.
 */
#ifndef ORCH_SINK_H
#define ORCH_SINK_H

#include <unistd.h>

#include "common.h"

struct sink {
	int fd;
	uint32_t crc;
};

/* The CRC-32 of zlib and IEEE 802.3, four bits a step: short, and fast enough for what is written once. */
static uint32_t crc32_update(uint32_t crc, const uint8_t *data, size_t bytes)
{
	static const uint32_t nibbles[16] = {
		0x00000000, 0x1db71064, 0x3b6e20c8, 0x26d930ac, 0x76dc4190, 0x6b6b51f4, 0x4db26158, 0x5005713c,
		0xedb88320, 0xf00f9344, 0xd6d6a3e8, 0xcb61b38c, 0x9b64c2b0, 0x86d3d2d4, 0xa00ae278, 0xbdbdf21c,
	};

	crc = ~crc;
	while (bytes--) {
		crc ^= *data++;
		crc = nibbles[crc & 15] ^ crc >> 4;
		crc = nibbles[crc & 15] ^ crc >> 4;
	}
	return ~crc;
}

static void put(struct sink *sink, const void *data, size_t bytes)
{
	const uint8_t *from = data;

	sink->crc = crc32_update(sink->crc, from, bytes);
	while (bytes) {
		ssize_t done = write(sink->fd, from, bytes);

		die_if(done < 0 && errno != EINTR, "write of the recording");
		if (done > 0) {
			from += done;
			bytes -= done;
		}
	}
}

#endif
