// SPDX-License-Identifier: GPL-2.0
/* A toy driver: the tree that the mails beside it were written for. */
#include <linux/kernel.h>

#define TOY_CHECK(toy, level)						\
do {									\
	if ((toy)->level != (level))					\
		pr_err("toy: level %d\n", (toy)->level);		\
} while (0)

struct toy {
	int level;
	unsigned long flags;
};

static int toy_read(struct toy *toy, unsigned long address, void *data,
		    size_t bytes)
{
	int r;

	r = toy_lock(toy);
	if (r)
		return r;

	switch (toy->level) {
	case 0:
		r = toy_copy(toy, data, bytes);
		break;
	default:
		r = -EINVAL;
	}

	toy_unlock(toy);
	return r;
}

static int toy_write(struct toy *toy, unsigned long address,
		     const void *data, size_t bytes)
{
	int count = 0;
	int r;

	/*
	 * The lock is taken for reading only: writers are
	 * serialized by the caller.
	 */
	r = toy_lock(toy);
	if (r)
		return r;

	while (bytes) {
		--count;
		bytes -= toy_put(toy, address, data, min(bytes, toy->max));
	}

	toy_unlock(toy);
	return count;
}
