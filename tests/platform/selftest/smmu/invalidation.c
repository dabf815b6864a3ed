/*
 * Self-test of the SMMUv3 model: what was changed is not seen before the right
 * command, and is seen after it.
 *
 * Source: Arm SMMU architecture version 3, IHI 0070, 4.3 and 4.4.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "selftest.h"

void test_stale_cd(void)
{
    contexts();
    use_linear(3, 2);
    reaches(5, &a);
    reaches(6, &b);
    refused(7, C_BAD_CD);
    reaches(UNTAGGED, &c);

    /* All change; what is not invalidated is not seen */
    cd_write(linear[5], &b, 13);
    cd_write(linear[6], &a, 14);
    cd_write(linear[7], &c, 15);
    cd_write(linear[0], &a, 16);
    reaches(5, &a);
    reaches(6, &b);
    refused(7, C_BAD_CD);
    reaches(UNTAGGED, &c);
    cfgi_cd(5, true);
    reaches(5, &b);
    reaches(6, &b);
    refused(7, C_BAD_CD);
    cfgi_cd(7, true);
    reaches(7, &c);
    reaches(6, &b);
    /* Requests without SubstreamID use CD 0 */
    reaches(UNTAGGED, &c);
    cfgi_cd(0, true);
    reaches(UNTAGGED, &a);
    reaches(6, &b);
    /* Those of another stream are not these */
    smmu_command(CFGI_CD_ALL | (uint64_t)(DSA_SID + 1) << 32, 0);
    smmu_command(CFGI_STE | (uint64_t)(DSA_SID + 1) << 32, 1);
    reaches(6, &b);
    smmu_command(CFGI_CD_ALL | (uint64_t)DSA_SID << 32, 0);
    reaches(6, &a);
    /* Invalid again */
    linear[6][0] = 0;
    reaches(6, &a);
    cfgi_cd(6, true);
    refused(6, C_BAD_CD);
}

void test_stale_tables(void)
{
    static uint64_t l1[1 << 14] ALIGNED(131072);
    static cd_t leaf[64] ALIGNED(4096), other[64] ALIGNED(4096);

    contexts();
    memset(l1, 0, sizeof(l1));
    memset(leaf, 0, sizeof(leaf));
    memset(other, 0, sizeof(other));
    cd_write(leaf[5], &a, 11);
    cd_write(leaf[6], &a, 11);
    cd_write(other[5], &b, 12);
    cd_write(other[6], &b, 12);
    ste_use(STE_V | STE_CONFIG(STAGE1) | STE_S1(l1, LEAF_4K, 20), 0, 0, 0);
    /* A missing leaf is remembered, and only Leaf = 0 forgets it */
    refused(64 + 5, C_BAD_SUBSTREAMID);
    l1[1] = (uint64_t)leaf | 1;
    refused(64 + 5, C_BAD_SUBSTREAMID);
    cfgi_cd(64 + 5, true);
    refused(64 + 5, C_BAD_SUBSTREAMID);
    cfgi_cd(5, false);
    refused(64 + 5, C_BAD_SUBSTREAMID);
    /* of any SubstreamID of that leaf */
    cfgi_cd(64 + 60, false);
    reaches(64 + 5, &a);
    /* One that is there is remembered, too */
    l1[1] = (uint64_t)other | 1;
    reaches(64 + 6, &a);
    cfgi_cd(64 + 5, false);
    reaches(64 + 5, &b);
    reaches(64 + 6, &a);
    smmu_command(CFGI_CD_ALL | (uint64_t)DSA_SID << 32, 0);
    reaches(64 + 6, &b);
}

void test_stale_ste(void)
{
    static cd_t other[8] ALIGNED(512);
    const uint64_t ste = STE_V | STE_CONFIG(STAGE1);

    contexts();
    memset(other, 0, sizeof(other));
    cd_write(other[5], &b, 12);
    cd_write(other[6], &a, 11);
    use_linear(3, 0);
    reaches(5, &a);
    ste_write(ste | STE_S1(other, LINEAR, 3), 2, 0, 0);
    reaches(5, &a);
    /* also for what was never asked of it */
    reaches(6, &b);
    refused(UNTAGGED, F_STREAM_DISABLED);
    smmu_command(CFGI_CD_ALL | (uint64_t)DSA_SID << 32, 0);
    reaches(5, &a);
    smmu_command(CFGI_STE | (uint64_t)DSA_SID << 32, 1);
    reaches(5, &b);
    reaches(6, &a);
    /* A range: two streams from 0x22 on, then from 0x20 on */
    ste_write(ste | STE_S1(linear, LINEAR, 3), 0, 0, 0);
    smmu_command(CFGI_STE_RANGE | (uint64_t)(DSA_SID + 2) << 32, 0);
    reaches(5, &b);
    smmu_command(CFGI_STE_RANGE | (uint64_t)(DSA_SID + 1) << 32, 0);
    reaches(5, &a);
    /* An invalid one is remembered */
    ste_use(0, 0, 0, 0);
    refused(5, C_BAD_STE);
    ste_write(ste | STE_S1(linear, LINEAR, 3), 0, 0, 0);
    refused(5, C_BAD_STE);
    refused(6, C_BAD_STE);
    smmu_command(CFGI_STE_RANGE, 31);
    reaches(6, &b);
}

/* Reads of @ssid at O_SRC go to that context's memory */
static void moved(int ssid, uint8_t want)
{
    CHECK_EQ(dsa_copy(ssid, IOVA, a.data), CR_SUCCESS);
    CHECK_EQ(a.data[O_DST], want);
}

void test_stale_translation(void)
{
    uint64_t page;
    uint8_t old, new;

    contexts();
    use_linear(3, 0);
    a.data[O_SRC] = old = 0x11;
    b.data[O_SRC] = new = 0x22;
    page = O_SRC / 4096;
    moved(5, old);
    a.l3[page] = b.l3[page];
    moved(5, old);
    cfgi_cd(5, false);
    moved(5, old);
    /* Another ASID, another address, then this one */
    smmu_command(TLBI_NH_ASID | 12ULL << 48, 0);
    moved(5, old);
    smmu_command(TLBI_NH_VA | 11ULL << 48, (IOVA + O_DST) | 1);
    moved(5, old);
    smmu_command(TLBI_NH_VA | 12ULL << 48, (IOVA + O_SRC) | 1);
    moved(5, old);
    smmu_command(TLBI_NH_VA | 11ULL << 48, (IOVA + O_SRC) | 1);
    moved(5, new);
    /* The whole ASID; what is gone faults then */
    a.l3[page] = 0;
    moved(5, new);
    smmu_command(TLBI_NH_ASID | 11ULL << 48, 0);
    CHECK_EQ(dsa_copy(5, IOVA, a.data) & 0x3f, CR_FAULT);
    one_event(F_TRANSLATION, 5);
}
