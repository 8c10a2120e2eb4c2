/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The guest's only act: read a word at rbx into rax and leave. It never writes, so nothing that it does can damage a
 * page that is no longer its own. Copied behind fault_vmm's code, in the page that guest_warm has mapped.
 */
	.text
	.balign 64
	.globl peek_start, peek_end
peek_start:
	mov	(%rbx), %rax
	out	%al, $0x10
peek_end:
	.section .note.GNU-stack, "", @progbits
