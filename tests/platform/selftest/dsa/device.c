/*
 * Self-test of the DSA model: the device, its memory, and how it is driven.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <time.h>
#include "selftest.h"

unsigned checks, failed;
volatile uint8_t *bar0, *bar2;
uint8_t *mem;
uint64_t mem_pa;
unsigned cur_wq;

static int config_fd;
static char sysfs[300];
static uint32_t bars[6];

bool check_eq(const char *file, int line, const char *what, uint64_t got, uint64_t want)
{
    checks++;
    if (got == want) {
        return true;
    }
    failed++;
    printf("FAILED %s:%d: %s is 0x%llx, expected 0x%llx\n", file, line, what,
           (unsigned long long)got, (unsigned long long)want);
    return false;
}

void die(const char *what)
{
    printf("dsa-selftest: %s: %s\n", what, strerror(errno));
    exit(2);
}

/* Registers and configuration space */

uint32_t cfg_read(unsigned o, unsigned len)
{
    uint32_t v = 0;

    if (pread(config_fd, &v, len, o) != len) {
        die("config read");
    }
    return v;
}

void cfg_write(unsigned o, uint32_t v, unsigned len)
{
    if (pwrite(config_fd, &v, len, o) != len) {
        die("config write");
    }
}

uint64_t now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* Waits for *p & mask to become nonzero; the limit is a failure, no pace. */
bool wait_bit(volatile uint32_t *p, uint32_t mask, bool set)
{
    uint64_t end = now_ms() + 5000;

    while (!(*p & mask) == set) {
        if (now_ms() > end) {
            return false;
        }
        sched_yield();
    }
    return true;
}

uint32_t cmd_start(unsigned code, uint32_t operand)
{
    w32(CMD, code << 20 | operand);
    return r32(CMDSTS);
}

uint32_t cmd_wait(void)
{
    wait_bit((volatile uint32_t *)(bar0 + CMDSTS), BIT(31), false);
    return r32(CMDSTS);
}

uint32_t cmd(unsigned code, uint32_t operand)
{
    cmd_start(code, operand);
    return cmd_wait();
}

void swerr_clear(void)
{
    w64(SWERR, 3);
}

/* Submission */

void movdir64b(volatile void *dst, const void *src)
{
    asm volatile("sfence; .byte 0x66, 0x0f, 0x38, 0xf8, 0x02"
                 : : "a"(dst), "d"(src) : "memory");
}

bool enqcmd(volatile void *dst, const void *src)
{
    uint8_t zf;

    asm volatile("sfence; .byte 0xf2, 0x0f, 0x38, 0xf8, 0x02; setz %0"
                 : "=q"(zf) : "a"(dst), "d"(src) : "memory", "cc");
    return !zf;
}

volatile void *portal(unsigned wq, unsigned page)
{
    return bar2 + wq * 0x4000 + page * 0x1000;
}

volatile struct cr *cr_at(unsigned n)
{
    return (volatile struct cr *)(mem + O_CR) + n;
}

struct desc mk(unsigned op, uint32_t flags, uint64_t src, uint64_t dst,
                      uint32_t size)
{
    struct desc d = {
        .op_flags = op << 24 | flags, .cr = flags & CRAV ? PA(O_CR) : 0,
        .src = src, .dst = dst, .size = size,
    };

    return d;
}

uint8_t submit_wait(struct desc *d)
{
    volatile struct cr *cr = cr_at(0);

    memset((void *)cr, 0, sizeof(*cr));
    movdir64b(portal(cur_wq, 1), d);
    wait_bit((volatile uint32_t *)cr, 0xff, true);
    return cr->status;
}

uint8_t run(unsigned op, uint32_t flags, uint64_t src, uint64_t dst,
                   uint32_t size)
{
    struct desc d = mk(op, flags, src, dst, size);

    return submit_wait(&d);
}

/* For descriptors that leave no completion record: what SWERR says. */
uint64_t run_swerr(struct desc *d)
{
    swerr_clear();
    movdir64b(portal(cur_wq, 1), d);
    wait_bit((volatile uint32_t *)(bar0 + SWERR), 1, true);
    return r64(SWERR);
}

void pattern(uint8_t *p, unsigned len, unsigned seed)
{
    for (unsigned i = 0; i < len; i++) {
        p[i] = (i * 7 + (i >> 8) + seed) & 0xff;
    }
}

/* Configures a dedicated queue @wq of @size in group 0, with engines 0 and 1. */
void setup_wq(unsigned wq, unsigned size, uint32_t dw2)
{
    w32(WQ_DW(wq, 0), size);
    w32(WQ_DW(wq, 1), size / 2);
    w32(WQ_DW(wq, 2), dw2 | 5 << 4);
    w32(WQ_DW(wq, 3), 21 | 5 << 5);
    w64(GRP_WQS(0), r64(GRP_WQS(0)) | BIT(wq));
    w64(GRP_ENGINES(0), 3);
}

void fresh(void)
{
    cfg_write(PCI_COMMAND, 6, 2);
    cmd(RESET, 0);
    swerr_clear();
    w32(INTCAUSE, ~0u);
}

void start_dwq(void)
{
    fresh();
    setup_wq(0, 16, 1);
    CHECK_EQ(cmd(ENABLE, 0), 0);
    CHECK_EQ(cmd(ENABLE_WQ, 0), 0);
    cur_wq = 0;
}

/* Interrupts: entry n writes 0x100 + n to word n of O_MSI. */

volatile uint32_t *msi_word(unsigned n)
{
    return (volatile uint32_t *)(mem + O_MSI) + n;
}

void msix_setup(void)
{
    for (unsigned n = 0; n <= WQS; n++) {
        *msi_word(n) = 0;
        w64(MSIX_TABLE + 16 * n, PA(O_MSI) + 4 * n);
        w32(MSIX_TABLE + 16 * n + 8, 0x100 + n);
        w32(MSIX_TABLE + 16 * n + 12, 0);
    }
    cfg_write(MSIX_CTRL, 0x8000, 2);
}


unsigned devfn(void)
{
    unsigned slot, func;

    if (sscanf(strrchr(sysfs, ':') + 1, "%x.%x", &slot, &func) != 2) {
        die("device name");
    }
    return slot << 3 | func;
}

void save_bars(void)
{
    for (int i = 0; i < 6; i++) {
        bars[i] = cfg_read(0x10 + 4 * i, 4);
    }
}

void restore_bars(void)
{
    for (int i = 0; i < 6; i++) {
        cfg_write(0x10 + 4 * i, bars[i], 4);
    }
    cfg_write(PCI_COMMAND, 6, 2);
}

void map_device(void)
{
    DIR *dir = opendir("/sys/bus/pci/devices");
    struct dirent *e;
    char path[320], id[16];
    int fd;

    while (dir && (e = readdir(dir))) {
        FILE *f;

        snprintf(path, sizeof(path), "/sys/bus/pci/devices/%.32s/device", e->d_name);
        f = fopen(path, "r");
        if (f && fgets(id, sizeof(id), f) &&
            (!strncmp(id, "0x0b25", 6) || !strncmp(id, "0x11fb", 6))) {
            snprintf(sysfs, sizeof(sysfs), "/sys/bus/pci/devices/%.32s", e->d_name);
        }
        if (f) {
            fclose(f);
        }
    }
    if (!sysfs[0]) {
        printf("dsa-selftest: no DSA found\n");
        exit(2);
    }
    snprintf(path, sizeof(path), "%s/enable", sysfs);
    fd = open(path, O_WRONLY);
    if (fd < 0 || write(fd, "1", 1) != 1) {
        die(path);
    }
    snprintf(path, sizeof(path), "%s/config", sysfs);
    config_fd = open(path, O_RDWR);
    snprintf(path, sizeof(path), "%s/resource0", sysfs);
    fd = open(path, O_RDWR);
    bar0 = mmap(NULL, 0x10000, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    snprintf(path, sizeof(path), "%s/resource2", sysfs);
    fd = open(path, O_RDWR);
    bar2 = mmap(NULL, 0x20000, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (config_fd < 0 || bar0 == MAP_FAILED || bar2 == MAP_FAILED) {
        die(path);
    }
}

void map_memory(void)
{
    uint64_t entry = 0;
    int fd = open("/proc/self/pagemap", O_RDONLY);

    mem = mmap(NULL, HUGE, PROT_READ | PROT_WRITE,
               MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
    if (mem == MAP_FAILED) {
        die("a huge page (hugepages=8)");
    }
    memset(mem, 0, HUGE);
    if (pread(fd, &entry, 8, (uintptr_t)mem / PAGE * 8) != 8 || !entry) {
        die("pagemap");
    }
    mem_pa = (entry & (BIT(55) - 1)) * PAGE;
    close(fd);
}
