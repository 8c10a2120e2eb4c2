// SPDX-License-Identifier: GPL-2.0
/*
 * lab_agent - what the tool needs on a lab machine, in one static program that is copied there.
 *
 *	lab_agent run OPTIONS -- PROGRAM ARGUMENT...	start a program that outlives the connection (run.c)
 *	lab_agent stop DIR				end what "run" started there, if it still runs
 *	lab_agent swap-token FILE EXPECTED TEXT		replace a lease, if it is still the one that was read
 *	lab_agent set FILE VALUE			write a setting of /sys or /proc
 *	lab_agent later COMMAND ARGUMENT...		run a command in a second
 *	lab_agent swapon|swapoff DEVICE
 *
 * Every mode says what is wrong on stderr and leaves with 1.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdbool.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <unistd.h>

#include "common.h"
#include "lab_agent.h"

#define LEASE_BYTES	4096
#define NO_TOKEN	"-"
#define EXIT_HELD	3	/* the lease is another one than expected; it is on stdout */

size_t read_text(const char *path, char *text, size_t room)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t bytes = 0;

	text[0] = 0;
	if (fd < 0)
		return 0;
	bytes = read(fd, text, room - 1);
	close(fd);
	text[bytes > 0 ? bytes : 0] = 0;
	return bytes > 0 ? bytes : 0;
}

void write_whole(const char *path, const char *text)
{
	char temporary[PATH_BYTES];
	size_t length = strlen(text);
	int fd;

	die_if(snprintf(temporary, sizeof(temporary), "%s.new", path) >= (int)sizeof(temporary), "%s: too long", path);
	fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	die_if(fd < 0, "open %s", temporary);
	die_if(write(fd, text, length) != (ssize_t)length || fsync(fd), "write %s", temporary);
	close(fd);
	die_if(rename(temporary, path), "rename %s", path);
}

static void token_of(const char *text, char *token)
{
	if (sscanf(text, "%255s", token) != 1)
		strcpy(token, NO_TOKEN);
}

/* A lease appears whole and only where there is none: link() never replaces. */
static bool place(const char *path, const char *text)
{
	char temporary[PATH_BYTES];
	bool placed;

	snprintf(temporary, sizeof(temporary), "%s.%d", path, getpid());
	write_whole(temporary, text);
	placed = !link(temporary, path);
	die_if(!placed && errno != EEXIST, "link %s", path);
	errno = 0;
	unlink(temporary);
	return placed;
}

/*
 * Compare and swap: two tools that both found a dead lease cannot both take its place. The first word of a lease is
 * its token; a missing file has the token "-". By rename() and link() only, since a kernel under test may lack flock():
 * whoever moves the old lease away may place the new one. For a moment there is none; if somebody else takes it then,
 * that one has it.
 */
static int swap_token(const char *path, const char *expected, const char *text)
{
	char now[LEASE_BYTES], old[PATH_BYTES], token[256];

	read_text(path, now, sizeof(now));
	token_of(now, token);
	if (strcmp(token, expected))
		goto held;
	errno = 0;
	if (strcmp(expected, NO_TOKEN)) {
		snprintf(old, sizeof(old), "%s.%d.old", path, getpid());
		if (rename(path, old))
			goto held;
		read_text(old, now, sizeof(now));
		token_of(now, token);
		if (strcmp(token, expected)) {
			(void)!link(old, path);
			unlink(old);
			goto held;
		}
		unlink(old);
	}
	if (!*text || place(path, text))
		return 0;
held:
	read_text(path, now, sizeof(now));
	printf("%s", now);
	return EXIT_HELD;
}

/* Run a command when the connection that asked for it is gone: what it does would break that in mid-answer. */
static int later(char **words)
{
	struct timespec pause = { .tv_sec = 1 };
	pid_t pid = fork();

	die_if(pid < 0, "fork");
	if (pid)
		return 0;
	die_if(setsid() < 0, "setsid");
	detach_streams("/dev/null");
	leave_cgroup();
	nanosleep(&pause, NULL);
	execvp(words[0], words);
	_exit(127);
}

static int set(const char *path, const char *value)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	size_t length = strlen(value);

	die_if(fd < 0, "open %s", path);
	die_if(write(fd, value, length) != (ssize_t)length, "write of %s to %s", value, path);
	return 0;
}

int main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "";

	umask(022);
	if (!strcmp(mode, "run"))
		return run(argc - 1, argv + 1);
	if (!strcmp(mode, "stop") && argc == 3)
		return stop(argv[2]);
	if (!strcmp(mode, "swap-token") && argc == 5)
		return swap_token(argv[2], argv[3], argv[4]);
	if (!strcmp(mode, "set") && argc == 4)
		return set(argv[2], argv[3]);
	if (!strcmp(mode, "later") && argc > 2)
		return later(argv + 2);
	if (!strcmp(mode, "swapon") && argc == 3) {
		die_if(swapon(argv[2], 0), "swapon %s", argv[2]);
		return 0;
	}
	if (!strcmp(mode, "swapoff") && argc == 3) {
		die_if(swapoff(argv[2]), "swapoff %s", argv[2]);
		return 0;
	}
	fprintf(stderr, "lab_agent: no such mode, or other arguments: see guests/lab_agent/lab_agent.c\n");
	return 1;
}
