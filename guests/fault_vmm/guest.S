/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The flat guest: 64-bit, ring 0, no interrupts. It causes no exception; trap_stubs.S tells of one from beneath.
 * Position-independent; copied to SYS_GPA. Three entries; each ends with OUT, and is entered anew a round.
 *
 *	rsi	order: u32 page indices		rdi	samples: struct rec_fault
 *	rcx	number of accesses		rbx	gva of page 0
 *	r12	distance of two pages		rdx	unused on entry
 *
 * How a sample is taken. RDTSC is not ordered by itself, so each one stands between LFENCEs: none of the guest's
 * earlier work is inside the interval and no later work starts before its end. The access in the middle faults in the
 * second-level tables before it can retire (a store as well: its translation is done before retirement, though its
 * data may still sit in the store buffer), so the exit, KVM's work, every retry and the re-entry lie inside. The
 * sample itself is stored after the second RDTSC, to memory that guest_warm has mapped already.
 */
#include "recording.h"

	/* Code, though this program never runs it itself: in a data section .balign would pad with zeros, not NOPs. */
	.text
	.balign 4096
	.globl guest_start, guest_end, guest_warm, guest_write, guest_read
guest_start:

	/* Touch rcx pages from rbx with a write that changes nothing, so that their SPTEs are there. */
guest_warm:
	lock orq $0, (%rbx)
	add	$4096, %rbx
	dec	%rcx
	jnz	guest_warm
	out	%al, $0x10

	.macro	timed_loop access:vararg
	.balign 64
1:	mov	(%rsi), %r9d		/* page index */
	mov	%r9, %r10
	imul	%r12, %r10
	add	%rbx, %r10		/* gva */
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
	cmp	%r14, %rax		/* r14: the largest latency that a record holds */
	cmova	%r14, %rax
	shl	$REC_LATENCY_BITS, %r9
	or	%r9, %rax
	mov	%r11, (%rdi)
	mov	%rax, 8(%rdi)
	add	$16, %rdi
	add	$4, %rsi
	dec	%rcx
	jnz	1b
	out	%al, $0x10
	.endm

guest_write:
	timed_loop mov %r11, (%r10)

guest_read:
	timed_loop mov (%r10), %r13

guest_end:
	.section .note.GNU-stack, "", @progbits
