/*
 * Self-test of the PC: what its parts share.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef SELFTEST_H
#define SELFTEST_H

#define CODE_SELECTOR 0x08
#define DATA_SELECTOR 0x10

#define CR0_PE 0x1
#define CR0_NW 0x20000000
#define CR0_CD 0x40000000
#define CR0_PG 0x80000000
#define CR4_PAE 0x20
#define CR4_MCE 0x40
#define CR4_LA57 0x1000
#define MSR_EFER 0xc0000080
#define EFER_LME 0x100
#define EFER_LMA 0x400
#define EFER_NXE 0x800
#define EFER_SVME 0x1000
#define MSR_VM_HSAVE_PA 0xc0010117

#ifndef __ASSEMBLER__
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BIT(n) (1ULL << (n))
#define PAGE_ALIGNED __attribute__((aligned(4096)))

/* Reports (report.c) */
#define CHECK_EQ(what, got, want) \
    check_eq(__FILE__, __LINE__, what, #got, got, want)
bool check_eq(const char *file, int line, const char *what, const char *of,
              uint64_t got, uint64_t want);
void print(const char *text);
/* Prints the number of checks, and of those that failed. */
void summary(void);
void *memset(void *to, int value, size_t size);
void *memcpy(void *to, const void *from, size_t size);

static inline uint32_t r32(uint64_t address)
{
    return *(volatile uint32_t *)address;
}

static inline void w32(uint64_t address, uint32_t value)
{
    *(volatile uint32_t *)address = value;
}

static inline uint64_t r64(uint64_t address)
{
    return *(volatile uint64_t *)address;
}

static inline void w64(uint64_t address, uint64_t value)
{
    *(volatile uint64_t *)address = value;
}

static inline void outb(uint16_t port, uint8_t value)
{
    asm volatile("outb %0, %1" : : "a"(value), "d"(port));
}

static inline void outl(uint16_t port, uint32_t value)
{
    asm volatile("outl %0, %1" : : "a"(value), "d"(port));
}

static inline uint32_t inl(uint16_t port)
{
    uint32_t value;

    asm volatile("inl %1, %0" : "=a"(value) : "d"(port));
    return value;
}

static inline uint64_t rdmsr(uint32_t msr)
{
    uint32_t lo, hi;

    asm volatile("rdmsr" : "=a"(lo), "=d"(hi) : "c"(msr));
    return lo | (uint64_t)hi << 32;
}

static inline void wrmsr(uint32_t msr, uint64_t value)
{
    asm volatile("wrmsr" : : "a"((uint32_t)value), "d"((uint32_t)(value >> 32)),
                 "c"(msr));
}

/* Before the first try() */
void exceptions_start(void);
/* The exception that a function meets, or -1 (start.S). */
int try(void (*function)(uint64_t), uint64_t argument);

/* The guest (guest.c): its VMCB's fields by their offset */
enum {
    CR_READ = 0x00, CR_WRITE = 0x02, DR_READ = 0x04, DR_WRITE = 0x06,
    EXCEPTIONS = 0x08, MISC1 = 0x0c, MISC2 = 0x10, IOPM_BASE = 0x40,
    MSRPM_BASE = 0x48, ASID = 0x58, TLB_CONTROL = 0x5c, VINTR = 0x60,
    VINTR_VECTOR = 0x64, EXITCODE = 0x70, EXITINFO1 = 0x78, EXITINFO2 = 0x80,
    NESTED_CTL = 0x90, EVENTINJ = 0xa8, N_CR3 = 0xb0, NRIP = 0xc8,
    INSN_LEN = 0xd0, INSN_BYTES = 0xd1, ES = 0x400, CS = 0x410, SS = 0x420,
    DS = 0x430, GDTR = 0x460, IDTR = 0x480, EFER = 0x4d0, CR4 = 0x548,
    CR3 = 0x550, CR0 = 0x558, DR7 = 0x560, DR6 = 0x568, RFLAGS = 0x570,
    RIP = 0x578, RSP = 0x5d8, RAX = 0x5f8, G_PAT = 0x668,
};
enum {
    EXIT_READ_CR0 = 0x00, EXIT_WRITE_CR0 = 0x10, EXIT_READ_DR0 = 0x20,
    EXIT_WRITE_DR0 = 0x30, EXIT_GP = 0x4d, EXIT_PF = 0x4e, EXIT_MC = 0x52,
    EXIT_RDTSC = 0x6e, EXIT_CPUID = 0x72, EXIT_SWINT = 0x75, EXIT_HLT = 0x78,
    EXIT_INVLPG = 0x79, EXIT_IOIO = 0x7b, EXIT_MSR = 0x7c,
    EXIT_SHUTDOWN = 0x7f, EXIT_VMMCALL = 0x81, EXIT_RDTSCP = 0x87,
    EXIT_NPF = 0x400,
};
#define EXIT_INVALID (~0ULL)
/* Bits of MISC1 count from the exit code of INTR. */
#define MISC1_BIT(exit) BIT((exit) - 0x60)
#define MISC2_VMRUN BIT(0)
#define MISC2_VMMCALL BIT(1)
#define MISC2_RDTSCP BIT(7)
#define V_IRQ BIT(8)
#define V_IGN_TPR BIT(20)
#define V_INTR_MASKING BIT(24)
#define V_INTR_PRIO(class) ((uint64_t)(class) << 16)
struct registers { uint64_t rbx, rcx, rdx; };
extern struct registers registers;
extern const uint8_t interrupted[];
#define VECTOR 0x51

/* Code of the guest that ends in VMMCALL; NAME_end is the instruction after. */
#define GUEST(name, code) \
    asm(".pushsection .text\n" #name ": " code "\n" \
        #name "_end: vmmcall\n.popsection"); \
    extern const uint8_t name[], name##_end[]

/* What CPUID promises */
bool has_guests(void);
bool has_next_rip(void);
bool has_decode_assists(void);
bool has_flush_by_asid(void);
void guest_start(void);
/* A VMCB that runs @code, with nothing intercepted but exceptions. */
void guest_prepare(const uint8_t *code);
/* VMRUN; returns the exit code. */
uint64_t guest_run(void);
uint64_t get(unsigned offset, unsigned size);
void set(unsigned offset, unsigned size, uint64_t value);

/* The tests */
void test_intercepts(void);
void test_faults_of_memory(void);
void test_faults_of_registers(void);
void test_host_efer(void);
void test_priority(void);
void test_vmrun(void);
void test_translations(void);
void test_machine_check(void);
void test_enqueue(void);
void test_remapping(void);
#endif
#endif
