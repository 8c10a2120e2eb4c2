/* SPDX-License-Identifier: GPL-2.0 */
/* tracer: runs a program with the kernel's tracing on, and leaves what the ring buffers hold. */
#ifndef ORCH_TRACER_H
#define ORCH_TRACER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "trace.h"

#define TRACEFS		"/sys/kernel/tracing/"
#define NR_KINDS	(TRACE_INSTALL + 1)

/* A field of an event as its "format" file describes it. */
struct field {
	uint32_t offset;
	uint32_t bytes;
	bool is_signed;
};

/* How one of the kernel's event types becomes a trace_event. */
struct event_type {
	uint32_t id;		/* common_type */
	struct field tid;
	struct field a;
	struct field b;
	struct field word;	/* INVALIDATE only: the first word behind the struct's first pointer, see pages.c */
};

/* tracefs.c: files below TRACEFS. */
void tracefs_write(const char *name, const char *text);
void tracefs_read(const char *name, char *text, size_t bytes);
struct field tracefs_field(const char *format, const char *event, const char *name);
uint32_t tracefs_number(const char *name);

/* pages.c: one page of a ring buffer, as trace_pipe_raw gives it. Returns how many events were written to @events. */
#define MAX_PAGE_EVENTS	512	/* of 4 KiB: an event has at least a header and its common fields, 12 bytes */
size_t page_decode(const uint8_t *page, size_t bytes, uint16_t cpu, const struct event_type *types,
		   struct trace_event *events);

#endif
