/*
 * Self-test of the SMMUv3 model: which context a request reaches.
 *
 * Source: Arm SMMU architecture version 3, IHI 0070, 5.2 to 5.4 and 7.3.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "selftest.h"

static struct context a, b, c;
static cd_t linear[8] ALIGNED(512);

/* Nothing was recorded. */
static void no_event(void)
{
    struct event e;

    CHECK_TRUE(!smmu_event(&e));
}

/* Exactly one event: of that type, with what its record tells of @ssid. */
static void one_event(unsigned type, int ssid)
{
    struct event e = { };
    uint32_t tail = 0;

    if (ssid != UNTAGGED && type != F_STREAM_DISABLED) {
        tail = (uint32_t)ssid << 12 | (type == C_BAD_SUBSTREAMID ? 0 : BIT(11));
    }
    CHECK_TRUE(smmu_event(&e));
    CHECK_EQ(e.word[0], type | tail);
    CHECK_EQ(e.word[1], DSA_SID);
    no_event();
}

static void refused(int ssid, unsigned type)
{
    CHECK_EQ(dsa_probe(ssid, IOVA, a.data), 0);
    one_event(type, ssid);
}

/* A copy stays within the memory of @in. */
static void reaches(int ssid, struct context *in)
{
    struct context *all[] = { &a, &b, &c };

    for (unsigned i = 0; i < 3; i++) {
        memset(all[i]->data + O_DST, 0, 256);
    }
    CHECK_EQ(dsa_copy(ssid, IOVA, in->data), CR_SUCCESS);
    for (unsigned i = 0; i < 3; i++) {
        bool same = true;

        for (unsigned n = 0; n < 256; n++) {
            uint8_t want = all[i] == in ? in->data[O_SRC + n] : 0;

            same = same && all[i]->data[O_DST + n] == want;
        }
        CHECK_TRUE(same);
    }
    no_event();
}

static void contexts(void)
{
    context_init(&a);
    context_init(&b);
    context_init(&c);
    memset(linear, 0, sizeof(linear));
    cd_write(linear[0], &c, 10);
    cd_write(linear[5], &a, 11);
    cd_write(linear[6], &b, 12);
}

static void use_linear(unsigned cdmax, unsigned s1dss)
{
    ste_use(STE_V | STE_CONFIG(STAGE1) | STE_S1(linear, LINEAR, cdmax), s1dss,
            0, 0);
}

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
    CHECK_EQ(dsa_copy(UNTAGGED, (uint64_t)b.data - RAM + FAR_IPA, b.data),
             CR_SUCCESS);
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
    CHECK_EQ(dsa_copy(UNTAGGED, (uint64_t)b.data - RAM + FAR_IPA, b.data),
             CR_SUCCESS);
    no_event();
    CHECK_EQ(dsa_probe(UNTAGGED, FAR_IPA + BIT(30), b.data), 0);
    one_event(F_TRANSLATION, UNTAGGED);
    /* The CD's address does not translate */
    ste_use(STE_V | STE_CONFIG(NESTED) |
            STE_S1(FAR_IPA + BIT(30), LINEAR, 3), 1, STE_S2_W2,
            (uint64_t)stage2);
    refused(5, F_TRANSLATION);
}

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
    static cd_t other[64] ALIGNED(4096);

    contexts();
    memset(l1_4k, 0, sizeof(l1_4k));
    memset(leaf, 0, sizeof(leaf));
    memset(other, 0, sizeof(other));
    cd_write(leaf[5], &a, 11);
    cd_write(leaf[6], &a, 11);
    cd_write(other[5], &b, 12);
    cd_write(other[6], &b, 12);
    ste_use(STE_V | STE_CONFIG(STAGE1) | STE_S1(l1_4k, LEAF_4K, 20), 0, 0, 0);
    /* A missing leaf is remembered, and only Leaf = 0 forgets it */
    refused(64 + 5, C_BAD_SUBSTREAMID);
    l1_4k[1] = (uint64_t)leaf | 1;
    refused(64 + 5, C_BAD_SUBSTREAMID);
    cfgi_cd(64 + 5, true);
    refused(64 + 5, C_BAD_SUBSTREAMID);
    cfgi_cd(5, false);
    refused(64 + 5, C_BAD_SUBSTREAMID);
    /* of any SubstreamID of that leaf */
    cfgi_cd(64 + 60, false);
    reaches(64 + 5, &a);
    /* One that is there is remembered, too */
    l1_4k[1] = (uint64_t)other | 1;
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
