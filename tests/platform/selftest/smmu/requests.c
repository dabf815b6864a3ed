/*
 * Self-test of the SMMUv3 model: three contexts, and the checks of what became
 * of a request.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "selftest.h"

struct context a, b, c;
cd_t linear[8] ALIGNED(512);

void no_event(void)
{
    struct event e;

    CHECK_TRUE(!smmu_event(&e));
}

void one_event(unsigned type, int ssid)
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

void refused(int ssid, unsigned type)
{
    CHECK_EQ(dsa_probe(ssid, IOVA, a.data), 0);
    one_event(type, ssid);
}

void reaches(int ssid, struct context *in)
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

uint64_t far(const struct context *in)
{
    return (uint64_t)in->data - RAM + FAR_IPA;
}

void contexts(void)
{
    context_init(&a);
    context_init(&b);
    context_init(&c);
    memset(linear, 0, sizeof(linear));
    cd_write(linear[0], &c, 10);
    cd_write(linear[5], &a, 11);
    cd_write(linear[6], &b, 12);
}

void use_linear(unsigned cdmax, unsigned s1dss)
{
    ste_use(STE_V | STE_CONFIG(STAGE1) | STE_S1(linear, LINEAR, cdmax), s1dss,
            0, 0);
}
