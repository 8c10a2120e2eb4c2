/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The recording: what one trial leaves behind. This header is the only definition of the format; the Python reader
 * (orchestrator/recording.py) parses it in its tests and compares every offset, size and constant.
 *
 * Everything is little-endian. Layout, in order:
 *
 *	struct rec_header			(REC_HEADER_BYTES)
 *	nr_vcpus x {
 *		struct rec_vcpu			(one vCPU: its TSC offset and how many faults follow)
 *		nr_faults x struct rec_fault	(in the order in which they happened)
 *	}
 *	nr_windows x struct rec_window		(the storm's system calls, by thread, in order)
 *	nr_counters x struct rec_counter	(KVM's statistics before and after the measured rounds)
 *	struct rec_trailer			(counts again, and a CRC-32 of every byte before it)
 *
 * A file without its trailer is an incomplete trial, never a short data set.
 */
#ifndef ORCH_RECORDING_H
#define ORCH_RECORDING_H

#ifndef __ASSEMBLER__
#include <stdint.h>
#endif

#define REC_MAGIC		0x314345524843524full	/* "ORCHREC1" read as bytes */
#define REC_TRAILER_MAGIC	0x31444e454843524full	/* "ORCHEND1" read as bytes */
#define REC_VERSION		1
#define REC_HEADER_BYTES	256

#define REC_ARCH_X86_64		62			/* ELF's EM_X86_64 */

/* rec_fault.latency_page: latency in TSC cycles in the low 40 bits (five minutes at 3 GHz), page above it. */
#define REC_LATENCY_BITS	40
#define REC_PAGE_BITS		24

/* rec_window.op */
#define REC_OP_MADV_DONTNEED	1
#define REC_OP_MADV_FREE	2
#define REC_OP_MADV_PAGEOUT	3
#define REC_OP_MUNMAP		4
#define REC_OP_MPROTECT		5
#define REC_OP_MREMAP		6

/* rec_header.flags */
#define REC_FLAG_TDP		0x1	/* NPT or EPT on: the fault went through direct_page_fault() */
#define REC_FLAG_WRITE		0x2	/* the guest's accesses were writes */
#define REC_FLAG_RANDOM		0x4	/* page order shuffled by the seed, else sequential */
#define REC_FLAG_COUNTERS	0x8	/* KVM's statistics could be read */

#ifndef __ASSEMBLER__

struct rec_header {
	uint64_t magic;
	uint32_t version;
	uint32_t header_bytes;		/* REC_HEADER_BYTES */
	uint32_t arch;
	uint32_t flags;
	uint64_t tsc_hz;		/* of the host's TSC; the guest's runs at the same rate */
	uint64_t seed;
	uint64_t mem_bytes;		/* size of the faulting range */
	uint64_t mem_hva;		/* where it starts in the VMM's address space */
	uint64_t mem_gpa;
	uint32_t page_bytes;		/* distance of two faulting pages: one fault each */
	uint32_t rounds;
	uint32_t nr_vcpus;
	uint32_t nr_counters;
	uint64_t nr_windows;
	uint64_t start_tsc;		/* host TSC when the measured rounds began */
	uint64_t end_tsc;		/* and when they had ended */
	char arm[32];			/* NUL-padded, as are all strings */
	char cell[96];
	uint8_t reserved[24];		/* zero */
};

struct rec_vcpu {
	uint32_t vcpu;
	uint32_t reserved;		/* zero */
	int64_t tsc_offset;		/* guest TSC = host TSC + tsc_offset (KVM's own word for it) */
	uint64_t nr_faults;
};

struct rec_fault {
	uint64_t start_tsc;		/* guest TSC before the access */
	uint64_t latency_page;		/* latency in cycles | page index << REC_LATENCY_BITS */
};

struct rec_window {
	uint64_t start_tsc;		/* host TSC before the system call */
	uint64_t end_tsc;		/* and after it */
	uint64_t hva;
	uint64_t bytes;
	uint32_t op;
	uint32_t thread;
};

struct rec_counter {
	char name[24];
	uint64_t before;
	uint64_t after;
};

struct rec_trailer {
	uint64_t magic;
	uint64_t nr_faults;		/* of all vCPUs together */
	uint64_t nr_windows;
	uint32_t nr_counters;
	uint32_t crc32;			/* zlib's CRC-32 of every byte before this field */
};

#endif /* __ASSEMBLER__ */

#endif
