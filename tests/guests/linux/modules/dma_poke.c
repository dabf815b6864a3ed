// SPDX-License-Identifier: MIT OR GPL-2.0-or-later
/*
 * dma_poke: one DMA copy between two bus addresses of the tester's choice.
 *
 * dmatest only ever names memory it owns. Isolation shows where a guest names memory it does not own, or an address
 * that its neighbour uses too, so this module asks the channel for exactly the copy it is told, once, when it is
 * loaded, and leaves the result in its parameters:
 *
 *   channel=NAME  src=ADDRESS  dst=ADDRESS  len=BYTES   the copy; an address of 0 means a buffer of the module's own
 *   fill=BYTE     written all over src before the copy, and its complement over dst (only where the module may
 *                 write: its own buffers, and addresses that the kernel was told to leave alone)
 *   result        read: "ok", "error", "timeout", or "refused" when the channel did not take the copy
 *   match         read: "yes" or "no" when fill was given: whether dst holds the filled bytes afterwards
 */
#include <linux/completion.h>
#include <linux/dma-mapping.h>
#include <linux/dmaengine.h>
#include <linux/io.h>
#include <linux/module.h>

static char channel[32];
module_param_string(channel, channel, sizeof(channel), 0444);
static unsigned long long src;
module_param(src, ullong, 0444);
static unsigned long long dst;
module_param(dst, ullong, 0444);
static unsigned int len = 4096;
module_param(len, uint, 0444);
static int fill = -1;
module_param(fill, int, 0444);
static unsigned int timeout = 10000;
module_param(timeout, uint, 0444);
MODULE_PARM_DESC(timeout, "milliseconds to wait for the completion");
static char result[16] = "none";
module_param_string(result, result, sizeof(result), 0444);
static char match[8] = "none";
module_param_string(match, match, sizeof(match), 0444);

struct outcome {
	struct completion done;
	enum dmaengine_tx_result result;
};

/* One side of the copy: a buffer of our own, or an address that we map only when we have to look at it. */
struct side {
	dma_addr_t address;
	void *bytes;
	bool own;
};

static bool by_name(struct dma_chan *chan, void *name)
{
	return strcmp(dma_chan_name(chan), name) == 0;
}

static void completed(void *parameter, const struct dmaengine_result *result)
{
	struct outcome *outcome = parameter;

	outcome->result = result ? result->result : DMA_TRANS_NOERROR;
	complete(&outcome->done);
}

static int open_side(struct side *side, struct device *device, unsigned long long address)
{
	side->own = address == 0;
	if (side->own) {
		side->bytes = dma_alloc_coherent(device, len, &side->address, GFP_KERNEL);
		return side->bytes ? 0 : -ENOMEM;
	}
	side->address = address;
	if (fill < 0)
		return 0;
	side->bytes = memremap(address, len, MEMREMAP_WB);
	return side->bytes ? 0 : -EINVAL;
}

static void close_side(struct side *side, struct device *device)
{
	if (side->own && side->bytes)
		dma_free_coherent(device, len, side->bytes, side->address);
	else if (side->bytes)
		memunmap(side->bytes);
}

static const char *copy(struct dma_chan *chan, struct outcome *outcome, dma_addr_t to, dma_addr_t from)
{
	struct dma_async_tx_descriptor *descriptor;

	init_completion(&outcome->done);
	descriptor = dmaengine_prep_dma_memcpy(chan, to, from, len, DMA_PREP_INTERRUPT | DMA_CTRL_ACK);
	if (!descriptor)
		return "refused";
	descriptor->callback_result = completed;
	descriptor->callback_param = outcome;
	if (dma_submit_error(dmaengine_submit(descriptor)))
		return "refused";
	dma_async_issue_pending(chan);
	if (!wait_for_completion_timeout(&outcome->done, msecs_to_jiffies(timeout)))
		return "timeout";
	return outcome->result == DMA_TRANS_NOERROR ? "ok" : "error";
}

static int __init dma_poke_init(void)
{
	/* Static: a completion that comes after the time-out must still find it. */
	static struct outcome outcome;
	struct side from = {}, to = {};
	struct device *device;
	struct dma_chan *chan;
	dma_cap_mask_t mask;
	int error;

	dma_cap_zero(mask);
	dma_cap_set(DMA_MEMCPY, mask);
	chan = dma_request_channel(mask, by_name, channel);
	if (!chan)
		return -ENODEV;
	device = chan->device->dev;
	error = open_side(&from, device, src);
	if (!error)
		error = open_side(&to, device, dst);
	if (!error) {
		if (fill >= 0) {
			memset(from.bytes, fill, len);
			memset(to.bytes, ~fill, len);
			/* The data must be there before the device looks. */
			wmb();
		}
		strscpy(result, copy(chan, &outcome, to.address, from.address), sizeof(result));
		if (fill >= 0)
			strscpy(match, memchr_inv(to.bytes, fill, len) ? "no" : "yes", sizeof(match));
	}
	close_side(&to, device);
	close_side(&from, device);
	dma_release_channel(chan);
	return error;
}
module_init(dma_poke_init);

/* Nothing is left to undo, but without an exit function a module cannot be unloaded. */
static void __exit dma_poke_exit(void)
{
}
module_exit(dma_poke_exit);

MODULE_DESCRIPTION("One DMA copy between two bus addresses of the tester's choice");
MODULE_LICENSE("Dual MIT/GPL");
