/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The timed loops, called from C: rdi order (u32 page indices), rsi samples (struct rec_fault), rdx how many, rcx page
 * 0, r8 distance of two pages. Instruction for instruction that of the flat guest, whose comment says how a sample is
 * taken and why each RDTSC stands between LFENCEs (fault_vmm/guest.S). Here a fault of the guest's own lies inside the
 * interval as well, and so does an interrupt that strikes between the two.
 */
#include "recording.h"

	.text
	.macro	timed_loop access:vararg
	push	%rbx
	push	%r12
	mov	%rdx, %rbx		/* RDTSC writes rdx */
	movabs	$(1 << REC_LATENCY_BITS) - 1, %r12	/* the largest latency that a record holds */
	.balign 64
1:	mov	(%rdi), %r9d		/* page index */
	mov	%r9, %r10
	imul	%r8, %r10
	add	%rcx, %r10		/* address */
	lfence
	rdtsc
	lfence
	shl	$32, %rdx
	or	%rdx, %rax
	mov	%rax, %r11		/* start */
	\access
	lfence
	rdtsc
	lfence
	shl	$32, %rdx
	or	%rdx, %rax
	sub	%r11, %rax		/* latency */
	cmp	%r12, %rax
	cmova	%r12, %rax
	shl	$REC_LATENCY_BITS, %r9
	or	%r9, %rax
	mov	%r11, (%rsi)
	mov	%rax, 8(%rsi)
	add	$16, %rsi
	add	$4, %rdi
	dec	%rbx
	jnz	1b
	pop	%r12
	pop	%rbx
	ret
	.endm

	.globl	timed_write, timed_read
timed_write:
	timed_loop mov %r11, (%r10)

timed_read:
	timed_loop mov (%r10), %r10

	.section .note.GNU-stack, "", @progbits
