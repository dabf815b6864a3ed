#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
# Debian 12's VFIO has no no-IOMMU mode.
#
# linux-image-6.1.0-50-amd64 6.1.176-1: guides to user-space drivers say that, on a machine or in a guest without an
# IOMMU, `enable_unsafe_noiommu_mode` of the module vfio is to be set. In this kernel there is no such parameter,
# since CONFIG_VFIO_NOIOMMU is off; writing to it fails with "No such file or directory", as the folder
# /sys/module/vfio/parameters is not even made. vfio-pci has a parameter that the guides do not name and that decides
# there first: `disable_denylist`, without which it refuses some accelerators by their device ID.
#
# Seen: the lines that this prints:
#   # CONFIG_VFIO_NOIOMMU is not set
#   vfio: no parameters
#   vfio-pci: disable_denylist
# Fails when a kernel of that version says something else. Needs apt-get and dpkg-deb; downloads 70 MB.
set -eu
package=linux-image-6.1.0-50-amd64=6.1.176-1
dir=$(mktemp -d)
trap 'rm -r "$dir"' EXIT
cd "$dir"
apt-get download "$package" >/dev/null 2>&1 || { echo "cannot download $package" >&2; exit 1; }
dpkg-deb -x ./*.deb .
drivers=$(echo lib/modules/*/kernel/drivers/vfio)

# parameters FILE: the names of a module's parameters.
parameters() {
    tr '\0' '\n' <"$1" | sed -n 's/^parmtype=\([^:]*\):.*/\1/p'
}

grep -x '# CONFIG_VFIO_NOIOMMU is not set' boot/config-*
[ -z "$(parameters "$drivers/vfio.ko")" ] || { echo "vfio: $(parameters "$drivers/vfio.ko")"; exit 1; }
echo "vfio: no parameters"
parameters "$drivers/pci/vfio-pci.ko" | grep -x disable_denylist | sed 's/^/vfio-pci: /'
parameters "$drivers/pci/vfio-pci.ko" | grep -qx disable_denylist
