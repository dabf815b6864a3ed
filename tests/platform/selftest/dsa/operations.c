/*
 * Self-test of the DSA model: what each operation does.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "selftest.h"

static uint32_t crc32c(uint32_t crc, const uint8_t *p, unsigned len)
{
    crc = ~crc;
    while (len--) {
        crc ^= *p++;
        for (int i = 0; i < 8; i++) {
            crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78 : 0);
        }
    }
    return ~crc;
}

void test_operations(void)
{
    uint8_t *src = mem + O_SRC, *dst = mem + O_DST, *dst2 = mem + O_DST2;
    static uint8_t copy[0x30000];
    struct desc d;

    start_dwq();
    CHECK_EQ(run(NOOP, CR_FLAGS, 0, 0, 0), 1);
    CHECK_EQ(run(DRAIN, CR_FLAGS, 0, 0, 0), 1);

    /* Memory Move: unaligned, across pages, and overlapping both ways */
    pattern(src, 0x20000, 1);
    memset(dst, 0xee, 0x20000);
    CHECK_EQ(run(MEMMOVE, CR_FLAGS | CC, PA(O_SRC) + 5, PA(O_DST) + 0xfff, 70001), 1);
    CHECK_TRUE(!memcmp(src + 5, dst + 0xfff, 70001));
    CHECK_EQ(dst[0xffe], 0xee);
    CHECK_EQ(dst[0xfff + 70001], 0xee);
    for (int delta = -5000; delta <= 5000; delta += 1237) {
        pattern(dst, 0x20000, 3);
        memcpy(copy, dst + 0x4000, 40000);
        CHECK_EQ(run(MEMMOVE, CR_FLAGS, PA(O_DST) + 0x4000, PA(O_DST) + 0x4000 + delta, 40000), 1);
        CHECK_TRUE(!memcmp(copy, dst + 0x4000 + delta, 40000));
    }

    d = mk(FILL, CR_FLAGS, 0x0807060504030201ULL, PA(O_DST) + 4090, 10003);
    CHECK_EQ(submit_wait(&d), 1);
    for (unsigned i = 0; i < 10003; i++) {
        if (dst[4090 + i] != i % 8 + 1) {
            CHECK_EQ(i, 10003);
            break;
        }
    }

    /* Compare */
    pattern(src, 0x4000, 1);
    memcpy(dst, src, 0x4000);
    CHECK_EQ(run(COMPARE, CR_FLAGS, PA(O_SRC), PA(O_DST), 0x4000), 1);
    CHECK_EQ(cr_at(0)->result, 0);
    dst[0x2345] ^= 1;
    CHECK_EQ(run(COMPARE, CR_FLAGS, PA(O_SRC), PA(O_DST), 0x4000), 1);
    CHECK_EQ(cr_at(0)->result, 1);
    CHECK_EQ(cr_at(0)->done, 0x2345);
    CHECK_EQ(run(COMPARE, CR_FLAGS | CHECK, PA(O_SRC), PA(O_DST), 0x4000), 2);
    d = mk(COMPARE, CR_FLAGS | CHECK, PA(O_SRC), PA(O_DST), 0x4000);
    d.op[0] = 1;
    CHECK_EQ(submit_wait(&d), 1);
    dst[0] ^= 1;
    CHECK_EQ(run(COMPARE, CR_FLAGS, PA(O_SRC), PA(O_DST), 0x4000), 1);
    CHECK_EQ(cr_at(0)->done, 0);
    CHECK_EQ(cr_at(0)->result, 1);
    for (unsigned i = 0; i < 5001; i++) {
        src[3 + i] = 0xa0 + i % 8;
    }
    CHECK_EQ(run(COMPAT, CR_FLAGS, PA(O_SRC) + 3, 0xa7a6a5a4a3a2a1a0ULL, 5001), 1);
    CHECK_EQ(cr_at(0)->result, 0);
    CHECK_EQ(run(COMPAT, CR_FLAGS, PA(O_SRC) + 3, 0xa7a6a5a4a3a2a1a0ULL, 5002), 1);
    CHECK_EQ(cr_at(0)->result, 1);
    CHECK_EQ(cr_at(0)->done, 5001);

    /* Dual-cast */
    pattern(src, 0x4000, 9);
    d = mk(DUALCAST, CR_FLAGS, PA(O_SRC) + 1, PA(O_DST) + 0x123, 9000);
    *(uint64_t *)d.op = PA(O_DST2) + 0x1123;
    CHECK_EQ(submit_wait(&d), 1);
    CHECK_TRUE(!memcmp(src + 1, dst + 0x123, 9000));
    CHECK_TRUE(!memcmp(src + 1, dst2 + 0x1123, 9000));
    *(uint64_t *)d.op = PA(O_DST2) + 0x1124;
    CHECK_EQ(submit_wait(&d), 0x17);
    *(uint64_t *)d.op = PA(O_DST) + 0x1123;
    CHECK_EQ(submit_wait(&d), 0x16);

    /* CRC: the check value of CRC-32C, chained, with the seed in memory */
    memcpy(src, "123456789", 9);
    CHECK_EQ(run(CRC, CR_FLAGS, PA(O_SRC), 0, 9), 1);
    CHECK_EQ(cr_at(0)->info, 0xe3069283);
    pattern(src, 20000, 4);
    CHECK_EQ(run(CRC, CR_FLAGS, PA(O_SRC) + 7, 0, 10001), 1);
    uint32_t first = cr_at(0)->info;
    CHECK_EQ(first, crc32c(0, src + 7, 10001));
    d = mk(CRC, CR_FLAGS, PA(O_SRC) + 7 + 10001, 0, 999);
    *(uint32_t *)d.op = first;
    CHECK_EQ(submit_wait(&d), 1);
    CHECK_EQ(cr_at(0)->info, crc32c(0, src + 7, 11000));
    *(uint32_t *)dst2 = first;
    d = mk(CRC, CR_FLAGS | SEED, PA(O_SRC) + 7 + 10001, 0, 999);
    *(uint64_t *)(d.op + 8) = PA(O_DST2);
    CHECK_EQ(submit_wait(&d), 1);
    CHECK_EQ(cr_at(0)->info, crc32c(0, src + 7, 11000));
    d.op[8] += 2;
    CHECK_EQ(submit_wait(&d), 0x1c);
    /* without inversion and reflection: polynomial division alone */
    memset(src, 0, 8);
    src[3] = 1;
    CHECK_EQ(run(CRC, CR_FLAGS | BYPASS | NOREFLECT, PA(O_SRC), 0, 4), 1);
    CHECK_EQ(cr_at(0)->info, 0x1edc6f41);
    CHECK_EQ(run(CRC, CR_FLAGS | BYPASS, PA(O_SRC), 0, 3), 1);
    CHECK_EQ(cr_at(0)->info, 0);
    pattern(src, 20000, 4);
    memset(dst, 0, 20000);
    CHECK_EQ(run(COPYCRC, CR_FLAGS, PA(O_SRC) + 1, PA(O_DST) + 2, 15000), 1);
    CHECK_TRUE(!memcmp(src + 1, dst + 2, 15000));
    CHECK_EQ(cr_at(0)->info, crc32c(0, src + 1, 15000));
    CHECK_EQ(run(COPYCRC, CR_FLAGS, PA(O_SRC), PA(O_SRC) + 8, 16), 0x16);

    CHECK_EQ(run(CFLUSH, CR_FLAGS, 0, PA(O_DST), 9000), 1);

    /* no record unless asked for: the next one's is the first to appear */
    memset((void *)cr_at(0), 0, 32);
    memset((void *)cr_at(1), 0, 32);
    d = mk(NOOP, CRAV, 0, 0, 0);
    movdir64b(portal(0, 0), &d);
    d = mk(DRAIN, CR_FLAGS, 0, 0, 0);
    d.cr += 32;
    movdir64b(portal(0, 3), &d);
    CHECK_TRUE(wait_bit((volatile uint32_t *)cr_at(1), 0xff, true));
    CHECK_EQ(cr_at(0)->status, 0);
}
