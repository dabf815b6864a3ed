#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
# Debian 12's arm64 kernel has one of Linux's two kexec system calls, its amd64 kernel both.
#
# linux-image-6.1.0-50 6.1.176-1: CONFIG_KEXEC_FILE is on for amd64 and off for arm64, though Linux has it for both. So
# `kexec -s`, which asks for kexec_file_load, works on one and fails on the other, and what verifies the next kernel's
# signature (CONFIG_KEXEC_SIG needs that call) cannot be had on arm64. `kexec -c` works on both.
#
# Seen: the lines that this prints:
#   amd64: CONFIG_KEXEC=y CONFIG_KEXEC_FILE=y
#   arm64: CONFIG_KEXEC=y CONFIG_KEXEC_FILE is not set
# Fails when kernels of that version say something else. Needs apt-get and dpkg-deb; downloads two kernels, and reads
# the package lists of both architectures into a folder of its own.
set -eu
version=6.1.176-1
dir=$(mktemp -d)
trap 'rm -r "$dir"' EXIT
mkdir -p "$dir/lists/partial"
cd "$dir"
apt() {
    apt-get -o APT::Architectures::=amd64 -o APT::Architectures::=arm64 -o Dir::State::Lists="$dir/lists" \
        -o Dir::Cache="$dir" -o APT::Sandbox::User=root "$@" >/dev/null 2>&1
}

apt update || { echo "cannot read the package lists" >&2; exit 1; }
for arch in amd64 arm64; do
    package=linux-image-6.1.0-50-$arch
    apt download "$package:$arch=$version" || { echo "cannot download $package $version" >&2; exit 1; }
    dpkg-deb --fsys-tarfile "${package}"_*.deb | tar -x ./boot/config-6.1.0-50-$arch
    config=boot/config-6.1.0-50-$arch
    said=$(sed -n 's/^# \(CONFIG_KEXEC_FILE is not set\)$/\1/p; /^CONFIG_KEXEC\(_FILE\)\{0,1\}=/p' "$config")
    echo "$arch: $(echo $said)" | tee -a seen
done
cmp seen - <<'END'
amd64: CONFIG_KEXEC=y CONFIG_KEXEC_FILE=y
arm64: CONFIG_KEXEC=y CONFIG_KEXEC_FILE is not set
END
