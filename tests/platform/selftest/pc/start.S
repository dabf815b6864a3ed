/*
 * Self-test of the PC: entry, exceptions, and the way into a
 * guest.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "selftest.h"

    /* XEN_ELFNOTE_PHYS32_ENTRY: where a PVH kernel starts, in 32-bit mode */
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
    lgdt    gdt_pointer
    mov     %cr4, %eax
    or      $(CR4_PAE | CR4_MCE), %eax
    mov     %eax, %cr4
    mov     $host_pml4, %eax
    mov     %eax, %cr3
    mov     $MSR_EFER, %ecx
    rdmsr
    or      $(EFER_LME | EFER_NXE), %eax
    wrmsr
    mov     %cr0, %eax
    and     $~(CR0_CD | CR0_NW), %eax
    or      $(CR0_PG | CR0_PE), %eax
    mov     %eax, %cr0
    ljmp    $CODE_SELECTOR, $long_mode

    .code64
long_mode:
    mov     $DATA_SELECTOR, %eax
    mov     %eax, %ds
    mov     %eax, %es
    mov     %eax, %ss
    mov     $stack_top, %rsp
    call    main
    /* A full reset by the chipset, which ends QEMU with -no-reboot */
    mov     $0xcf9, %dx
    mov     $6, %al
    out     %al, %dx
1:  hlt
    jmp     1b

/* int run(uint64_t vmcb, struct registers *): VMRUN until #VMEXIT. */
    .global run
run:
    push    %rbx
    push    %rbp
    push    %r12
    push    %r13
    push    %r14
    push    %r15
    push    %rsi
    mov     %rdi, %rax
    mov     0(%rsi), %rbx
    mov     8(%rsi), %rcx
    mov     16(%rsi), %rdx
    vmrun   %rax
    pop     %r15
    mov     %rbx, 0(%r15)
    mov     %rcx, 8(%r15)
    mov     %rdx, 16(%r15)
    pop     %r15
    pop     %r14
    pop     %r13
    pop     %r12
    pop     %rbp
    pop     %rbx
    ret

/* int try(void (*)(uint64_t), uint64_t): the exception it meets, or -1. */
    .global try
try:
    push    %rbx
    push    %rbp
    push    %r12
    push    %r13
    push    %r14
    push    %r15
    mov     %rsp, try_stack
    movl    $-1, try_vector
    mov     %rdi, %rax
    mov     %rsi, %rdi
    sub     $8, %rsp
    call    *%rax
resume:
    mov     try_stack, %rsp
    movq    $0, try_stack
    mov     try_vector, %eax
    pop     %r15
    pop     %r14
    pop     %r13
    pop     %r12
    pop     %rbp
    pop     %rbx
    ret

/* Exceptions of the host; one that nobody tries for ends the test. */
    .global exceptions
    .balign 16
exceptions:
    .set    i, 0
    .rept   32
    .balign 16
    mov     $i, %edi
    jmp     1f
    .set    i, i + 1
    .endr
1:  mov     %edi, try_vector
    cmpq    $0, try_stack
    jne     resume
    and     $-16, %rsp
    call    unexpected

/* What a guest runs when the virtual interrupt is delivered. */
    .global interrupted
interrupted:
    vmmcall

    .section .data
    .balign 8
gdt:
    .quad 0
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
    .global gdt_pointer
gdt_pointer:
    .word gdt_pointer - gdt - 1
    .quad gdt

    /*
     * The host's addresses are physical ones. So are the guest's, of its own
     * and of the nested tables; of the second GiB the nested ones have nothing.
     */
    .balign 4096
    .global host_pml4, nested_pml4, host_pdpt, nested_pdpt
host_pml4:
    .quad host_pdpt + 7
    .fill 511, 8, 0
nested_pml4:
    .quad nested_pdpt + 7
    .fill 511, 8, 0
host_pdpt:
    .quad 0x87, 0x40000087, 0x80000087, 0xc0000087
    .fill 508, 8, 0
nested_pdpt:
    .quad 0x87, 0, 0x80000087, 0xc0000087
    .fill 508, 8, 0

    .section .note.GNU-stack, "", @progbits

    .section .bss
    .balign 16
try_stack:
    .skip   8
try_vector:
    .skip   8
    .skip   16384
    .balign 16
stack_top:
