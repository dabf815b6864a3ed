/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Guests without an operating system: from the PVH entry, in 32-bit mode without paging, to main() in 64-bit mode.
 * The first 4 GiB are mapped to themselves.
 */
#define CR4_PAE (1 << 5)
#define MSR_EFER 0xc0000080
#define EFER_LME (1 << 8)
#define CR0_PG (1 << 31)
#define CODE_SELECTOR 8
#define DATA_SELECTOR 16
/* A page of 1 GiB, present and writable. */
#define PAGE 0x83
#define TABLE 0x03

	/* XEN_ELFNOTE_PHYS32_ENTRY: where a PVH kernel starts */
	.section .note.Xen, "a", @note
	.align 4
	.long 4, 8, 18
	.asciz "Xen"
	.quad _start

	.section .text.start, "ax"
	.code32
	.global _start
_start:
	cli
	lgdt	gdt_pointer
	mov	%cr4, %eax
	or	$CR4_PAE, %eax
	mov	%eax, %cr4
	mov	$pml4, %eax
	mov	%eax, %cr3
	mov	$MSR_EFER, %ecx
	rdmsr
	or	$EFER_LME, %eax
	wrmsr
	mov	%cr0, %eax
	or	$CR0_PG, %eax
	mov	%eax, %cr0
	ljmp	$CODE_SELECTOR, $long_mode

	.code64
long_mode:
	mov	$DATA_SELECTOR, %eax
	mov	%eax, %ds
	mov	%eax, %es
	mov	%eax, %ss
	mov	$stack_top, %rsp
	call	main
1:	hlt
	jmp	1b

	.section .data
	.balign 8
gdt:
	.quad 0
	.quad 0x00af9b000000ffff
	.quad 0x00cf93000000ffff
gdt_pointer:
	.word gdt_pointer - gdt - 1
	.quad gdt

	.balign 4096
pml4:
	.quad pdpt + TABLE
	.fill 511, 8, 0
	.global pdpt
pdpt:
	.quad PAGE, 0x40000000 + PAGE, 0x80000000 + PAGE, 0xc0000000 + PAGE
	.fill 508, 8, 0

	.section .bss
	.balign 16
	.skip 4096
stack_top:

	.section .note.GNU-stack, "", @progbits
