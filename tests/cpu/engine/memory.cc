// SPDX-License-Identifier: LGPL-2.1-or-later
// Physical memory and ports: the machine's. Where a page was found is kept, as walks through tables ask often.

#include "processors.h"

#include "iodev/iodev.h"

static const uint64_t PAGE_OFFSET_BITS = 0xfff;

/// A place for each of so many pages.
static struct {
  /// The address of the page, with bit 0 set in system management mode.
  uint64_t page;
  Bit8u *host;
} kept[4096];

void forget_pages()
{
  for (auto &place : kept) place.host = nullptr;
}

/// Where an address can be read and written, or null.
static Bit8u *host_of(const BX_CPU_C *cpu, uint64_t address)
{
  uint64_t offset = address & PAGE_OFFSET_BITS, page = address - offset;
  uint64_t key = page | cpu->in_smm;
  auto &place = kept[(page >> 12) % (sizeof kept / sizeof *kept)];
  if (place.host == nullptr || place.page != key) {
    Bit8u *host = (Bit8u *)machine.page(cpu->bx_cpuid, cpu->in_smm, page);
    if (host == nullptr) return nullptr;
    place = { key, host };
  }
  return place.host + offset;
}

/// Copies what the processor accesses at once in one piece: devices look at it meanwhile.
static void copy(void *to, const void *from, unsigned size)
{
  switch (size) {
    case 1: *(volatile Bit8u *)to = *(const volatile Bit8u *)from; break;
    case 2: *(volatile Bit16u *)to = *(const volatile Bit16u *)from; break;
    case 4: *(volatile Bit32u *)to = *(const volatile Bit32u *)from; break;
    case 8: *(volatile Bit64u *)to = *(const volatile Bit64u *)from; break;
    default: memcpy(to, from, size);
  }
}

BX_MEMORY_STUB_C::BX_MEMORY_STUB_C() {}
BX_MEMORY_STUB_C::~BX_MEMORY_STUB_C() {}
BX_MEM_C::BX_MEM_C() {}
BX_MEM_C::~BX_MEM_C() {}

Bit64u BX_MEMORY_STUB_C::get_memory_len() { return Bit64u(1) << BX_PHY_ADDRESS_WIDTH; }

/// Where the processor may access a page without asking. A pointer for reading is used for writing, too, so that memory
/// which is not for both has none.
Bit8u *BX_MEM_C::getHostMemAddr(BX_CPU_C *cpu, bx_phy_address address, unsigned rw)
{
  if (rw != BX_EXECUTE) return host_of(cpu, address);
  uint64_t offset = address & PAGE_OFFSET_BITS, page = address - offset;
  const void *code = machine.code(cpu->bx_cpuid, cpu->in_smm, page);
  if (code == nullptr) {
    // A device. It is read once for all that is executed there.
    static Bit8u copies[BX_MAX_SMP_THREADS_SUPPORTED][PAGE_OFFSET_BITS + 1];
    code = copies[cpu->bx_cpuid];
    machine.load(cpu->bx_cpuid, cpu->in_smm, page, sizeof *copies, copies[cpu->bx_cpuid]);
  }
  return (Bit8u *)code + offset;
}

void BX_MEM_C::readPhysicalPage(BX_CPU_C *cpu, bx_phy_address address, unsigned size, void *data)
{
  if (const Bit8u *host = host_of(cpu, address))
    copy(data, host, size);
  else
    machine.load(cpu->bx_cpuid, cpu->in_smm, address, size, data);
}

void BX_MEM_C::writePhysicalPage(BX_CPU_C *cpu, bx_phy_address address, unsigned size, void *data)
{
  if (Bit8u *host = host_of(cpu, address)) {
    pageWriteStampTable.decWriteStamp(address, size);
    copy(host, data, size);
  }
  else
    machine.store(cpu->bx_cpuid, cpu->in_smm, address, size, data);
}

bool BX_MEM_C::enqueuePhysicalPage(BX_CPU_C *cpu, bx_phy_address address, const void *data)
{
  return machine.enqueue(cpu->bx_cpuid, cpu->in_smm, address, data);
}

bool BX_MEM_C::dbg_fetch_mem(BX_CPU_C *, bx_phy_address, unsigned, Bit8u *) { return false; }

BX_MEM_C bx_mem;
