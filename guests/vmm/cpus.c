// SPDX-License-Identifier: GPL-2.0
#define _GNU_SOURCE
#include <sched.h>

#include "common.h"
#include "cpus.h"

static cpu_set_t allowed;

void cpus_init(void)
{
	die_if(sched_getaffinity(0, sizeof(allowed), &allowed), "sched_getaffinity");
}

int cpus_count(void)
{
	return CPU_COUNT(&allowed);
}

void cpus_pin(int number, const char *who)
{
	cpu_set_t set;
	int cpu, left = number;

	CPU_ZERO(&set);
	for (cpu = 0; number >= 0 && cpu < CPU_SETSIZE; cpu++) {
		if (CPU_ISSET(cpu, &allowed) && !left--) {
			CPU_SET(cpu, &set);
			break;
		}
	}
	errno = 0;
	die_if(cpu == CPU_SETSIZE, "%s: there is no CPU number %d", who, number);
	die_if(sched_setaffinity(0, sizeof(set), number < 0 ? &allowed : &set), "sched_setaffinity of %s", who);
}
