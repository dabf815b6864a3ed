# SPDX-License-Identifier: GPL-2.0-or-later
#
# Devices of the aarch64 reference platform, and nothing else: `-M virt` with
# AAVMF, SMMUv3, GICv3 with ITS and one accelerator. The machine selects the
# SMMU, PL011, PL031, flash, fw_cfg and the generic PCIe host.
# Copied to configs/devices/aarch64-softmmu/ and named to configure with
# --without-default-devices --with-devices-aarch64=.

CONFIG_ARM_VIRT=y

# PCIe root ports, for devices that must not sit on the root bus.
CONFIG_PCIE_PORT=y

# Disks for AAVMF's FAT image.
CONFIG_VIRTIO_PCI=y
CONFIG_VIRTIO_BLK=y

# The accelerator.
CONFIG_DSA=y
