/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Values of command-line options: checked, or the program ends and says which option. In a header, so that they are
 * compiled with their callers: under icount the recordings depend on every instruction that runs before the rounds.
 */
#ifndef ORCH_OPTIONS_H
#define ORCH_OPTIONS_H

#include <stddef.h>

#include "common.h"

struct choice {
	const char *word;	/* NULL ends a list of them */
	int value;
};

static int choose(const struct choice *choices, const char *option, const char *word)
{
	for (; choices->word; choices++) {
		if (!strcmp(choices->word, word))
			return choices->value;
	}
	errno = 0;
	die("--%s does not know '%s'", option, word);
}

static uint64_t number(const char *option, const char *word, uint64_t least, uint64_t most)
{
	unsigned long long value;
	char *end;

	errno = 0;
	value = strtoull(word, &end, 10);
	die_if(errno || *end || end == word || value < least || value > most,
	       "--%s wants a number from %llu to %llu, not '%s'", option, (unsigned long long)least,
	       (unsigned long long)most, word);
	return value;
}

/*
 * For a field of a recording. Blanks are padding, and become NULs without a branch on any character: with it the names
 * of all arms have one length and take the same instructions, which are time under icount (program_words() in
 * orchestrator/trial.py).
 */
static void copy_name(char *to, size_t bytes, const char *option, const char *word)
{
	size_t length = strlen(word), i;

	errno = 0;
	die_if(length >= bytes, "--%s holds at most %zu bytes", option, bytes - 1);
	memset(to, 0, bytes);
	for (i = 0; i < length; i++)
		to[i] = word[i] & -(word[i] != ' ');
}

#endif
