/* SPDX-License-Identifier: GPL-2.0 */
/* Exceptions of the flat guest: constants that trap_stubs.S shares with trap.c. */
#ifndef ORCH_TRAP_H
#define ORCH_TRAP_H

#define TRAP_PORT	0x11
#define TRAP_VECTORS	32
#define TRAP_STUB_BYTES	16
#define TRAP_HAVE_ERROR	0x27d00		/* vectors 8, 10 to 14, 17 */

#endif
