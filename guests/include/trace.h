/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The trace: what guests/tracer leaves of one boot that ran with the host kernel's tracing switched on. This header is
 * the only definition of the format; the Python reader (orchestrator/hosttrace.py) parses it in its tests and compares
 * every offset, size and constant.
 *
 * Everything is little-endian. Layout, in order:
 *
 *	struct trace_header			(TRACE_HEADER_BYTES)
 *	nr_events x struct trace_event		(CPU by CPU, in the order in which they happened on it)
 *	nr_cpus x struct trace_cpu		(how many events each gave, and how many it lost)
 *	struct trace_trailer			(counts, and a CRC-32 of every byte before it)
 *
 * A file without its trailer is an incomplete trial. A complete file with lost events is an incomplete *trace*: it says
 * so itself, in struct trace_cpu and in nr_missed. A full buffer keeps the old and drops the new, so what is there is
 * whole up to the last event of a CPU that lost some; when a probe missed something, nobody knows.
 *
 * Version 1 had no nr_missed: zero there, and it is not known whether its probes missed anything. Else it was the same.
 */
#ifndef ORCH_TRACE_H
#define ORCH_TRACE_H

#include <stdint.h>

#define TRACE_MAGIC		0x314352544843524full	/* "ORCHTRC1" read as bytes */
#define TRACE_TRAILER_MAGIC	0x31444e4543525454ull	/* "TTRCEND1" read as bytes */
#define TRACE_VERSION		2
#define TRACE_HEADER_BYTES	64

/*
 * trace_event.kind, and what a and b are.
 *
 *	PAGE_FAULT	kvm:kvm_page_fault, one for each attempt: a = faulting address (under TDP a gpa, under shadow
 *			paging a gva), b = error code
 *	INSTALL		kvmmmu:kvm_mmu_spte_requested: this attempt goes on to map the page (__direct_map(), FNAME(fetch)());
 *			one that is thrown away does not come that far. a = gfn, b = level
 *	EXIT		kvm:kvm_exit: a = exit reason, b = instruction set (1 VMX, 2 SVM: KVM_ISA_*)
 *	SWITCH		sched:sched_switch: tid leaves the CPU to a; b = the state that it leaves in (0 or 0x100: it
 *			could have gone on, else it sleeps: __trace_sched_switch_state())
 *	INVALIDATE	kvm_mmu_notifier_invalidate_range_start() is entered for the hvas [a, b)
 *	INVALIDATED	kvm_mmu_notifier_invalidate_range_end() has returned: the range of tid's latest INVALIDATE that
 *			is still open
 */
#define TRACE_PAGE_FAULT	1
#define TRACE_EXIT		2
#define TRACE_SWITCH		3
#define TRACE_INVALIDATE	4
#define TRACE_INVALIDATED	5
#define TRACE_INSTALL		6

struct trace_header {
	uint64_t magic;
	uint32_t version;
	uint32_t header_bytes;		/* TRACE_HEADER_BYTES */
	uint64_t buffer_bytes;		/* of each CPU's ring buffer */
	uint64_t start_tsc;		/* host TSC when tracing was switched on */
	uint64_t end_tsc;		/* and off: the program began after the one and was over before the other */
	uint64_t nr_missed;		/* INVALIDATE and INVALIDATED that their probes did not see: kprobe_profile */
	uint8_t reserved[16];		/* zero */
};

struct trace_event {
	uint64_t tsc;			/* host TSC: trace_clock x86-tsc */
	uint64_t a;
	uint64_t b;
	uint32_t tid;			/* the thread that was running */
	uint16_t cpu;
	uint16_t kind;
};

/* Read after the end from per_cpu/cpuN/stats: "overrun" and "commit overrun" and "dropped events" together are lost. */
struct trace_cpu {
	uint32_t cpu;
	uint32_t reserved;		/* zero */
	uint64_t nr_events;
	uint64_t nr_lost;
};

struct trace_trailer {
	uint64_t magic;
	uint64_t nr_events;
	uint32_t nr_cpus;
	uint32_t crc32;			/* zlib's CRC-32 of every byte before this field */
};

#endif
