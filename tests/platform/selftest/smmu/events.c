/*
 * Self-test of the SMMUv3 model: event records, errors of commands, and an
 * interrupt as what it is, an untagged write.
 *
 * Source: Arm SMMU architecture version 3, IHI 0070, 4.1, 7.2 and 7.3.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "selftest.h"

void test_events(void)
{
    struct event e = { };

    contexts();
    use_linear(3, 0);
    a.l3[O_SRC / 4096] = 0;
    CHECK_EQ(dsa_copy(5, IOVA, a.data) & 0x3f, CR_FAULT);
    CHECK_TRUE(smmu_event(&e));
    CHECK_EQ(e.word[0], F_TRANSLATION | BIT(11) | 5 << 12);
    CHECK_EQ(e.word[1], DSA_SID);
    CHECK_EQ(e.word[3] & (BIT(3) | BIT(7) | 3 << 8), BIT(3) | 2 << 8);
    CHECK_EQ(e.word[4], IOVA + O_SRC);
    CHECK_EQ(e.word[5], 0);
    /* Nothing answers at this address */
    ste_use(STE_V | STE_CONFIG(STAGE1) | STE_S1(BIT(40), LINEAR, 3), 0, 0, 0);
    CHECK_EQ(dsa_probe(5, IOVA, a.data), 0);
    CHECK_TRUE(smmu_event(&e));
    CHECK_EQ(e.word[0], F_CD_FETCH | BIT(11) | 5 << 12);
    CHECK_EQ(e.word[4], 0);
    CHECK_EQ(e.word[6], 5 * 64);
    CHECK_EQ(e.word[7], BIT(8));
    no_event();
}

/* Refused by stage 2, for that address and direction; nothing else was. */
static void stage2_refused(uint64_t ipa, bool read)
{
    struct event e = { };

    CHECK_TRUE(smmu_event(&e));
    CHECK_EQ(e.word[0], F_PERMISSION);
    CHECK_EQ(e.word[3] & (BIT(3) | BIT(7)), (read ? BIT(3) : 0) | BIT(7));
    CHECK_EQ((uint64_t)e.word[5] << 32 | e.word[4], ipa);
    CHECK_EQ((uint64_t)e.word[7] << 32 | e.word[6], ipa);
    no_event();
}

void test_permissions(void)
{
    contexts();
    stage2_init();
    for (unsigned cached = 0; cached < 2; cached++) {
        stage2_far(S2_WRITE);
        ste_use(STE_V | STE_CONFIG(STAGE2), 0, STE_S2_W2, (uint64_t)stage2);
        if (cached) {
            CHECK_EQ(dsa_probe(UNTAGGED, far(&b), b.data), CR_SUCCESS);
        }
        CHECK_EQ(dsa_copy_from(UNTAGGED, far(&b) + O_SRC, (uint64_t)b.data,
                               b.data) & 0x3f, CR_FAULT);
        stage2_refused(far(&b) + O_SRC, true);

        stage2_far(S2_READ);
        ste_use(STE_V | STE_CONFIG(STAGE2), 0, STE_S2_W2, (uint64_t)stage2);
        if (cached) {
            CHECK_EQ(dsa_copy_from(UNTAGGED, far(&b) + O_SRC, (uint64_t)b.data,
                                   b.data), CR_SUCCESS);
        }
        CHECK_EQ(dsa_probe(UNTAGGED, far(&b), b.data), 0);
        stage2_refused(far(&b) + 8, false);
    }
}

void test_overflow(void)
{
    struct event e;
    unsigned seen = 0;

    contexts();
    use_linear(3, 0);
    CHECK_TRUE(!smmu_overflowed());
    for (unsigned i = 0; i < EVENTS; i++) {
        dsa_probe(7, IOVA, a.data);
    }
    CHECK_TRUE(!smmu_overflowed());
    dsa_probe(7, IOVA, a.data);
    dsa_probe(7, IOVA, a.data);
    CHECK_TRUE(smmu_overflowed());
    CHECK_TRUE(!smmu_overflowed());
    dsa_probe(7, IOVA, a.data);
    CHECK_TRUE(smmu_overflowed());
    while (smmu_event(&e)) {
        seen++;
    }
    CHECK_EQ(seen, EVENTS);
    refused(7, C_BAD_CD);
    CHECK_TRUE(!smmu_overflowed());
}

void test_bad_stream(void)
{
    contexts();
    use_linear(3, 0);
    smmu_streams(5, false);
    CHECK_EQ(dsa_probe(5, IOVA, a.data), 0);
    no_event();
    smmu_streams(5, true);
    refused(5, C_BAD_STREAMID);
    refused(UNTAGGED, C_BAD_STREAMID);
    smmu_streams(6, false);
    reaches(5, &a);
}

void test_commands(void)
{
    static const uint8_t absent[] = {
        TLBI_EL2_ALL, TLBI_EL3_ALL, ATC_INV, PRI_RESP, RESUME, STALL_TERM, 0xff,
    };

    CHECK_EQ(r32(SMMU + IDR1) >> 6 & 0x1f, 20);
    CHECK_EQ(r32(SMMU + IDR0) >> 19 & 1, 1);
    for (unsigned i = 0; i < sizeof(absent); i++) {
        CHECK_EQ(smmu_command(absent[i], 0), CERROR_ILL);
    }
    CHECK_EQ(smmu_command(SYNC, 0), 0);
}

void test_interrupt(void)
{
    volatile uint32_t *word = (volatile uint32_t *)(c.data + O_MSI);

    contexts();
    use_linear(3, 2);
    dsa_interrupt(IOVA + O_MSI, 0x1234);
    CHECK_EQ(*word, 0x1234);
    no_event();
    use_linear(3, 0);
    dsa_interrupt(IOVA + O_MSI, 0x5678);
    CHECK_EQ(*word, 0x1234);
    one_event(F_STREAM_DISABLED, UNTAGGED);
}
