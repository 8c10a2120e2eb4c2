// SPDX-License-Identifier: GPL-2.0
/*
 * Pages of the kernel's trace ring buffer. Their form is the kernel's ABI to perf, trace-cmd and libtraceevent:
 * struct buffer_data_page and struct ring_buffer_event (include/linux/ring_buffer.h, kernel/trace/ring_buffer.c; 5.10).
 *
 *	u64 time_stamp | u64 commit (bytes of data; flags above) | data
 *
 * Data is a sequence of events: 5 bits of type and 27 of the time since the one before, then perhaps a length, then the
 * record with its common fields.
 */
#include "common.h"
#include "tracer.h"

#define PAGE_HEAD	16
#define COMMIT_MASK	0xfffffull	/* RB_MISSED_EVENTS is 1 << 31, RB_MISSED_STORED 1 << 30 */
#define TIME_BITS	27		/* TS_SHIFT */
#define TYPE_PADDING	29		/* RINGBUF_TYPE_PADDING and the two after it */
#define TYPE_EXTEND	30
#define TYPE_STAMP	31
#define STAMP_BITS	(32 + TIME_BITS)	/* an absolute stamp lacks the 5 bits above: they are those of the page */

static uint64_t read_bytes(const uint8_t *at, uint32_t bytes)
{
	uint64_t value = 0;

	memcpy(&value, at, bytes);
	return value;
}

static uint64_t read_field(const uint8_t *record, size_t bytes, struct field field)
{
	uint64_t value;

	errno = 0;
	die_if(field.offset + field.bytes > bytes || field.bytes > 8, "a field at %u, %u bytes, in an event of %zu",
	       field.offset, field.bytes, bytes);
	value = read_bytes(record + field.offset, field.bytes);
	if (field.is_signed && field.bytes < 8 && value >> (field.bytes * 8 - 1))
		value |= ~0ull << field.bytes * 8;
	return value;
}

/*
 * The range of an INVALIDATE. struct mmu_notifier_range began with two pointers (vma, mm) until 6.3 dropped the first
 * (7d4a8be0c4b2), so start and end are at 16 and 24 or at 8 and 16. The words at 8, 16 and 24 were recorded; a pointer to
 * a struct mm is a kernel address, the start of a range is not.
 */
static void take_range(const uint8_t *record, size_t bytes, const struct event_type *type, struct trace_event *event)
{
	uint64_t word = read_field(record, bytes, type->word);

	if (word >> 63)
		return;
	event->b = event->a;
	event->a = word;
}

static bool take_record(const uint8_t *record, size_t bytes, const struct event_type *types,
			struct trace_event *event)
{
	uint32_t id = read_bytes(record, 2);	/* common_type */
	uint16_t kind;

	for (kind = 1; kind < NR_KINDS; kind++) {
		const struct event_type *type = &types[kind];

		if (type->id != id)
			continue;
		event->kind = kind;
		event->tid = read_field(record, bytes, type->tid);
		event->a = type->a.bytes ? read_field(record, bytes, type->a) : 0;
		event->b = type->b.bytes ? read_field(record, bytes, type->b) : 0;
		if (kind == TRACE_INVALIDATE)
			take_range(record, bytes, type, event);
		return true;
	}
	return false;
}

size_t page_decode(const uint8_t *page, size_t bytes, uint16_t cpu, const struct event_type *types,
		   struct trace_event *events)
{
	uint64_t stamp = read_bytes(page, 8), page_stamp = stamp;
	size_t end = PAGE_HEAD + (read_bytes(page + 8, 8) & COMMIT_MASK), at = PAGE_HEAD, count = 0;

	errno = 0;
	die_if(end > bytes, "a page of the ring buffer holds %zu bytes, %zu were read", end, bytes);
	while (at + 4 <= end) {
		uint32_t head = read_bytes(page + at, 4), type = head & 31, delta = head >> 5, length;
		/* Where a length or the upper part of a time may stand; of the last event on a page there may be none. */
		uint64_t next = at + 8 <= end ? read_bytes(page + at + 4, 4) : 0;

		if (type == TYPE_PADDING && !delta)
			break;		/* the rest of the page is empty */
		if (type == TYPE_EXTEND || type == TYPE_STAMP) {
			uint64_t time = next << TIME_BITS | delta;

			stamp = type == TYPE_EXTEND ? stamp + time : time | page_stamp >> STAMP_BITS << STAMP_BITS;
			at += 8;
			continue;
		}
		stamp += delta;
		length = type && type != TYPE_PADDING ? type * 4 : next;
		die_if(at + 4 + length > end, "an event of %u bytes leads out of its page", length);
		if (type != TYPE_PADDING) {
			size_t skip = type ? 4 : 8;	/* before the record */

			die_if(count == MAX_PAGE_EVENTS, "more than %d events on a page", MAX_PAGE_EVENTS);
			events[count] = (struct trace_event) { .tsc = stamp, .cpu = cpu };
			count += take_record(page + at + skip, length + 4 - skip, types, &events[count]);
		}
		at += 4 + length;
	}
	return count;
}
