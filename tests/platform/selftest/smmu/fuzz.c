/*
 * Self-test of the SMMUv3 model: structures and commands without sense. What
 * becomes of the requests does not matter, but the machine goes on, and what
 * makes sense works after it.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "selftest.h"

#define ROUNDS 3000
#define ROUNDS_PER_CONTEXT 16

static uint64_t state = 0x9e3779b97f4a7c15;

static uint64_t random(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static bool one_in(unsigned n)
{
    return random() % n == 0;
}

/*
 * One bit of 64, but none that would move an address by less than the size of
 * this program: a write must not hit it.
 */
static uint64_t harmless_bit(void)
{
    unsigned bit = random() % 64;

    return bit >= 12 && bit < 28 ? 0 : BIT(bit);
}

static void damage(volatile uint64_t *words, unsigned count)
{
    while (!one_in(3)) {
        words[random() % count] ^= harmless_bit();
    }
}

static void random_stream(void)
{
    uint64_t w0 = STE_V | STE_CONFIG(4 + random() % 4) | (uint64_t)linear;
    uint64_t words[4] = { w0, random() & 3, STE_S2_W2, (uint64_t)stage2 };

    words[0] |= (random() & 3) << 4 | (random() % 23) << 59;
    if (one_in(4)) {
        damage(words, 4);
    }
    ste_use(words[0], words[1], words[2], words[3]);
}

static void random_command(void)
{
    uint64_t lo = random(), hi = random();

    if (one_in(2)) {
        /* For the stream that there is */
        lo = (lo & 0xffffffff) | (uint64_t)DSA_SID << 32;
    }
    smmu_command(lo, hi);
}

void test_fuzz(void)
{
    static const int ssids[] = { 5, 6, 7, 0, UNTAGGED };
    struct event e;

    for (unsigned i = 0; i < ROUNDS; i++) {
        struct context *in = one_in(2) ? &a : &b;

        if (i % ROUNDS_PER_CONTEXT == 0) {
            contexts();
            stage2_init();
        }
        switch (random() % 6) {
        case 0:
            damage(linear[5], 2);
            break;
        case 1:
            damage(&in->l1[IOVA >> 30], 1);
            break;
        case 2:
            damage(in->l2, 1);
            break;
        case 3:
            damage(in->l3, PAGES);
            break;
        case 4:
            damage(stage2, (FAR_IPA >> 30) + 1);
            break;
        case 5:
            /* Any shape of the stream table, too */
            smmu_streams(random(), true);
            break;
        }
        random_stream();
        for (unsigned n = 0; n < 3; n++) {
            int ssid = ssids[random() % 5];

            if (ssid != UNTAGGED && one_in(8)) {
                ssid = random() & 0xfffff;
            }
            dsa_fire(ssid, IOVA);
            random_command();
        }
        while (smmu_event(&e)) {
            CHECK_EQ(e.word[1], DSA_SID);
        }
        smmu_overflowed();
    }
    smmu_streams(6, false);
    contexts();
    use_linear(3, 2);
    reaches(UNTAGGED, &c);
    reaches(5, &a);
    reaches(6, &b);
    refused(7, C_BAD_CD);
}
