/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The CPUs that a program may use, counted from 0: those of its affinity when it started, in ascending order. With all
 * CPUs of a machine they are its own numbers; on a lab machine they are those that its description sets aside.
 */
#ifndef ORCH_CPUS_H
#define ORCH_CPUS_H

/* To be called once, before anything is pinned. */
void cpus_init(void);

/* How many there are. */
int cpus_count(void);

/* Let this thread run on the CPU with this number only; -1: on any of them. */
void cpus_pin(int number, const char *who);

#endif
