/* SPDX-License-Identifier: GPL-2.0 */
/* What the files of the lab's agent share. */
#ifndef ORCH_LAB_AGENT_H
#define ORCH_LAB_AGENT_H

#include <stddef.h>

#define PATH_BYTES	4096

/* Whole text of a small file, NUL-terminated; returns its length, 0 if there is none. */
size_t read_text(const char *path, char *text, size_t room);

/* Replace a small file: after a crash it holds the old text or the new one. */
void write_whole(const char *path, const char *text);

/* The session's cgroup may be ended with the connection, or be narrower than the machine; root may leave it. */
void leave_cgroup(void);

/* Nothing to read, and output to a file. */
void detach_streams(const char *output);

/* Make a folder the root of this process and its children; the working directory becomes /trial in it. */
void enter_root(const char *root);

int run(int argc, char **argv);
int stop(const char *dir);

#endif
