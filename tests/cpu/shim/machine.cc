// SPDX-License-Identifier: LGPL-2.1-or-later
// What Bochs's processor finds around it: memory, ports, an interrupt controller, parameters, and a log.

#include "machine.h"

#include "../common/parameters.h"
#include "iodev/iodev.h"

#include <sys/uio.h>
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <deque>
#include <string>
#include <vector>

/// Words are for people: what is longer was repeated.
static const size_t MOST_WORDS = 1 << 16;

Machine machine;

// The log: errors are kept as words, and what Bochs cannot go on after ends the run.

static std::string said(const char *format, va_list arguments)
{
  char line[1024];
  vsnprintf(line, sizeof line, format, arguments);
  return line;
}

void Machine::say(const std::string &line)
{
  if (words.size() < MOST_WORDS) words += line + "\n";
}

void logfunctions::error(const char *format, ...)
{
  va_list arguments;
  va_start(arguments, format);
  machine.say(said(format, arguments));
  va_end(arguments);
}

void logfunctions::panic(const char *format, ...)
{
  va_list arguments;
  va_start(arguments, format);
  machine.say(said(format, arguments));
  va_end(arguments);
  throw Ended();
}

void logfunctions::fatal1(const char *format, ...)
{
  va_list arguments;
  va_start(arguments, format);
  machine.say(said(format, arguments));
  va_end(arguments);
  throw Ended();
}

// Memory.

/// A range of this process's memory.
struct Range {
  uint64_t start, end;
  bool readable, writable;
};

static std::vector<Range> ranges;

static void read_ranges()
{
  ranges.clear();
  FILE *maps = fopen("/proc/self/maps", "r");
  if (!maps) return;
  char line[512];
  while (fgets(line, sizeof line, maps)) {
    unsigned long start, end;
    char read, write;
    if (sscanf(line, "%lx-%lx %c%c", &start, &end, &read, &write) == 4)
      ranges.push_back({ start, end, read == 'r', write == 'w' });
  }
  fclose(maps);
}

static const Range *range_of(uint64_t address)
{
  auto behind = std::upper_bound(ranges.begin(), ranges.end(), address,
                                 [](uint64_t a, const Range &range) { return a < range.start; });
  if (behind == ranges.begin() || address >= std::prev(behind)->end) return nullptr;
  return &*std::prev(behind);
}

/// Whether this process may do that there, and so the processor. All of it is in one page.
static bool allowed(uint64_t address, access_kind access)
{
  for (bool fresh : { false, true }) {
    // It may have grown meanwhile.
    if (fresh) read_ranges();
    const Range *range = range_of(address);
    if (range && (access == ACCESS_WRITE ? range->writable : range->readable)) return true;
  }
  return false;
}

void Machine::forget_ranges()
{
  ranges.clear();
}

static bool is_device(uint64_t address)
{
  return machine.devices.count(address & ~uint64_t(0xfff)) != 0;
}

static void nothing_there(uint64_t address, access_kind access)
{
  machine.end(STOP_NOTHING, address, access);
}

BX_MEMORY_STUB_C::BX_MEMORY_STUB_C() {}
BX_MEMORY_STUB_C::~BX_MEMORY_STUB_C() {}
BX_MEM_C::BX_MEM_C() {}
BX_MEM_C::~BX_MEM_C() {}

Bit64u BX_MEMORY_STUB_C::get_memory_len() { return Bit64u(1) << BX_PHY_ADDRESS_WIDTH; }

/// Where the processor may access a page without asking: for reading and writing, or for fetching.
Bit8u *BX_MEM_C::getHostMemAddr(BX_CPU_C *, bx_phy_address address, unsigned rw)
{
  if (rw == BX_EXECUTE) {
    if (!allowed(address, ACCESS_FETCH)) {
      nothing_there(address, ACCESS_FETCH);
      // It cannot go on without.
      throw Ended();
    }
    return (Bit8u *)address;
  }
  if (is_device(address) || !allowed(address, ACCESS_READ) || !allowed(address, ACCESS_WRITE)) return nullptr;
  return (Bit8u *)address;
}

static void record(uint64_t address, unsigned size, const void *data, bool write)
{
  access_seen seen = {};
  seen.address = address;
  seen.size = size;
  seen.write = write;
  memcpy(seen.data, data, std::min<size_t>(size, sizeof seen.data));
  machine.seen.push_back(seen);
}

void BX_MEM_C::readPhysicalPage(BX_CPU_C *, bx_phy_address address, unsigned size, void *data)
{
  if (!allowed(address, ACCESS_READ)) {
    memset(data, 0xff, size);
    return nothing_there(address, ACCESS_READ);
  }
  memcpy(data, (const void *)address, size);
  if (is_device(address)) record(address, size, data, false);
}

void BX_MEM_C::writePhysicalPage(BX_CPU_C *, bx_phy_address address, unsigned size, void *data)
{
  if (!allowed(address, ACCESS_WRITE)) return nothing_there(address, ACCESS_WRITE);
  pageWriteStampTable.decWriteStamp(address, size);
  memcpy((void *)address, data, size);
  if (is_device(address)) record(address, size, data, true);
}

/// Devices take what memory does not.
bool BX_MEM_C::enqueuePhysicalPage(BX_CPU_C *cpu, bx_phy_address address, const void *data)
{
  if (!is_device(address)) return false;
  writePhysicalPage(cpu, address, 64, const_cast<void *>(data));
  return true;
}

bool BX_MEM_C::dbg_fetch_mem(BX_CPU_C *, bx_phy_address, unsigned, Bit8u *) { return false; }

BX_MEM_C bx_mem;

// Ports.

void bx_devices_c::reset(unsigned) {}
void bx_devices_c::exit() {}
Bit32u bx_devices_c::inp(Bit16u, unsigned) { return ~Bit32u(0); }
void bx_devices_c::outp(Bit16u port, Bit32u, unsigned) { machine.port(port); }

// Interrupts: those that wait, the oldest first.

struct Controller : bx_pic_stub_c {
  Bit8u IAC(void) override { return machine.acknowledge(); }
};

bool Machine::choose(const char *model, const char *features)
{
  static Controller *controller = new Controller;
  bx_devices.pluginPicDevice = controller;
  return choose_model(model, features, "");
}
