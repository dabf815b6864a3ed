// SPDX-License-Identifier: MIT OR GPL-2.0-or-later
/*
 * uio_msix: UIO for PCI functions that have MSI-X and nothing else.
 *
 * uio_pci_generic knows INTx only. This gives user space one MSI-X vector as the interrupt of a UIO device: a read of
 * /dev/uioN returns the number of interrupts so far, and waits for the next. BARs are mapped through sysfs.
 *
 * It takes no function by itself: write "uio_msix" to its driver_override, and its address to drivers_probe.
 *
 *   vector=N   which vector, from 0 on (default 1)
 */
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/uio_driver.h>

static unsigned int vector = 1;
module_param(vector, uint, 0444);

static irqreturn_t handler(int irq, struct uio_info *info)
{
	return IRQ_HANDLED;
}

static void free_vectors(void *pdev)
{
	pci_free_irq_vectors(pdev);
}

static int probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct uio_info *info;
	int error;

	info = devm_kzalloc(&pdev->dev, sizeof(*info), GFP_KERNEL);
	if (!info)
		return -ENOMEM;
	error = pcim_enable_device(pdev);
	if (error)
		return error;
	error = pci_alloc_irq_vectors(pdev, vector + 1, vector + 1, PCI_IRQ_MSIX);
	if (error < 0)
		return error;
	error = devm_add_action_or_reset(&pdev->dev, free_vectors, pdev);
	if (error)
		return error;
	pci_set_master(pdev);
	info->name = "uio_msix";
	info->version = "1";
	info->irq = pci_irq_vector(pdev, vector);
	info->handler = handler;
	return devm_uio_register_device(&pdev->dev, info);
}

/* Only by driver_override. */
static const struct pci_device_id nothing[] = { {} };

static struct pci_driver uio_msix = {
	.name = "uio_msix",
	.id_table = nothing,
	.probe = probe,
};
module_pci_driver(uio_msix);

MODULE_DESCRIPTION("UIO for PCI functions that have MSI-X");
MODULE_LICENSE("Dual MIT/GPL");
