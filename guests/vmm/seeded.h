/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What a trial's seed decides, and how its pages are dealt out: as fault_vmm does it for the flat guest (layout.c,
 * main.c), which keeps its own for the same reason as in choices.h. A test compares the two.
 */
#ifndef ORCH_SEEDED_H
#define ORCH_SEEDED_H

#include "fault_vmm.h"

/* Accesses of one vCPU in one round: the range is dealt out in contiguous shares. */
static inline uint64_t share_of(const struct params *params, uint32_t vcpu)
{
	uint64_t pages = params->mem_bytes / params->stride_bytes;

	return pages / params->vcpus + (vcpu < pages % params->vcpus);
}

static inline uint64_t next_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

/* Sequential, or a Fisher-Yates shuffle of the share by the seed. */
static inline void fill_order(const struct params *params, struct vcpu *vcpu, uint64_t first)
{
	uint64_t state = (params->seed + 1) * 0x9e3779b97f4a7c15ull + vcpu->index;
	uint64_t i, j;

	for (i = 0; i < vcpu->nr_pages; i++)
		vcpu->order[i] = first + i;
	for (i = vcpu->nr_pages; params->random && i > 1; i--) {
		uint32_t kept = vcpu->order[i - 1];

		j = next_random(&state) % i;
		vcpu->order[i - 1] = vcpu->order[j];
		vcpu->order[j] = kept;
	}
}

/* The seed decides what a repeat may differ in: when the vCPUs start, in up to two scheduler ticks at HZ=250. */
static inline uint32_t start_delay_us(uint64_t seed)
{
	return (seed * 0x9e3779b97f4a7c15ull >> 32) % 8000;
}

#endif
