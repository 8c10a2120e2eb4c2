/* SPDX-License-Identifier: GPL-2.0 */
/* fault_bench: in a Linux guest, touch page after page, and time each access. */
#ifndef ORCH_FAULT_BENCH_H
#define ORCH_FAULT_BENCH_H

#include <stdbool.h>
#include <stdint.h>

#include "fault_vmm.h"
#include "mailbox.h"

/* What was reserved: guest-physically contiguous, and mapped here in the same order. */
struct area {
	uint8_t *start;
	uint64_t gpa;		/* of start */
	uint64_t bytes;
	uint8_t *samples;
	uint8_t *frames;
	uint8_t *mem;
	uint8_t *disjoint;
};

struct bench {
	struct mailbox *box;
	struct params params;	/* of fault_vmm.h: sizes, order and shares mean the same here */
	struct area area;
};

/* Say why on the console, or through the mailbox once there is one, and end. */
void __attribute__((noreturn, format(printf, 1, 2))) fail(const char *format, ...);

/* Write a byte to MAILBOX_PORT: this vCPU leaves the guest. */
void ring(void);

/* Of the kernel's, by a file; none where the kernel has no such thing. */
void write_setting(const char *path, const char *value);

/* pagemap.c: the gpa of each 4 KiB page at @start, by /proc/self/pagemap. */
void pagemap_read(const void *start, uint64_t *gpas, uint64_t pages);

/* reserve.c */
void reserve(struct bench *bench);

/* rounds.c: the threads, one a vCPU, and one round of theirs. */
void faulting_prepare(struct bench *bench);
void faulting_run(struct bench *bench);

/* symptoms.c: what a guest feels besides its faults. */
uint64_t steal_ns(void);
void jitter_measure(struct mailbox *box);

/* timed.S: access @count pages in the order that @order says, and fill in @samples. */
void timed_write(const uint32_t *order, struct rec_fault *samples, uint64_t count, void *mem, uint64_t stride_bytes);
void timed_read(const uint32_t *order, struct rec_fault *samples, uint64_t count, void *mem, uint64_t stride_bytes);

#endif
