/*
 * Self-test of the processor's SVM: a guest of a few instructions, in 64-bit
 * mode with nested paging.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "selftest.h"

struct descriptor {
    uint16_t limit;
    uint64_t base;
} __attribute__((packed));
struct gate {
    uint16_t low, selector, type, middle;
    uint32_t high, reserved;
};

int run(uint64_t vmcb, struct registers *registers);
extern struct descriptor gdt_pointer;
extern uint8_t exceptions[], host_pml4[], nested_pml4[];

static uint8_t vmcb[4096] PAGE_ALIGNED, host_save[4096] PAGE_ALIGNED;
static uint8_t io_map[3 * 4096] PAGE_ALIGNED, msr_map[2 * 4096] PAGE_ALIGNED;
static uint8_t guest_stack[4096] PAGE_ALIGNED;
static struct gate idt[256];
struct registers registers;

bool has_guests(void)
{
    uint32_t a = 0x80000001, b, c, d;

    asm volatile("cpuid" : "+a"(a), "=b"(b), "=c"(c), "=d"(d));
    return c & BIT(2);
}

static uint32_t svm_features(void)
{
    uint32_t a = 0x8000000a, b, c, d;

    asm volatile("cpuid" : "+a"(a), "=b"(b), "=c"(c), "=d"(d));
    return d;
}

bool has_next_rip(void)
{
    return svm_features() & BIT(3);
}

bool has_decode_assists(void)
{
    return svm_features() & BIT(7);
}

bool has_flush_by_asid(void)
{
    return svm_features() & BIT(6);
}

uint64_t get(unsigned offset, unsigned size)
{
    uint64_t value = 0;

    memcpy(&value, vmcb + offset, size);
    return value;
}

void set(unsigned offset, unsigned size, uint64_t value)
{
    memcpy(vmcb + offset, &value, size);
}

static void set_gate(unsigned vector, const uint8_t *to)
{
    uint64_t address = (uint64_t)to;

    idt[vector] = (struct gate) {
        .low = address, .selector = CODE_SELECTOR, .type = 0x8e00,
        .middle = address >> 16, .high = address >> 32,
    };
}

void exceptions_start(void)
{
    struct descriptor pointer = { sizeof(idt) - 1, (uint64_t)idt };

    for (unsigned i = 0; i < 32; i++) {
        set_gate(i, exceptions + 16 * i);
    }
    set_gate(VECTOR, interrupted);
    asm volatile("lidt %0" : : "m"(pointer));
}

void guest_start(void)
{
    wrmsr(MSR_EFER, rdmsr(MSR_EFER) | EFER_SVME);
    wrmsr(MSR_VM_HSAVE_PA, (uint64_t)host_save);
    memset(io_map, 0xff, sizeof(io_map));
    memset(msr_map, 0xff, sizeof(msr_map));
}

static void set_segment(unsigned offset, uint16_t selector, uint16_t attributes)
{
    set(offset, 2, selector);
    set(offset + 2, 2, attributes);
    set(offset + 4, 4, 0xffffffff);
    set(offset + 8, 8, 0);
}

void guest_prepare(const uint8_t *code)
{
    uint64_t cr0, cr4;

    asm volatile("mov %%cr0, %0; mov %%cr4, %1" : "=r"(cr0), "=r"(cr4));
    memset(vmcb, 0, sizeof(vmcb));
    registers = (struct registers) { 0 };
    set(EXCEPTIONS, 4, 0xffffffff);
    set(MISC1, 4, MISC1_BIT(EXIT_SHUTDOWN));
    set(MISC2, 4, MISC2_VMRUN | MISC2_VMMCALL);
    set(IOPM_BASE, 8, (uint64_t)io_map);
    set(MSRPM_BASE, 8, (uint64_t)msr_map);
    set(ASID, 4, 1);
    set(TLB_CONTROL, 1, 1);
    set(VINTR, 4, V_INTR_MASKING);
    set(NESTED_CTL, 8, 1);
    set(N_CR3, 8, (uint64_t)nested_pml4);
    set_segment(CS, CODE_SELECTOR, 0xa9b);
    set_segment(SS, DATA_SELECTOR, 0xc93);
    set_segment(DS, DATA_SELECTOR, 0xc93);
    set_segment(ES, DATA_SELECTOR, 0xc93);
    set(GDTR + 4, 4, gdt_pointer.limit);
    set(GDTR + 8, 8, gdt_pointer.base);
    set(IDTR + 4, 4, sizeof(idt) - 1);
    set(IDTR + 8, 8, (uint64_t)idt);
    set(EFER, 8, rdmsr(MSR_EFER));
    set(CR0, 8, cr0);
    set(CR3, 8, (uint64_t)host_pml4);
    set(CR4, 8, cr4);
    set(DR6, 8, 0xffff0ff0);
    set(DR7, 8, 0x400);
    set(RFLAGS, 8, 2);
    set(RIP, 8, (uint64_t)code);
    set(RSP, 8, (uint64_t)(guest_stack + sizeof(guest_stack)));
    set(G_PAT, 8, 0x0007040600070406);
}

uint64_t guest_run(void)
{
    run((uint64_t)vmcb, &registers);
    return get(EXITCODE, 8);
}
