// SPDX-License-Identifier: GPL-2.0
/* Files below /sys/kernel/tracing: short texts, each written or read in one go. */
#include <fcntl.h>
#include <unistd.h>

#include "common.h"
#include "tracer.h"

static int open_in(const char *name, int flags)
{
	char path[256];
	int fd;

	snprintf(path, sizeof(path), TRACEFS "%s", name);
	fd = open(path, flags | O_CLOEXEC);
	die_if(fd < 0, "open %s: this kernel lacks what tracing needs (CONFIG_KPROBE_EVENTS)", path);
	return fd;
}

void tracefs_write(const char *name, const char *text)
{
	/* O_APPEND: kprobe_events takes the other modes for "forget what there is". */
	int fd = open_in(name, O_WRONLY | O_APPEND);
	ssize_t bytes = strlen(text);

	die_if(write(fd, text, bytes) != bytes, "write of '%s' to " TRACEFS "%s", text, name);
	close(fd);
}

void tracefs_read(const char *name, char *text, size_t bytes)
{
	int fd = open_in(name, O_RDONLY);
	size_t used = 0;
	ssize_t got;

	while ((got = read(fd, text + used, bytes - 1 - used)) > 0)
		used += got;
	die_if(got < 0 || used == bytes - 1, "read of " TRACEFS "%s", name);
	text[used] = 0;
	close(fd);
}

uint32_t tracefs_number(const char *name)
{
	char text[32];

	tracefs_read(name, text, sizeof(text));
	return strtoul(text, NULL, 10);
}

/*
 * A line of a format file: "\tfield:unsigned long fault_address;\toffset:8;\tsize:8;\tsigned:0;". The name is what
 * stands before the first semicolon, after the last blank.
 */
struct field tracefs_field(const char *format, const char *event, const char *name)
{
	size_t length = strlen(name);
	const char *at = format;
	struct field field;
	int is_signed;

	while ((at = strstr(at, name))) {
		if (at > format && at[-1] == ' ' && at[length] == ';' &&
		    sscanf(at + length, ";\toffset:%u;\tsize:%u;\tsigned:%d;", &field.offset, &field.bytes,
			   &is_signed) == 3) {
			field.is_signed = is_signed;
			return field;
		}
		at += length;
	}
	errno = 0;
	die("the event %s of this kernel has no field %s", event, name);
}
