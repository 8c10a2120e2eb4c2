/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The mailbox: one page of guest memory through which libstorm.so, in the VMM, and fault_bench, in the guest, talk.
 *
 * fault_bench locks a page, fills in the first fields and says on the guest's console where it is (MAILBOX_LINE);
 * libstorm.so finds it by the VMM's memslots and believes it if the nonce is there too. From then on the host asks
 * and the guest answers, one command at a time:
 *
 *	host: fill in the command's fields, then asked = n
 *	guest: sees it (it looks every MAILBOX_POLL_US), does it, fills in its results, then answered = n, and writes a
 *	byte to MAILBOX_PORT, so that the vCPU leaves the guest and nobody has to poll in the host
 *
 * A command that fails is answered by failed = 1 and a reason. All of it is little-endian, both sides are x86-64.
 */
#ifndef ORCH_MAILBOX_H
#define ORCH_MAILBOX_H

#include <stdatomic.h>
#include <stdint.h>

#define MAILBOX_MAGIC	0x31584f424843524full	/* "ORCHBOX1" read as bytes */
#define MAILBOX_VERSION	2
#define MAILBOX_LINE	"orch-bench: mailbox gpa=0x%llx nonce=0x%llx"
#define MAILBOX_ERROR	"orch-bench: error: "

/* Chipsets use it for codes of the power-on self-test; a write changes nothing, and KVM leaves it to the VMM. */
#define MAILBOX_PORT	0x80
#define MAILBOX_POLL_US	1000

enum mailbox_command {
	MAILBOX_RESERVE = 1,	/* reserve the memory that the trial needs, make the threads, tell the areas */
	MAILBOX_WARM,		/* a round that does not count: see session.c */
	MAILBOX_ROUND,		/* discard if need be, fault every page in, fill in samples */
	MAILBOX_JITTER,		/* measure how late a thread wakes */
};

/* Whose mapping of the page is missing when the guest touches it. */
enum mailbox_faults {
	FAULTS_HOST,		/* the guest has it mapped, the host has taken its page away: a fault of the host's alone */
	FAULTS_GUEST,		/* the guest has dropped its mapping, the host still backs the memory */
	FAULTS_BOTH,		/* both, one after the other in one access */
};

/* How the guest maps the memory that it touches. */
enum mailbox_memory {
	MEMORY_ANONYMOUS,	/* by 4 KiB pages */
	MEMORY_THP,		/* by transparent huge pages of 2 MiB */
	MEMORY_FILE,		/* a file of tmpfs, mapped shared */
};

/* host -> guest, with MAILBOX_RESERVE */
struct mailbox_trial {
	uint64_t seed;
	uint64_t mem_bytes;
	uint64_t adjacent_bytes;	/* to reserve right behind the faulting range; 0: none */
	uint64_t disjoint_bytes;	/* to reserve more than 2 MiB away from it; 0: none */
	uint32_t stride_bytes;
	uint32_t rounds;
	uint32_t vcpus;
	uint32_t write;
	uint32_t random;
	uint32_t faults;		/* enum mailbox_faults */
	uint32_t memory;		/* enum mailbox_memory */
	uint32_t jitter_wakeups;
	uint32_t jitter_period_us;
	uint32_t reserved;
};

/*
 * guest -> host, as answer to MAILBOX_RESERVE: guest-physically contiguous memory that nothing else in the guest
 * uses, at *_gpa. The samples are those of vCPU 0, all rounds, then those of vCPU 1 and so on.
 */
struct mailbox_areas {
	uint64_t start_gpa;		/* of everything that follows */
	uint64_t bytes;
	uint64_t samples_gpa;		/* struct rec_fault */
	uint64_t frames_gpa;		/* u64 gpa of each 4 KiB page of the faulting range, as it is after a command */
	uint64_t mem_gpa;
	uint64_t disjoint_gpa;
	uint64_t free_bytes;		/* of the guest's memory, when all this was reserved */
};

/* guest -> host, with each answer: sums over all rounds so far. */
struct mailbox_results {
	uint64_t minflt;		/* the guest's own minor faults between the first and last access of the rounds */
	uint64_t steal_ns;		/* from the first round's start to the last one's end, by /proc/stat */
	uint64_t jitter_p50_ns;		/* lateness of a wakeup */
	uint64_t jitter_p99_ns;
	uint64_t jitter_max_ns;
	uint64_t jitter_mean_ns;
	uint64_t jitter_wakeups;
	uint64_t jitter_missed;		/* periods that passed without a wakeup, since the one before came so late */
};

struct mailbox {
	uint64_t magic;
	uint32_t version;
	uint32_t bytes;			/* sizeof(struct mailbox) */
	uint64_t nonce;
	_Atomic uint32_t asked;
	_Atomic uint32_t answered;
	_Atomic uint32_t failed;
	uint32_t command;		/* enum mailbox_command */
	uint32_t round;
	uint32_t reserved;
	char reason[256];
	struct mailbox_trial trial;
	struct mailbox_areas areas;
	struct mailbox_results results;
};

#endif
