// SPDX-License-Identifier: GPL-2.0
/*
 * A root of its own for one program: a VMM that was packed on another machine finds its libraries and firmware at the
 * paths that they have there, whatever this machine has at them, and this machine's own files stay as they are.
 *
 * In a mount namespace, so that everything is gone with the program's last process.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common.h"
#include "lab_agent.h"

/* The trial's own folder, as the program sees it, and its working directory. */
#define TRIAL	"/trial"

static void bind(const char *from, const char *root, const char *to)
{
	char path[PATH_BYTES];

	die_if(snprintf(path, sizeof(path), "%s%s", root, to) >= (int)sizeof(path), "%s: too long", root);
	die_if(mkdir(path, 0755) && errno != EEXIST, "mkdir %s", path);
	/* MS_REC: debugfs below /sys has KVM's counters. */
	die_if(mount(from, path, NULL, MS_BIND | MS_REC, NULL), "bind mount of %s at %s", from, path);
	errno = 0;
}

void enter_root(const char *root)
{
	char run[PATH_BYTES];

	die_if(unshare(CLONE_NEWNS), "unshare of the mounts");
	die_if(mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL), "private mounts");
	bind("/dev", root, "/dev");
	bind("/proc", root, "/proc");
	bind("/sys", root, "/sys");
	bind(".", root, TRIAL);
	/* For what vmm_run and libstorm.so tell each other; two trials' must not meet. */
	die_if(snprintf(run, sizeof(run), "%s/run", root) >= (int)sizeof(run), "%s: too long", root);
	die_if(mkdir(run, 0755) && errno != EEXIST, "mkdir %s", run);
	die_if(mount("run", run, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755"), "tmpfs at %s", run);
	die_if(chroot(root), "chroot to %s", root);
	die_if(chdir(TRIAL), "chdir to %s", TRIAL);
	errno = 0;
}
