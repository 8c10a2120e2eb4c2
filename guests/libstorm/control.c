// SPDX-License-Identifier: GPL-2.0
/* The library's beginning: read the control file, fork the other process, start the session's thread. */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>

#include "common.h"
#include "cpus.h"
#include "libstorm.h"

#define MAX_CONTROL_BYTES	8192

static struct settings settings;

static void take_line(char *line, uint32_t nr, const char *path)
{
	char *blank = strchr(line, ' ');

	errno = 0;
	die_if(!blank, "%s, line %u: a name, a blank and a value are wanted", path, nr);
	*blank = 0;
	die_if(!settings_take(&settings, line, blank + 1), "%s, line %u: nothing is called '%s'", path, nr, line);
}

/* The text stays: settings point into it. */
static void read_control(const char *path)
{
	static char text[MAX_CONTROL_BYTES];
	FILE *file = fopen(path, "re");
	char *line = text, *end;
	uint32_t nr = 0;
	size_t bytes;

	die_if(!file, "open %s, the file that " SETTINGS_ENV " names", path);
	bytes = fread(text, 1, sizeof(text), file);
	fclose(file);
	errno = 0;
	die_if(bytes == sizeof(text), "%s is larger than %d bytes", path, MAX_CONTROL_BYTES);
	for (; (end = strchr(line, '\n')); line = end + 1) {
		*end = 0;
		if (*line)
			take_line(line, ++nr, path);
	}
	die_if(*line, "%s does not end with a newline", path);
	settings_check(&settings);
}

/*
 * Before the VMM's main(), so that the other process has none of the guest's memory. All signals are the VMM's: its
 * handlers must not run in a thread of which it knows nothing.
 */
static void __attribute__((constructor)) begin(void)
{
	const char *path = getenv(SETTINGS_ENV);
	pthread_t thread;
	sigset_t all, old;

	errno = 0;
	die_if(!path, "libstorm.so is preloaded, but " SETTINGS_ENV " does not name its control file");
	preload_begin();
	cpus_init();
	settings = settings_defaults;
	read_control(path);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	if (settings.params.storm.placement == STORM_OTHER_PROCESS)
		other_fork(&settings.params.storm);
	die_if(pthread_create(&thread, NULL, session_run, &settings), "pthread_create of the session");
	pthread_detach(thread);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	errno = 0;
}
