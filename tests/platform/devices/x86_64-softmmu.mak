# SPDX-License-Identifier: GPL-2.0-or-later
#
# Devices of the x86_64 reference platform, and nothing else: what Q35 with
# OVMF, VT-d and one accelerator needs. No network, no USB, no display.
# Copied to configs/devices/x86_64-softmmu/ and named to configure with
# --without-default-devices --with-devices-x86_64=.

# The machine. It selects serial (ISA), RTC, PIT, AHCI, flash and fw_cfg.
CONFIG_Q35=y
CONFIG_HPET=y

# The IOMMU under test.
CONFIG_VTD=y

# PCIe root ports, for devices that must not sit on the root bus.
CONFIG_PCIE_PORT=y

# Disks: OVMF boots from either; the FAT image may be on both.
CONFIG_VIRTIO_PCI=y
CONFIG_VIRTIO_BLK=y

# debugcon (firmware log) and debug-exit (a guest ends QEMU with a status).
CONFIG_ISA_DEBUG=y

# The accelerator.
CONFIG_DSA=y
