/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What a trial in a Linux guest is told: as options by vmm_run, which checks them and writes them down, a line each,
 * for libstorm.so. Names and meanings are those of fault_vmm's options where it has the same.
 */
#ifndef ORCH_SETTINGS_H
#define ORCH_SETTINGS_H

#include <stdbool.h>

#include "fault_vmm.h"
#include "mailbox.h"

#define MAX_STORM_THREADS	256
#define SETTINGS_ENV		"ORCH_STORM"	/* names the control file */
#define SETTINGS_CONSOLE	"/run/guest.console"
/* What libstorm.so says on stderr before it ends the VMM: the only end that is a success. */
#define SETTINGS_RECORDED	"libstorm: the recording is complete"

struct settings {
	struct params params;		/* guest_huge and backing say nothing here: --memory and --faults do */
	enum mailbox_faults faults;
	enum mailbox_memory memory;
	uint32_t jitter_wakeups;
	uint32_t jitter_period_us;
	uint32_t boot_seconds;		/* that the guest has, until fault_bench says where its mailbox is */
	const char *console;		/* the file into which the VMM writes what the guest says on its console */
};

extern const struct settings settings_defaults;

/*
 * Set one of them; @value is kept, not copied. False if there is none of that @name. Ends the program if it is wrong.
 */
bool settings_take(struct settings *settings, const char *name, const char *value);

/* What must hold between several of them. Ends the program if it does not. */
void settings_check(struct settings *settings);

/* Bytes of all ranges that the storm wants in guest memory, at @placement. */
uint64_t settings_storm_bytes(const struct settings *settings, enum storm_placement placement);

#endif
