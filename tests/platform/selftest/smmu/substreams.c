/*
 * Self-test of the SMMUv3 model: which context a request reaches.
 *
 * Source: Arm SMMU architecture version 3, IHI 0070, 5.2 to 5.4.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "selftest.h"

void test_linear(void)
{
    contexts();
    use_linear(3, 0);
    reaches(5, &a);
    reaches(6, &b);
    reaches(0, &c);
    refused(7, C_BAD_CD);
    refused(8, C_BAD_SUBSTREAMID);
    refused(0xfffff, C_BAD_SUBSTREAMID);
    reaches(5, &a);

    /* The table ends where S1CDMax says */
    use_linear(1, 0);
    refused(5, C_BAD_SUBSTREAMID);
    reaches(0, &c);
    use_linear(21, 0);
    refused(5, C_BAD_STE);
    refused(UNTAGGED, C_BAD_STE);
}

static uint64_t l1_4k[1 << 14] ALIGNED(131072);
static uint64_t l1_64k[1 << 10] ALIGNED(8192);
static cd_t leaf[1024] ALIGNED(65536);

/* A table of 2^20 with leaves of 2^@bits, two of which are there. */
static void two_level(uint64_t *l1, unsigned fmt, unsigned bits)
{
    const uint32_t last = 0xfffff;

    memset(leaf, 0, sizeof(leaf));
    memset(l1, 0, sizeof(uint64_t) << (20 - bits));
    l1[0] = (uint64_t)leaf | 1;
    cd_write(leaf[5], &a, 11);
    cd_write(leaf[last & ((1 << bits) - 1)], &b, 12);
    l1[last >> bits] = (uint64_t)leaf | 1;
    ste_use(STE_V | STE_CONFIG(STAGE1) | STE_S1(l1, fmt, 20), 0, 0, 0);
    reaches(5, &a);
    reaches(last, &b);
    refused(6, C_BAD_CD);
    refused(1 << bits, C_BAD_SUBSTREAMID);
    refused((1 << bits) + 5, C_BAD_SUBSTREAMID);

    /* With the second leaf there, the same index in it is another SSID's */
    l1[1] = (uint64_t)leaf | 1;
    cfgi_cd(1 << bits, false);
    reaches((1 << bits) + 5, &a);

    /* A leaf beyond the output size is no leaf */
    l1[1] = BIT(44) | 1;
    cfgi_cd(1 << bits, false);
    refused((1 << bits) + 7, C_BAD_SUBSTREAMID);

    /* A smaller table than a leaf has one leaf */
    ste_use(STE_V | STE_CONFIG(STAGE1) | STE_S1(l1, fmt, 4), 0, 0, 0);
    reaches(5, &a);
    refused(16, C_BAD_SUBSTREAMID);
    ste_use(STE_V | STE_CONFIG(STAGE1) | STE_S1(l1, fmt, 20), 2, 0, 0);
    refused(UNTAGGED, C_BAD_CD);
    l1[0] = 0;
    ste_use(STE_V | STE_CONFIG(STAGE1) | STE_S1(l1, fmt, 20), 2, 0, 0);
    refused(UNTAGGED, C_BAD_SUBSTREAMID);
}

void test_two_level(void)
{
    contexts();
    two_level(l1_4k, LEAF_4K, 6);
    two_level(l1_64k, LEAF_64K, 10);
}

void test_default_substream(void)
{
    contexts();
    /* Terminate, and the reserved value */
    for (unsigned s1dss = 0; s1dss < 4; s1dss += 3) {
        use_linear(3, s1dss);
        refused(UNTAGGED, F_STREAM_DISABLED);
        reaches(0, &c);
        reaches(5, &a);
    }
    /* Bypass */
    use_linear(3, 1);
    CHECK_EQ(dsa_copy(UNTAGGED, (uint64_t)b.data, b.data), CR_SUCCESS);
    no_event();
    reaches(0, &c);
    reaches(5, &a);
    /* Context 0, which tagged requests then do not reach */
    use_linear(3, 2);
    reaches(UNTAGGED, &c);
    refused(0, F_STREAM_DISABLED);
    reaches(5, &a);
    /* Substreams off: one CD, whatever S1DSS says */
    for (unsigned s1dss = 0; s1dss < 4; s1dss++) {
        use_linear(0, s1dss);
        reaches(UNTAGGED, &c);
        refused(0, C_BAD_SUBSTREAMID);
        refused(5, C_BAD_SUBSTREAMID);
    }
}

void test_other_configurations(void)
{
    contexts();
    stage2_init();
    /* Fields of stage 1 are ignored without it */
    ste_use(STE_V | STE_CONFIG(BYPASS) | STE_S1(linear, LINEAR, 31), 0, 0, 0);
    CHECK_EQ(dsa_copy(UNTAGGED, (uint64_t)b.data, b.data), CR_SUCCESS);
    no_event();
    refused(5, C_BAD_SUBSTREAMID);
    refused(0, C_BAD_SUBSTREAMID);
    ste_use(STE_V | STE_CONFIG(STAGE2) | STE_S1(linear, LINEAR, 31), 0,
            STE_S2_W2, (uint64_t)stage2);
    CHECK_EQ(dsa_copy(UNTAGGED, far(&b), b.data), CR_SUCCESS);
    no_event();
    refused(5, C_BAD_SUBSTREAMID);
    ste_use(STE_V | STE_CONFIG(ABORT), 0, 0, 0);
    CHECK_EQ(dsa_probe(5, IOVA, a.data), 0);
    CHECK_EQ(dsa_probe(UNTAGGED, IOVA, a.data), 0);
    no_event();
    ste_use(0, 0, 0, 0);
    refused(5, C_BAD_STE);
    refused(UNTAGGED, C_BAD_STE);
    /* Stage 2 with AArch32 tables, which there are not */
    ste_use(STE_V | STE_CONFIG(STAGE2), 0, STE_S2_W2 & ~BIT(51),
            (uint64_t)stage2);
    refused(UNTAGGED, C_BAD_STE);
    /* The largest IPS is cut to what there is */
    use_linear(3, 0);
    linear[5][0] |= 7ULL << CD_IPS_SHIFT;
    cfgi_cd(5, true);
    reaches(5, &a);
}

void test_nested(void)
{
    uint64_t table = (uint64_t)linear - RAM + FAR_IPA;

    contexts();
    stage2_init();
    ste_use(STE_V | STE_CONFIG(NESTED) | STE_S1(table, LINEAR, 3), 1, STE_S2_W2,
            (uint64_t)stage2);
    reaches(5, &a);
    reaches(6, &b);
    refused(8, C_BAD_SUBSTREAMID);
    /* Without stage 1 stage 2 is still there */
    CHECK_EQ(dsa_copy(UNTAGGED, far(&b), b.data), CR_SUCCESS);
    no_event();
    CHECK_EQ(dsa_probe(UNTAGGED, FAR_IPA + BIT(30), b.data), 0);
    one_event(F_TRANSLATION, UNTAGGED);
    /* The CD's address does not translate */
    ste_use(STE_V | STE_CONFIG(NESTED) |
            STE_S1(FAR_IPA + BIT(30), LINEAR, 3), 1, STE_S2_W2,
            (uint64_t)stage2);
    refused(5, F_TRANSLATION);
}
