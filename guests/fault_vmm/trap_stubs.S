/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Where the guest's exceptions lead: a stub a vector, TRAP_STUB_BYTES apart, which gathers what the CPU pushed and
 * tells the VMM by an OUT to TRAP_PORT. The guest itself never causes one: each is the doing of something beneath it.
 *
 *	rax	vector		rbx	error code, 0 where the vector has none
 *	rcx	rip		rdx	cr2
 *
 * rsi, rdi and r8 to r15 are the interrupted code's; rcx, its count of accesses, is kept in rbp.
 * Position-independent; copied into the page at vm->trap_gpa.
 */
#include "trap.h"

	.text
	.balign 64
	.globl trap_start, trap_end
trap_start:
	.set	vector, 0
	.rept	TRAP_VECTORS
	.balign	TRAP_STUB_BYTES
	/* #DF, #TS, #NP, #SS, #GP, #PF and #AC push an error code (AMD APM vol. 2, 8.2). */
	.if	!(TRAP_HAVE_ERROR >> vector & 1)
	push	$0
	.endif
	mov	$vector, %eax
	jmp	trap_tell
	.set	vector, vector + 1
	.endr
trap_tell:
	mov	%rcx, %rbp
	pop	%rbx
	pop	%rcx
	mov	%cr2, %rdx
	out	%al, $TRAP_PORT
trap_end:
	.section .note.GNU-stack, "", @progbits
