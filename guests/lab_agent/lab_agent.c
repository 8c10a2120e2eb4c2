// SPDX-License-Identifier: GPL-2.0
/*
 * lab_agent - what the tool needs on a lab machine, in one static program that is copied there.
 *
 *	lab_agent run OPTIONS -- PROGRAM ARGUMENT...	start a program that outlives the connection (run.c)
 *	lab_agent stop DIR				end what "run" started there, if it still runs
 *	lab_agent swap-token FILE EXPECTED TEXT		replace a lease, if it is still the one that was read
 *	lab_agent set FILE VALUE			write a setting of /sys or /proc
 *	lab_agent swapon|swapoff DEVICE
 *
 * Every mode says what is wrong on stderr and leaves with 1.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <unistd.h>

#include "common.h"
#include "lab_agent.h"

#define LEASE_BYTES	4096
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

/*
 * Compare and swap: two tools that both found a dead lease cannot both take its place. The first word of a lease is
 * its token; a missing file has the token "-". The lock is given back by our end, however we end.
 */
static int swap_token(const char *path, const char *expected, const char *text)
{
	char now[LEASE_BYTES], lock[PATH_BYTES], token[256] = "-";
	int fd;

	snprintf(lock, sizeof(lock), "%s.lock", path);
	fd = open(lock, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
	die_if(fd < 0 || flock(fd, LOCK_EX), "lock %s", lock);
	if (read_text(path, now, sizeof(now)))
		sscanf(now, "%255s", token);
	if (strcmp(token, expected)) {
		printf("%s", now);
		return EXIT_HELD;
	}
	errno = 0;
	if (*text)
		write_whole(path, text);
	else
		die_if(unlink(path), "unlink %s", path);
	return 0;
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
