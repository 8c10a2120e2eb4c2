/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What one boot of stale_check leaves behind. This header is the only definition of the format; the Python reader
 * (orchestrator/stale.py) parses it in its tests and compares every offset, size and constant.
 *
 * Everything is little-endian. Layout, in order:
 *
 *	struct stale_header			(STALE_HEADER_BYTES)
 *	nr_rounds x struct stale_round		(in the order in which they ran)
 *	struct stale_trailer			(the count again, and a CRC-32 of every byte before it)
 *
 * A file without its trailer is an incomplete trial, never a short result.
 */
#ifndef ORCH_STALE_H
#define ORCH_STALE_H

#include <stdint.h>

#define STALE_MAGIC		0x314c54534843524full	/* "ORCHSTL1" read as bytes */
#define STALE_TRAILER_MAGIC	0x31444e45454c5453ull	/* "STLEEND1" read as bytes */
#define STALE_VERSION		1
#define STALE_HEADER_BYTES	256
#define STALE_MAX_CHECKED	8

/* stale_header.flags */
#define STALE_FLAG_TDP		0x1	/* NPT or EPT on, else shadow paging */
#define STALE_FLAG_HUGE		0x2	/* the guest maps its memory by 2 MiB pages, else by 4 KiB ones */

/* stale_round.kind: where the fault goes, seen from the range [A, B) that is being invalidated. */
#define STALE_CASE_INSIDE	1	/* page B-1: every kernel must retry; calibrates the cases of the long range */
#define STALE_CASE_INSIDE_FIRST	2	/* page A */
#define STALE_CASE_END_EDGE	3	/* page B: the prefetch reaches back into the range */
#define STALE_CASE_START_EDGE	4	/* page A-1: the prefetch reaches forward into the range */
#define STALE_CASE_FAR		5	/* in another 2 MiB of the memslot: a range-aware kernel lets it pass */
#define STALE_CASE_TWO		6	/* page B-1, and a second invalidation elsewhere is in progress as well */
#define STALE_CASE_COMPLETED	7	/* page B-1, and a second one began and ended meanwhile */
#define STALE_CASE_SHORT_INSIDE	8	/* a range of two pages, its last one; calibrates the two cases below */
#define STALE_CASE_SHORT_END	9	/* the page behind a range of two pages */
#define STALE_CASE_SHORT_START	10	/* the page before it, and the page behind it is mapped: that ends the prefetch */
#define STALE_CASE_STRADDLE	11	/* a whole invalidation of two pages falls into a fault on the second of them */
#define STALE_CASE_TWO_SECOND	12	/* as TWO, the fault goes to the last page of the second invalidation's range */

/* stale_round.op: how the range is invalidated */
#define STALE_OP_MADVISE	1	/* MADV_DONTNEED */
#define STALE_OP_MUNMAP		2	/* munmap, then mmap at the same address */
#define STALE_OP_MREMAP		3	/* moved away */
#define STALE_OP_MPROTECT	4	/* to PROT_NONE */

/* stale_round.flags: how the guest's access ended while the invalidation was to be in progress */
#define STALE_PASSED		0x1	/* it read something (or nothing, see STALE_HOLE) and went on */
#define STALE_BLOCKED		0x2	/* the kernel retried until the kick, burning the CPU: an invalidation stopped it */
#define STALE_LATE		0x4	/* the kick ended it, but it had slept (for the mmap lock): it says nothing */
#define STALE_FAULT_HOLE	0x8	/* KVM_RUN failed with EFAULT: no mapping there any more */

/* stale_round.found: what the guest read there after the invalidating system call had returned */
#define STALE_HOLE		0xffffffffffffffffull	/* nothing: KVM_RUN failed with EFAULT */

/*
 * What the host writes into each page before a round: never 0, and it says where it comes from:
 * STALE_TAG | round << 24 | page index in the memslot.
 */
#define STALE_TAG		0x5441470000000000ull
#define STALE_TAG_MASK		0xffffff0000000000ull
#define STALE_TAG_ROUND_SHIFT	24

struct stale_header {
	uint64_t magic;
	uint32_t version;
	uint32_t header_bytes;		/* STALE_HEADER_BYTES */
	uint32_t flags;
	uint32_t nr_rounds;
	uint64_t tsc_hz;
	uint64_t seed;
	uint32_t range_pages;		/* of the long range; the short one has two */
	uint32_t kick_us;		/* how long an access may be retried before it counts as blocked */
	uint64_t mem_gpa;
	uint64_t mem_hva;
	char arm[32];			/* NUL-padded, as are all strings */
	char cell[96];
	uint8_t reserved[64];		/* zero */
};

struct stale_round {
	uint32_t round;			/* index in its case */
	uint16_t kind;			/* STALE_CASE_* */
	uint16_t op;			/* STALE_OP_* */
	uint32_t flags;
	uint32_t fault_page;		/* page index in the memslot, as all pages here */
	uint32_t range_page;		/* A */
	uint32_t range_pages;		/* B - A */
	uint32_t checked_page;		/* the first of the pages read afterwards */
	uint32_t nr_checked;
	uint64_t wake_ns;		/* the vCPU was to run so long after the invalidator was told to start */
	uint64_t second_ns;		/* the same of the second invalidator; 0: there is none */
	uint64_t post_tsc;		/* the invalidator was told to start */
	uint64_t start_tsc;		/* its system call began */
	uint64_t end_tsc;		/* and had returned */
	uint64_t second_start_tsc;	/* the same of the second one; 0: there is none */
	uint64_t second_end_tsc;
	uint64_t enter_tsc;		/* the guest was entered */
	uint64_t leave_tsc;		/* and left: passed, blocked or into a hole */
	uint64_t exits;			/* VM exits meanwhile, without those for host interrupts; 0: not counted */
	uint64_t fixed;			/* faults that installed a mapping meanwhile (pf_fixed), if exits are counted */
	uint64_t found[STALE_MAX_CHECKED];	/* contents of the checked pages, by the guest's read; the rest zero */
};

struct stale_trailer {
	uint64_t magic;
	uint32_t nr_rounds;
	uint32_t crc32;			/* zlib's CRC-32 of every byte before this field */
};

#endif
