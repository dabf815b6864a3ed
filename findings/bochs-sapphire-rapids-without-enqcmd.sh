#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
# Bochs's model of the processor that brought DSA lacks the instruction that DSA's shared queues are submitted with.
#
# bochs 3.0+dfsg-1 (Debian 13): the model `sapphire_rapids` has what is newest on that processor (AMX, user interrupts,
# MOVDIR64B), yet not ENQCMD, which that processor has (SDM volume 2, ENQCMD: CPUID leaf 7, ECX bit 29). So software
# that submits to a dedicated queue can be tried on it, and what submits to a shared one takes it for a processor that
# cannot. Where a model says what it has is Bochs's log, when the processor is reset.
#
# Seen: the lines that this prints:
#   movdir64b
#   no enqcmd
# Fails when that version says something else. Needs Debian's apt-get, dpkg-deb and script, and root (for chroot);
# downloads packages of Debian 13, 55 MB, and unpacks them into a folder of its own.
set -eu
dir=$(mktemp -d)
trap 'rm -r "$dir"' EXIT
cd "$dir"
mkdir -p lists/partial archives/partial root
touch status
keys=/usr/share/keyrings/debian-archive-keyring.gpg
# The mirror that this machine has its packages from.
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Identifier: Packages' | grep '/debian/$' | head -n 1)
[ -n "$mirror" ] || { echo "this machine has no mirror of Debian; run apt-get update first" >&2; exit 1; }
echo "deb [signed-by=$keys] $mirror trixie main" >sources.list
apt() {
    apt-get -o Dir::Etc::SourceList="$dir/sources.list" -o Dir::Etc::SourceParts=/dev/null \
        -o Dir::Etc::Preferences=/dev/null -o Dir::State::Lists="$dir/lists" -o Dir::State::Status="$dir/status" \
        -o Dir::Cache="$dir" -o APT::Sandbox::User=root -o APT::Install-Recommends=false "$@" >apt.log 2>&1
}

apt update || { cat apt.log >&2; exit 1; }
apt install --yes --download-only bochs=3.0+dfsg-1 bochs-term=3.0+dfsg-1 bochsbios=3.0+dfsg-1 ncurses-base ||
    { cat apt.log >&2; exit 1; }
mkdir -p root/usr/bin root/usr/lib root/usr/lib64 root/usr/sbin
for name in bin lib lib64 sbin; do
    ln -s "usr/$name" "root/$name"
done
for package in archives/*.deb; do
    dpkg-deb --fsys-tarfile "$package" | tar -x -C root --keep-directory-symlink
done
# The ROM is named as its built-in default has another name than Debian's file.
cat >root/bochsrc <<'END'
cpu: model=sapphire_rapids
memory: guest=32, host=32
vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest
display_library: term
log: /log
panic: action=fatal
sound: waveoutdrv=dummy
END
# There is no disk to boot from: it ends by itself. What counts is logged when the processor is reset.
TERM=linux timeout 60 script -qec 'chroot root /usr/bin/bochs-bin -q -f /bochsrc' /dev/null >/dev/null 2>&1 || true
grep -iow movdir64b root/log || { echo 'no list of features'; exit 1; }
if grep -iw enqcmd root/log; then
    exit 1
fi
echo 'no enqcmd'
